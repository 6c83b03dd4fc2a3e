"""What a run needs of GPUs that are not here: memory, time, collectives, from compiled steps."""
