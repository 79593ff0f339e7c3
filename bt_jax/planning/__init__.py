"""TPU slices without TPUs: chips, and what a compiled program costs."""
