"""Synthetic tasks with exact answers, for every block kind, trained by the ordinary trainer.

    python launch.py --config configs/synthetic.py:parity,model=hope,steps=600,lr=0.01
        2 to 4 minutes on one core. All strings of Parity are right to length 100, twice the trained
        length; ``model=transformer`` has none of 51 to 100 (docs/proof/formal-quick.md).
    python launch.py --config configs/synthetic.py:mqar,pairs=4,vocab=128,fill=zero,steps=900,lr=.01
        4 minutes on one core. `hope` recalls 90 to 100 %, by seed (docs/proof/mqar-quick.md).

The argument is a task, then fields: of the run (`FIELDS`), or of the task itself (`pairs`,
`tokens`, `vocab`, ...; nested_jax/data/synthetic lists them). Formal languages are trained on
lengths up to 50 and scored on those (Bin 0), on 51-100 (Bin 1), and by length beyond. The
accuracies are in metrics.jsonl and summary.json under SPEC/accuracy.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from configs import common

LANGUAGES = ("parity", "aa", "abab", "anbn", "anbncn", "shuffle2", "shuffle2_nested")
LONGER = ((51, 100), (101, 200))  # lengths of strings that are never trained on
# Rows of the tasks that are no languages, with the fields that a short name sets.
TASKS: dict[str, dict[str, Any]] = {
    "mqar": {"tokens": 64, "pairs": 4, "vocab": 8192},
    "induction": {"tokens": 64, "vocab": 16},
    "copy": {"count": 16, "vocab": 16},
    "needle": {"tokens": 128, "vocab": 256},
    "in_context_recall": {"tokens": 128, "vocab": 16},
    "noisy_recall": {"tokens": 128, "vocab": 32},
    "fuzzy_recall": {"tokens": 128, "vocab": 16},
    "selective_copy": {"tokens": 256, "vocab": 16},
    "compression": {"tokens": 32, "vocab": 16},
    "memorization": {"tokens": 32, "vocab": 256},
}
FIELDS = {
    "model": "model.block",
    "width": "model.dim",
    "layers": "model.layers",
    "heads": "model.heads",
    "hidden": "model.mlp_hidden",
    "lstm_hidden": "model.lstm_hidden",
    "rate": "model.memory.max_rate",
    "chunk": "model.memory.chunk",
    "generator_chunk": "model.memory.generator_chunk",
    "frozen": "model.memory.frozen",
    "steps": "train.steps",
    "batch": "train.batch_size",
    "lr": "optim.learning_rate",
    "seed": "seed",
    "rows": "data.task.rows",
    "test_rows": "data.valid_rows",
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    task, settings, fields = parse(arg)
    cfg = common.base("test")
    cfg.model = ml_collections.ConfigDict(model_of(fields.get("model.block", "hope"), task))
    cfg.data.source = "synthetic"
    cfg.data.task = ml_collections.ConfigDict()
    cfg.data.task.train, cfg.data.task.tests = specs(task, settings)
    cfg.data.valid_rows = 512  # test rows of each spec
    cfg.train.steps = 500
    cfg.train.batch_size = 32  # rows per step
    cfg.optim.learning_rate = 3e-3  # peak
    cfg.optim.final_fraction = 0.0  # cosine to 0, as Zoology and MAD
    cfg.mesh = ml_collections.ConfigDict({"data": -1})
    common.set_fields(cfg, fields)
    steps, memory = cfg.train.steps, cfg.model.memory
    cfg.optim.warmup_steps = max(1, steps // 20)
    cfg.train.eval_every = max(1, steps // 2)
    cfg.train.save_every = 500
    cfg.train.log_every = max(1, steps // 40)
    cfg.data.seq_len = round_up(longest(task, settings), memory.chunk, memory.generator_chunk)
    symbols = settings.get("vocab", 16)
    cfg.model.vocab_size = symbols  # of embedding and head
    cfg.model.size = f"width {cfg.model.dim}"  # for logs and reports
    return cfg.lock()


def parse(arg: str | None) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the task, the settings of the task, and the fields of the run.

    Raises:
      ValueError: an unknown task or field, with the known ones.
    """
    name, *parts = [part.strip() for part in (arg or "parity").split(",")]
    if name not in LANGUAGES and name not in TASKS:
        known = ", ".join((*LANGUAGES, *TASKS))
        raise ValueError(f"config argument {name!r}: wants a task first, one of {known}")
    settings, fields = dict(TASKS.get(name, {})), {}
    for part in parts:
        field, equals, text = part.partition("=")
        if not equals:
            raise ValueError(f"config argument {part!r}: wants FIELD=VALUE")
        if field in FIELDS:
            fields[FIELDS[field]] = common.number(text)
        elif name in TASKS:
            value = common.number(text)
            whole = 0 if field in ("tokens", "count", "gap", "vocab") else None
            common.check_number(field, value, settings.get(field, whole))
            settings[field] = value  # the task knows its fields, and refuses others
        else:
            raise ValueError(f"config argument {part!r}: known: {', '.join(FIELDS)}")
    return name, settings, fields


def specs(task: str, settings: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the specs that are trained on, and those that are scored."""
    if task in LANGUAGES:
        trained = f"formal,language={task}"
        longer = (f"{trained},min_length={low},max_length={high}" for low, high in LONGER)
        return (trained,), (trained, *longer)
    spec = ",".join([task, *(f"{name}={value}" for name, value in settings.items())])
    return (spec,), (spec,)


def longest(task: str, settings: dict[str, Any]) -> int:
    """Return the tokens of a training row, or a few more."""
    if task in LANGUAGES:
        return 50
    return settings.get("tokens", 0) + 2 * settings.get("count", 0) + settings.get("gap", 0)


def round_up(tokens: int, *multiples: int) -> int:
    step = max(1, *multiples)  # memory.chunk and memory.generator_chunk divide one another
    return -(-tokens // step) * step


def model_of(block: str, task: str) -> dict[str, Any]:
    """Return a small model of a block kind, with the memory that the tasks want.

    Negative eigenvalues (write rates up to 2) are what state tracking needs of a linear memory
    (arXiv 2411.12537). DeltaNet keeps the published range, up to 1: it is a control.
    """
    memory: dict[str, Any] = {"chunk": 1, "generator_chunk": 1}
    if block == "hope":
        memory = {**common.HOPE_MEMORY, "chunk": 1 if task in LANGUAGES else 16}
    elif block == "gated_deltanet":
        memory["max_rate"] = 2.0
    elif block == "titans_lmm":
        memory = {"chunk": 16, "generator_chunk": 16, "inner_lr": 0.1}
    return {
        "block": block,
        "dim": 32 if task in LANGUAGES else 64,
        "layers": 2,
        "heads": 2 if task in LANGUAGES else 1,  # Zoology recalls with one head
        "mlp_hidden": 64,
        "max_len": 512,
        "answers": "last" if task == "compression" else "each",
        "memory": memory,
        "cms": {"periods": (16,), "fast_layers": 0},  # one level, not written: an MLP
    }
