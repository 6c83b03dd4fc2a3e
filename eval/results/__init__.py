"""What is done with results: compare, summarize, plot, release."""
