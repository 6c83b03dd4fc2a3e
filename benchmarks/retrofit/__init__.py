"""What writing is worth to trained Transformers that never learned to write."""
