"""Evaluations of checkpoints: ``python -m eval TASK --checkpoint runs/NAME``."""
