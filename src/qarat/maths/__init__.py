"""Mathematics: tensors in, tensors out; no model, no names."""
