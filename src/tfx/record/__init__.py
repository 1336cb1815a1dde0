"""The run directory, its files, and what the user sees."""
