"""Supervised examples: conversations in JSON lines to tokens, and which of them are learned."""
