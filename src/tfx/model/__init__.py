"""The Transformer families, built from one set of layers, and decoding."""
