"""The page of `python -m eval report`: what is gathered of runs, as charts, tables and text."""
