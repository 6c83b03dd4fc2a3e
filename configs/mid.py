"""HOPE with attention at 729 M parameters: `pilot` one size up.

    python launch.py --config configs/mid.py --config.mesh.fsdp=8

For a mesh of GPUs. Not run yet: no result is known. What it needs of eight GPUs:
``python -m nested_jax.fit --config configs/mid.py --gpu h200 --devices 8 --config.mesh.fsdp=8``.
"""

from __future__ import annotations

import ml_collections

from configs import pilot


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    return pilot.get_config(f"mid,{arg or ''}")
