"""Verification: what lies in a folder that engines load, what each engine makes of it, and whether that was planned.

Nothing of the folder is run or unpickled: its config is read here, its tensors come from safetensors.
"""
