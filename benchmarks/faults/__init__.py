"""What a run survives: every file operation of it killed, failed or torn, and random kills."""
