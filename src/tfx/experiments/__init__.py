"""Floor 2: the Hydra launcher for sweeps on one machine; what is done, what failed, what is left."""
