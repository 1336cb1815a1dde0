"""Codecs, the model file, and int8 kernels that run its weights."""
