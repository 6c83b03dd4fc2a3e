"""Hugging Face layouts: import, export, check."""
