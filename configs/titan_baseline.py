"""The Titans baseline: a neural long-term memory in every block, MLPs, no attention, no CMS.

    python launch.py --config configs/titan_baseline.py:smoke

Variants: ``titan_baseline.py:smoke,block=titans_mac`` (also titans_mag, titans_mal).
"""

from __future__ import annotations

import ml_collections

from configs import common, transformer


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    size, fields = common.parse_arg(arg, default_size="pilot")
    cfg = common.base(size)
    cfg.model.block = "titans_lmm"
    cfg.model.mlp_hidden = transformer.MLP_HIDDEN[size]
    cfg.model.window = {"test": 24, "smoke": 128}.get(size, 512)  # of titans_mag and titans_mal
    cfg.model.memory = ml_collections.ConfigDict()
    cfg.model.memory.chunk = 16 if size == "test" else 64  # tokens between gradient boundaries
    cfg.model.memory.segment = 32 if size == "test" else 128  # of titans_mac
    cfg.teach.mode = "off"
    return common.finish(cfg, fields)
