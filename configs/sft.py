"""Supervised fine-tuning: a model that was trained before learns to answer.

    python launch.py --config configs/sft.py:tulu,init=runs/x,source=data/tulu3 --workdir runs/tulu
    python launch.py --config configs/sft.py:gsm8k,init=runs/tulu,source=data/gsm8k

The source is JSON lines with ``messages`` or ``question`` and ``answer``: a file, or a folder of
files named after splits. Model and tokenizer are those of `init`. Examples are packed into rows
that keep them apart, and none is cut, unless it is longer than a row. ``loss=all`` learns the
questions too, as the first domain-token experiment did.

`tulu`: 1 epoch, about 32 conversations per step. `gsm8k`: 3 epochs, about 26 problems per step; a
model of 124 M parameters is expected to solve 1.5 to 3 % of the test set. Rates of 1e-4 to 3e-4
(``lr=``) are worth a second run. `test`: seconds on one core, beside compilation.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from configs import common

FIELDS = {
    "init": "train.init_from",
    "source": "data.source",
    "epochs": "train.epochs",
    "loss": "data.loss",
    "eos": "data.chat.eos",
    "template": "data.chat.template",
    "annotations": "data.chat.annotations",
    "condition": "data.chat.condition",
    "rule": "data.chat.rule",
    "limit": "data.chat.limit",
    "seq": "data.seq_len",
    "batch": "train.batch_size",
    "lr": "optim.learning_rate",
    "seed": "seed",
}
STAGES: dict[str, dict[str, Any]] = {
    "tulu": {"data.source": "data/tulu3", "optim.warmup_share": 0.05},
    "gsm8k": {
        "data.source": "data/gsm8k",
        "data.seq_len": 512,  # no problem of GSM8K is longer
        "train.batch_size": 8,
        "train.epochs": 3.0,
        "optim.warmup_share": 0.1,
    },
    "test": {
        "data.seq_len": 64,
        "data.valid_rows": 8,
        "train.batch_size": 4,
        "train.log_every": 1,
        "optim.learning_rate": 1e-3,
    },
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    stage, fields = common.parse_arg(arg, "tulu", FIELDS, tuple(STAGES))
    cfg = ml_collections.ConfigDict()
    cfg.seed = 42
    cfg.model = ml_collections.ConfigDict()  # that of train.init_from
    cfg.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "model": 1})
    cfg.data = ml_collections.ConfigDict()
    cfg.data.source = ""
    cfg.data.mode = "examples"  # rows of whole conversations
    cfg.data.loss = "assistant"  # what an assistant wrote, and the end of it
    cfg.data.seq_len = 1024
    cfg.data.align = 1  # a model with memories wants a multiple of its chunks
    cfg.data.valid_rows = 256
    cfg.data.chat = ml_collections.ConfigDict()
    cfg.data.chat.template = "turns"
    cfg.data.chat.eos = "end"
    cfg.data.chat.annotations = "keep"
    cfg.data.chat.condition = "baseline"
    cfg.data.chat.rule = "bounded"
    cfg.data.chat.limit = 0
    cfg.optim = ml_collections.ConfigDict()
    cfg.optim.learning_rate = 2e-5
    cfg.optim.schedule = "linear"
    cfg.optim.final_fraction = 0.0
    cfg.optim.weight_decay = 0.01
    cfg.optim.beta2 = 0.999
    cfg.train = ml_collections.ConfigDict()
    cfg.train.init_from = ""
    cfg.train.init_model = "same"
    cfg.train.epochs = 1.0
    cfg.train.batch_size = 16
    cfg.train.eval_every = 250
    cfg.train.save_every = 250
    cfg.train.log_every = 10
    common.set_fields(cfg, {**STAGES[stage], **fields})
    cfg.data.chat.tokenizer = cfg.train.init_from
    return cfg.lock()
