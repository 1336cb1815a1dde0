"""Floor 2: the Transformer families, from one set of layers, and decoding."""
