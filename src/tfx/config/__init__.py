"""Floor 1: the schema of a run, and how a config is composed and checked."""
