"""The sweep over a family of models: the table that laws are fitted to."""
