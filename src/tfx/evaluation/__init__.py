"""Quality, decoding, speed and memory of a model."""
