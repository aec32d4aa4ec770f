"""Exporters: quantized models on disk, one file per format."""
