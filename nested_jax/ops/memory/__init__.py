"""Sequence memories: what one is, token by token and chunk by chunk, and its write rules."""
