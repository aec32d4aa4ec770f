"""The spike study: protecting a few sites, beside controls and general-purpose methods.

A study is steps in a folder, like a run: profile, price and plan at the main setting, choose what methods leave open,
then every arm on the report tokens, each kept in a log as it is measured; so a killed study goes on from its last arm.
"""
