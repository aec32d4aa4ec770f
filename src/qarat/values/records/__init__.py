"""Records: what stages measured, as frozen values with their provenance."""
