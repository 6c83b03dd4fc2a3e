"""HOPE with attention at 729 M parameters: `pilot` one size up, 30 billion tokens.

python launch.py --config configs/mid.py --config.mesh.fsdp=8
    For one host of eight GPUs, and two. Not run yet: no result is known. Its compiled plan is
    in docs/h200.md.
python launch.py --config configs/mid.py:smoke
    12 layers of 512, 200 steps of the embedded text: a run of minutes that shows that two GPUs
    work together. Not run yet.
"""

from __future__ import annotations

import ml_collections

from configs import pilot


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    parts = [part.strip() for part in (arg or "").split(",")]
    small = [("mid_smoke" if part in ("smoke", "size=smoke") else part) for part in parts]
    return pilot.get_config(",".join(["mid", *small]))
