"""Floor 5: the loop, optimizers, schedules, averages."""
