"""HOPE with attention: a Transformer whose last blocks carry a continuum memory that learns in
context.

    python launch.py --config configs/pilot.py:smoke
        2.2 M parameters, 120 steps, 3 min 29 s on two idle CPU cores. It ends at 1.724 held-out
        bits per byte (a byte trigram model of the same text: 2.741; without writes: 2.249), and
        says what a passage is worth that it read 1,024 tokens ago.
    python launch.py --config configs/pilot.py
        138 M parameters, 3 billion tokens, one GPU and more. Not run yet: no result is known. Its
        compiled plan is in docs/h200.md; `python -m nested_jax.fit` makes that of other GPUs. It
        reads `python -m nested_jax.data full --out data/full`; source=stdlib is the embedded text.

The argument is a size (test, smoke, pilot, mid, target) and fields: see configs/common.py.
Other blocks of the HOPE family: ``pilot.py:smoke,block=hope``.
"""

from __future__ import annotations

import ml_collections

from configs import common

SIZES = ("test", "smoke", "pilot", "mid_smoke", "mid", "target")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    size, fields = common.parse_arg(arg, default_size="pilot", sizes=SIZES)
    cfg = common.base(size)
    cfg.model.block = "hope_attention"  # attention -> CMS
    if size == "test":
        cfg.model.window = 24  # tokens of the sliding window
        common.teach_on(cfg, chunk=16, periods=(16, 32))
    elif size == "smoke":
        cfg.model.window = 128
        common.teach_on(cfg, chunk=64, periods=(64, 256))
        cfg.model.mlp_hidden = 256  # of every CMS level
        cfg.teach.remat = "none"  # eight chunks fit in memory
        cfg.train.eval_tasks = ("repeat",)  # what a passage is worth that it read 1,024 tokens ago
    else:
        cfg.model.window = 512
        periods = common.gpu_periods(cfg)
        common.teach_on(cfg, periods[0], periods)
        cfg.model.mlp_hidden = 4 * cfg.model.dim // len(periods)  # of every level
        cfg.model.cms.fast_layers = {"pilot": 3, "mid_smoke": 3}.get(size, 4)  # the last quarter
        cfg.model.loss_chunk = 8192  # tokens whose logits exist at once
        cfg.teach.remat = "chunk"  # keep the fast weights of every chunk; "sqrt" keeps fewer
    return common.finish(cfg, fields)
