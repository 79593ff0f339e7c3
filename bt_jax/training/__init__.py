"""Training: the state, the step (one pure function), and the loop (everything that happens between steps)."""
