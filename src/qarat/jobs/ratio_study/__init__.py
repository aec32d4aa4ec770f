"""The ratio study: predicted search beside the best of many random plans."""
