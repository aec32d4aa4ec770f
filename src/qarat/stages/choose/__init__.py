"""Search: strategies propose plans, a driver measures them; and which of the dearest sites are protected."""
