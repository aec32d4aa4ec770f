"""Reports: records become something a person reads. Arranging only; every number comes from a record or a stage.

`terminal` makes rich renderables, `progress` draws a stage while it runs. What is printed may come from a model, a plan
edited by hand or somebody's source code, so no text is ever read as markup, and control characters are shown, not sent.
"""
