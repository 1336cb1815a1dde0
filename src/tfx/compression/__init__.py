"""Floor 3: the checkpoint file."""
