"""Commands: one function per verb, paths in, paths out; each puts stages together and holds no logic of its own.

A command takes the options of its verb and a screen, and returns the last lines to be said: what was written, and what
to try next. It stands in the module that is called as the one of its options (`qarat.surfaces.options`), so that a verb
imports what it needs and nothing else.
"""
