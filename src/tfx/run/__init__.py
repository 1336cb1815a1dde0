"""The life of one run, in its order: setup, teacher, train, compress, measure, result."""
