"""Planning TPU runs without TPUs: figures of chips, and the cost of compiled programs."""
