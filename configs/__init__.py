"""One file per experiment: ``get_config(arg=None) -> ConfigDict``. Plain data."""
