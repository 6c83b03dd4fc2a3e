"""HOPE with attention at about 760 M parameters: `pilot` one size up.

python launch.py --config configs/mid.py --config.mesh.fsdp=8      one host of eight GPUs
"""

from __future__ import annotations

import ml_collections

from configs import pilot


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    return pilot.get_config(f"mid,{arg or ''}")
