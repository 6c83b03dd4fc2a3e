"""``python -m nested_jax.export``: see `nested_jax.hub.export`."""

from __future__ import annotations

import sys

from nested_jax.hub.export import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
