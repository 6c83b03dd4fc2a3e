"""Suites of small experiments with controls."""
