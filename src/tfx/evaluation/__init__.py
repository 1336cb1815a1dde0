"""Floor 3: quality, speed and size."""
