"""Texts to likelihoods, writes at test time, and the form of a result."""
