"""Generated tasks with exact answers."""
