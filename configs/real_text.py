"""What writing is worth on real text: attention over 64 of 1,024 characters, and one fast MLP.

    python launch.py --config configs/real_text.py                        hope_attention, writing
    python launch.py --config configs/real_text.py:writes=off             the same, never written
    python launch.py --config configs/real_text.py:model=hope,source=FOLDER

The argument is a size (text, medium, test) and `FIELDS`. FOLDER holds plain text, train.txt and
valid.txt or folders of these names; without it the text is the embedded one. The last block's MLP
is written every 64 characters by the gradient of their loss. What lies before the window can help
only through it. ``medium`` has 1.5 M parameters and pieces of text instead of characters, attention
over 256 of 2,048, and two levels; its source is a mixture (docs/proof/text-medium.md).

With ``rows=16,steps=250,batch=4`` a run takes 2 to 9 minutes on one core. On novels it ends at 2.51
bits per byte with writes and 2.72 without (docs/proof/text-quick.md).
"""

from __future__ import annotations

import ml_collections

from configs import common

FIELDS = {
    **common.FIELDS,
    "model": "model.block",
    "writes": "teach.mode",
    "frozen": "model.memory.frozen",
    "rate": "model.memory.max_rate",
    "rows": "data.valid_rows",
}
SIZES = ("text", "medium", "test")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    size, fields = common.parse_arg(arg, default_size="text", known=FIELDS, sizes=SIZES)
    cfg = common.base(size)
    cfg.model.block = fields.get("model.block", "hope_attention")
    chunk = 16 if size == "test" else 64  # characters between writes
    medium = size == "medium"
    cfg.model.window = 256 if medium else chunk  # what attention sees
    # One level: without writes a Transformer's MLP.
    common.teach_on(cfg, chunk, periods=(chunk, 4 * chunk) if medium else (chunk,))
    cfg.teach.remat = "chunk" if medium else "none"  # 16 chunks fit in memory
    cfg.model.memory = ml_collections.ConfigDict()
    cfg.model.memory.frozen = False
    if cfg.model.block == "hope":
        cfg.model.memory = ml_collections.ConfigDict({**common.HOPE_MEMORY, "frozen": False})
        # Rates of the order of 1 wipe out in 1,024 characters what the memory has learned to be
        # (docs/results.md, "Why the memories of hope cost on real text").
        cfg.model.memory.inner_lr = 0.02
    cfg.data.tokenizer = "sentencepiece" if medium else "char"
    common.set_fields(cfg, {"optim.final_fraction": 0.0, **fields})
    cfg.optim.warmup_steps = max(1, cfg.train.steps // 20)
    cfg.train.eval_every = cfg.train.save_every = max(1, cfg.train.steps // 2)
    return cfg.lock()
