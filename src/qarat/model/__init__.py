"""The model: the only code that knows transformers."""
