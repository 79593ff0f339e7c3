"""What a run's features are worth."""
