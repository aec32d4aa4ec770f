"""Jobs: stages put together."""
