"""The training engine: train state, train step, checkpoints and loop."""
