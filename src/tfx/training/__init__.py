"""The loop, optimizers, schedules, averages."""
