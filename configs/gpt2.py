"""GPT-2 as it was published, with the recipe of its 124 M reproductions.

    python launch.py --config configs/gpt2.py:smoke
        1 M parameters, 400 steps of 8 rows of 256 tokens: minutes on two CPU cores. The text is the
        standard library of Python, in 1,024 pieces of bytes that are trained in the run.
    python launch.py --config configs/gpt2.py:124m_10b,source=FOLDER
        19,073 steps of 524,288 tokens, 10 billion in all, from shards that GPT-2's vocabulary made.
        It has not been run here. docs/gpt2.md has the commands and what others reached.

``documents=joined`` cuts rows from the plain concatenation, as nanoGPT and its successors do. The
default keeps documents apart. The vocabulary of 50,349 holds GPT-2's tokens, 47 that are reserved,
and 45 symbols of the reader's own (``vocab=50304`` has none).
"""

from __future__ import annotations

from typing import Any

import ml_collections

from configs import common

MODELS: dict[str, dict[str, Any]] = {
    "test": {"dim": 32, "layers": 2, "heads": 2, "max_len": 64, "vocab_size": 600},
    "smoke": {"dim": 128, "layers": 4, "heads": 4, "max_len": 256, "vocab_size": 1024},
    "124m_10b": {"dim": 768, "layers": 12, "heads": 12, "max_len": 1024, "vocab_size": 50_349},
}
FIELDS = {
    **common.FIELDS,
    "documents": "data.documents",
    "vocab": "model.vocab_size",
    "accum": "train.grad_accum",
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    size, fields = common.parse_arg(arg, "124m_10b", FIELDS, tuple(MODELS))
    cfg = common.base("pilot" if size == "124m_10b" else size)
    cfg.model = ml_collections.ConfigDict({"block": "gpt2", "size": size, **MODELS[size]})
    cfg.model.norm_eps = 1e-5
    cfg.teach.mode = "off"  # nothing to teach
    cfg.data.tokenizer = "gpt2"  # pieces of bytes
    cfg.data.vocab_size = cfg.model.vocab_size  # of a tokenizer that is trained in the run
    cfg.data.seq_len = cfg.model.max_len
    cfg.data.source = "stdlib"
    cfg.data.align = 1  # attention needs no padding between documents
    cfg.optim.final_fraction = 0.1
    cfg.optim.weight_decay = 0.1  # on matrices, and on the tables of tokens and positions
    cfg.optim.beta2 = 0.95
    if size == "smoke":
        cfg.train.steps = 400
    if size == "124m_10b":
        _recipe(cfg)
    return common.finish(cfg, fields)


def _recipe(cfg: ml_collections.ConfigDict) -> None:
    cfg.model.compute_dtype = "bfloat16"
    cfg.model.remat = "dots"
    cfg.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "model": 1})
    cfg.train.batch_size = 512  # rows of 1,024 tokens: 524,288 per step
    cfg.train.grad_accum, cfg.train.device_rows = 1, 0  # 128 rows per card on four H200
    cfg.train.steps, cfg.train.tokens = 19_073, 0
    cfg.train.eval_every = 500
    cfg.train.save_every = 1000
    cfg.train.keep_every = 2000  # checkpoints that `python -m eval` can score afterwards
    cfg.optim.learning_rate = 6e-4
    cfg.optim.warmup_steps = 715
