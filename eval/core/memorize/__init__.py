"""Writes at test time: the memories by name, the flags of ``--memorize``, and the writing."""
