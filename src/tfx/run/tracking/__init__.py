"""Trackers: services that also receive what a run records, one file for each."""
