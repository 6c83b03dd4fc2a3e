"""The outer loop and its record: from a checked plan to a trained checkpoint."""
