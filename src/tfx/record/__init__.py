"""Floor 1: the run directory, its files, and what the user sees."""
