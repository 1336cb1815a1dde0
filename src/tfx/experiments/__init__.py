"""Many runs: sweeps on one machine, ablations, and trials."""
