"""HOPE with attention at 1.27 B parameters: `pilot` two sizes up, 100 billion tokens.

    python launch.py --config configs/target.py --config.mesh.fsdp=8 --config.mesh.data=-1

For two GPUs and more. Not run yet: no result is known. Its compiled plan is in docs/h200.md.
"""

from __future__ import annotations

import ml_collections

from configs import pilot


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    return pilot.get_config(f"target,{arg or ''}")
