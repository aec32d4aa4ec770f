"""Damage: what every scheme would cost at every site, in nats per token; one file per metric."""
