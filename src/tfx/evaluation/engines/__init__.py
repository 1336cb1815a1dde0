"""Decoding by the libraries that models are exported to."""
