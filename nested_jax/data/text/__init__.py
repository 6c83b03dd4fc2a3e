"""Text that needs no preparation: the embedded text, and plain files."""
