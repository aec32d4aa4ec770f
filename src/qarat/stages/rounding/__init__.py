"""Weight algorithms: (weight, scheme) → `QuantizedTensor`; one file each, the folder is the registry."""
