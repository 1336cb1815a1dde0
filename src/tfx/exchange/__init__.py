"""Models from and for other libraries: what comes in, and what goes out."""
