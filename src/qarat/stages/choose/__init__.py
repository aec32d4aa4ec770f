"""Search: strategies propose plans, a driver measures them; and the sweep that protects the dearest sites."""
