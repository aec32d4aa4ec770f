"""qarat: find where a LLaMA-family model needs precision, keep it there, quantize the rest, and prove what it cost."""

__version__ = "0.1.0"
