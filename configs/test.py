"""`pilot` at the size of the tests.

    python launch.py --config configs/test.py

12 steps, seconds on one core beside compilation. The loss falls a little; it shows that all parts
run, not what they are worth.
"""

from __future__ import annotations

import ml_collections

from configs import pilot


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    return pilot.get_config(f"test,{arg or ''}")
