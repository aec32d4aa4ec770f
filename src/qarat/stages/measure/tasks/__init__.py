"""Zero-shot tasks, scored by lm-evaluation-harness."""
