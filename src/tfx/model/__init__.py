"""The Transformer families, from one set of layers, and decoding."""
