"""Pure functions on arrays and pytrees: no parameters, no modules, no side effects."""
