"""The schema of a run, and how a config is composed and checked."""
