"""The Transformer++ baseline: RMSNorm, RoPE, SwiGLU, full causal attention, no memory.

    python launch.py --config configs/transformer.py:smoke

120 steps, minutes on two CPU cores. It ends at 2.264 held-out bits per byte, on the text of
``pilot.py:smoke`` (docs/results.md, "Compared on one text").

The MLP is as wide as the CMS levels of `pilot` together, so that parameters match within 2 %.
"""

from __future__ import annotations

import ml_collections

from configs import common

MLP_HIDDEN = {
    "test": 192,
    "smoke": 512,
    "pilot": 3072,
    "mid_smoke": 2048,
    "mid": 6144,
    "target": 8192,
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    size, fields = common.parse_arg(arg, default_size="pilot", sizes=tuple(MLP_HIDDEN))
    cfg = common.base(size)
    cfg.model.block = "transformer"
    cfg.model.mlp_hidden = MLP_HIDDEN[size]
    cfg.model.max_len = max(cfg.data.seq_len, 2048)  # tokens that the cache holds
    cfg.teach.mode = "off"  # nothing to teach
    return common.finish(cfg, fields)
