"""Surfaces: the command line, tables and pages; no logic of their own."""
