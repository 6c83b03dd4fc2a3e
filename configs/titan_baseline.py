"""The Titans baseline: a neural long-term memory in every block, MLPs, no attention, no CMS.

python launch.py --config configs/titan_baseline.py:smoke
"""

from __future__ import annotations

import ml_collections

from configs import common, transformer


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    size, fields = common.parse_arg(arg, default_size="pilot")
    cfg = common.base(size)
    cfg.model.block = "titans_lmm"
    cfg.model.mlp_hidden = transformer.MLP_HIDDEN[size]
    cfg.model.memory = ml_collections.ConfigDict()
    cfg.model.memory.chunk = 16 if size == "test" else 64  # tokens between gradient boundaries
    cfg.teach.mode = "off"
    return common.finish(cfg, fields)
