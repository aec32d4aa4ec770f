"""Searching: stats and prices become the plans that budgets allow. Where the stages of a search are put together.

A job is steps in a folder, like a run: profile (only where scales are static), price, search, and the chosen plans
measured on the report tokens. The trial log lies beside them, so a killed search goes on from its last plan. Studies
and sweeps are many such jobs, each a folder and a step of a larger run.
"""
