"""Records as reports: one function for each kind, which says everything once, whatever draws it.

Arranging only; every number comes from a record or a stage. What is printed may come from a model, a plan edited by
hand or somebody's source code, so no text is ever read as markup, and control characters are shown, not sent.
`reports` lists the functions, `data` is what they give, `wording` says how a number looks.
"""
