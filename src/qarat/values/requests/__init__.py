"""Requests: what a job is asked to do, as frozen values."""
