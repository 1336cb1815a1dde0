"""The best model that meets limits of bytes, latency or quality, and the front of all that were trained."""
