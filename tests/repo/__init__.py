"""Checks of the shape of the repository: each takes a root folder and returns what is wrong."""
