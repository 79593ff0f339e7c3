"""What a person sees of a run: files of numbers, and a progress line."""
