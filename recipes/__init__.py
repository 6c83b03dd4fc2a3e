"""Whole experiments as one command each: ``python -m recipes.NAME``; resumable, with --quick."""
