"""The Titans baselines: a neural long-term memory in every block, MLPs, no CMS.

    python launch.py --config configs/titan_baseline.py:smoke                    the memory alone
    python launch.py --config configs/titan_baseline.py:smoke,block=titans_mac   memory as context

120 steps, minutes on two CPU cores. A run prints held-out bits per byte beside those of a byte
trigram model. No result is recorded at this size; docs/results.md has ``titans_lmm`` on recall,
formal languages and MAD.

``titans_mac`` attends within segments, ``titans_mag`` and ``titans_mal`` in a sliding window. The
ablations are fields: ``--config.model.memory.arch=linear`` against ``mlp``, ``.conv=0``,
``.momentum=False``, ``.retention=False``, ``.persistent=0``.
"""

from __future__ import annotations

import ml_collections

from configs import common, transformer


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    size, fields = common.parse_arg(arg, default_size="pilot", sizes=tuple(transformer.MLP_HIDDEN))
    cfg = common.base(size)
    cfg.model.block = "titans_lmm"
    cfg.model.mlp_hidden = transformer.MLP_HIDDEN[size]
    cfg.model.window = {"test": 24, "smoke": 128}.get(size, 512)  # of titans_mag and titans_mal
    cfg.model.memory = ml_collections.ConfigDict()
    cfg.model.memory.chunk = 16 if size == "test" else 64  # tokens between gradient boundaries
    # Of titans_mac; divides data.align, which is the same for every model of a size.
    cfg.model.memory.segment = {"test": 32, "smoke": 64}.get(size, 128)
    cfg.teach.mode = "off"
    return common.finish(cfg, fields)
