"""Blocks, the language model, decoding."""
