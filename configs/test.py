"""`pilot` at the size of the tests: seconds on one core.

python launch.py --config configs/test.py
"""

from __future__ import annotations

import ml_collections

from configs import pilot


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    return pilot.get_config(f"test,{arg or ''}")
