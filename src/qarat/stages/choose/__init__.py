"""Search: strategies propose plans, a driver measures them; and which sites are protected."""
