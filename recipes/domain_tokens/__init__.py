"""Do tokens for products of digits make a better calculator? Two models, one with, one without."""
