"""Manifests of text corpora, for `python -m nested_jax.data`."""
