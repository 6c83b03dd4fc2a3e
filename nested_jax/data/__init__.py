"""Text to batches: sources, tokenizer, shards, packing and the input pipeline. No jax here."""
