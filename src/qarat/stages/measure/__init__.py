"""Evaluation: what a model loses, measured; one file per measure."""
