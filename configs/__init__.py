"""One file an experiment: ``get_config(arg=None) -> ConfigDict``. Plain data."""
