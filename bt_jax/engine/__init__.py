"""The train state, the train step, checkpoints, and the loop."""
