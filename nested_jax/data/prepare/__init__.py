"""Corpora to shards, by command: read, filter, tokenize, shard, audit."""
