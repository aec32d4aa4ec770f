"""Values: what things are. Standard library, msgspec and torch's dtypes only."""
