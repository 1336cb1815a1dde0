"""Codecs, the model file, and kernels that run on it."""
