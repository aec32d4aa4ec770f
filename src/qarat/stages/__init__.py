"""Stages: values in, values out; siblings do not import each other."""
