"""HOPE with attention at about 1.3 B parameters: `pilot` two sizes up, sharded over a mesh.

python launch.py --config configs/target.py --config.mesh.fsdp=8 --config.mesh.data=-1
"""

from __future__ import annotations

import ml_collections

from configs import pilot


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    return pilot.get_config(f"target,{arg or ''}")
