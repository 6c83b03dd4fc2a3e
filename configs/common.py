"""What the experiments share: sizes, and the form of their argument.

An argument is a size, or a comma-separated list of a size and fields: ``smoke``,
``size=mid,seq=4096``, ``smoke,steps=50,block=hope``.
"""

from __future__ import annotations

from typing import Any

import ml_collections

SIZES: dict[str, dict[str, Any]] = {
    # test: seconds on one core; every shape differs, so that swapped axes show.
    "test": {"dim": 32, "layers": 3, "heads": 2, "mlp_hidden": 96, "vocab_size": 1024},
    # smoke: minutes on two cores.
    "smoke": {"dim": 192, "layers": 4, "heads": 4, "vocab_size": 2048},
    # text: what writing is worth on real text, quarters of an hour on one core.
    "text": {"dim": 96, "layers": 3, "heads": 4, "mlp_hidden": 192, "vocab_size": 512},
    # medium: what a memory holds after 30 M tokens, hours on one core; 1.5 M parameters.
    "medium": {"dim": 128, "layers": 4, "heads": 4, "mlp_hidden": 192, "vocab_size": 4096},
    "char": {"dim": 256, "layers": 1, "heads": 4, "mlp_hidden": 96, "vocab_size": 512},  # 1.2 M
    "pilot": {"dim": 768, "layers": 12, "heads": 12, "vocab_size": 32_000},  # 138 M, in pilot.py
    "mid_smoke": {"dim": 512, "layers": 12, "heads": 8, "vocab_size": 8192},  # 55 M, two GPUs
    "mid": {"dim": 1536, "layers": 18, "heads": 16, "vocab_size": 32_000},  # 729 M
    "target": {"dim": 2048, "layers": 18, "heads": 16, "vocab_size": 32_000},  # 1.27 B
}
SMALL = ("test", "smoke", "text", "char")  # sizes whose text is the embedded one

# Tokens per row, rows per step (half a million tokens), tokens of the run, peak learning rate, and
# the most rows that one GPU reads at once: docs/h200.md has the plans that they come from.
RECIPES: dict[str, tuple[int, int, int, float, int]] = {
    "pilot": (2048, 256, 3_000_000_000, 1e-3, 32),
    "mid": (4096, 128, 30_000_000_000, 6e-4, 4),
    "target": (8192, 64, 100_000_000_000, 4e-4, 1),
}
MIXTURE = "data/full/mixture.json"  # of `python -m nested_jax.data full --out data/full`

# Fields that an argument may set, and where they live.
FIELDS = {
    "block": "model.block",
    "window": "model.window",
    "seq": "data.seq_len",
    "source": "data.source",
    "steps": "train.steps",
    "tokens": "train.tokens",
    "batch": "train.batch_size",
    "lr": "optim.learning_rate",
    "chunk": "teach.chunk",
    "meta": "teach.meta_gradient",
    "seed": "seed",
}


# A memory in which `hope` recalls and tracks states: delta rates of the order of 1 for the memory,
# generators written at every 16th token and at a fiftieth of its pace. Written at every token with
# the same rates, parity is not learned (gradient norms of 100 to 7,000).
HOPE_MEMORY: dict[str, Any] = {
    "rule": "dgd",
    "objective": "dot",
    "momentum": False,
    "max_rate": 2.0,
    "inner_lr": 1.0,
    "chunk": 16,
    "generator_chunk": 16,
    "generator_pace": 0.02,
    "generator_inputs": "own",
}


def parse_arg(
    arg: str | None,
    default_size: str,
    known: dict[str, str] = FIELDS,
    sizes: tuple[str, ...] = tuple(SIZES),
) -> tuple[str, dict[str, Any]]:
    """Return the size, and the fields that the argument sets; `known` says where they live.

    Raises:
      ValueError: an unknown size or field, with the known ones.
    """
    size, fields = default_size, {}
    for part in (arg or "").split(","):
        name, equals, text = part.strip().partition("=")
        if not name:
            continue
        if not equals:
            name, text = "size", name
        if name == "size":
            size = text
        elif name in known:
            fields[known[name]] = number(text)
        else:
            raise ValueError(f"config argument {part!r}: known: size, {', '.join(known)}")
    if size not in sizes:
        raise ValueError(f"config argument size={size!r}: known sizes: {', '.join(sizes)}")
    return size, fields


def number(text: str) -> bool | int | float | str:
    """Return the value of a field's text: True or False, a number, or the text itself."""
    if text in ("True", "False"):
        return text == "True"
    if text.lstrip("-").isdigit():
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def base(size: str) -> ml_collections.ConfigDict:
    """Return the blocks that every experiment has, at one size."""
    cfg = ml_collections.ConfigDict()
    cfg.seed = 0  # parameters, data order, sampling
    cfg.model = ml_collections.ConfigDict(SIZES[size])
    cfg.model.size = size  # for logs and reports
    cfg.teach = ml_collections.ConfigDict()
    cfg.data = ml_collections.ConfigDict()
    cfg.optim = ml_collections.ConfigDict()
    cfg.train = ml_collections.ConfigDict()
    cfg.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "model": 1})
    cfg.data.source = "stdlib"  # the embedded text
    cfg.data.vocab_size = SIZES[size]["vocab_size"]  # of the tokenizer that is trained for it
    {"test": _test, "smoke": _smoke, "text": _text, "medium": _medium}.get(size, _large)(cfg)
    return cfg


def _test(cfg: ml_collections.ConfigDict) -> None:
    cfg.data.seq_len = 64  # tokens per row
    cfg.data.valid_rows = 8  # rows of the held-out set
    cfg.train.steps = 12  # optimizer steps
    cfg.train.batch_size = 8  # rows per step
    cfg.train.eval_every = 6  # steps
    cfg.train.save_every = 4  # steps
    cfg.train.log_every = 1  # steps
    cfg.optim.learning_rate = 1e-3  # peak
    cfg.optim.warmup_steps = 3  # steps


def _smoke(cfg: ml_collections.ConfigDict) -> None:
    cfg.data.seq_len = 512
    cfg.data.valid_rows = 64
    cfg.train.steps = 120
    cfg.train.batch_size = 8
    cfg.train.eval_every = 60
    cfg.train.save_every = 60
    cfg.train.log_every = 10
    cfg.optim.learning_rate = 4e-3
    cfg.optim.warmup_steps = 20


def _text(cfg: ml_collections.ConfigDict) -> None:
    cfg.data.seq_len = 1024
    cfg.data.valid_rows = 64
    cfg.train.steps = 1500
    cfg.train.batch_size = 4
    cfg.train.eval_every = 500
    cfg.train.save_every = 500
    cfg.train.log_every = 20
    cfg.optim.learning_rate = 3e-3
    cfg.optim.warmup_steps = 50


def _medium(cfg: ml_collections.ConfigDict) -> None:
    _text(cfg)
    cfg.data.seq_len = 2048
    cfg.train.batch_size = 8
    cfg.train.steps = 1830  # 30 M tokens


def _large(cfg: ml_collections.ConfigDict) -> None:
    cfg.model.compute_dtype = "bfloat16"  # matrix products; state and losses stay float32
    cfg.model.remat = "dots"  # recompute all but matrix products
    cfg.data.seq_len = 2048
    cfg.data.align = 128  # tokens at whose multiples documents start, for every block kind
    cfg.data.valid_rows = 512
    cfg.train.steps = 200
    cfg.train.batch_size = 32
    cfg.train.eval_every = 100
    cfg.train.save_every = 100
    cfg.train.log_every = 20
    cfg.optim.learning_rate = 1e-3
    cfg.optim.warmup_steps = 20
    if cfg.model.size in RECIPES:
        _recipe(cfg, *RECIPES[cfg.model.size])


def _recipe(
    cfg: ml_collections.ConfigDict, seq_len: int, rows: int, tokens: int, rate: float, at_once: int
) -> None:
    cfg.data.source = MIXTURE
    cfg.data.seq_len = seq_len
    cfg.data.align = gpu_chunk(cfg.model.size)  # padding between documents: half of it, on average
    cfg.train.steps = 0  # those that read train.tokens
    cfg.train.tokens = tokens
    cfg.train.batch_size = rows
    # Fast weights are kept per row, so few rows are read at once.
    cfg.train.device_rows = at_once
    cfg.train.eval_every = 500
    cfg.train.save_every = 1000
    cfg.optim.learning_rate = rate
    cfg.optim.warmup_steps = 500


def gpu_chunk(size: str) -> int:
    """Return the tokens of a chunk that keep a GPU busy: a [D, F] weight is read once for each."""
    return {"target": 512, "mid_smoke": 128}.get(size, 256)


def gpu_periods(cfg: ml_collections.ConfigDict) -> tuple[int, ...]:
    """Return periods that double from the chunk to half a row, four at most.

    They are fast, mid, slow and ultra. A level whose period is the row would be
    written where nothing reads it any more.
    """
    chunk = gpu_chunk(cfg.model.size)
    return tuple(chunk << k for k in range(4) if chunk << (k + 1) <= cfg.data.seq_len)


def finish(cfg: ml_collections.ConfigDict, fields: dict[str, Any]) -> ml_collections.ConfigDict:
    """Set the argument's fields, and lock the result; steps take the place of tokens."""
    if "train.steps" in fields or "train.tokens" in fields:
        none = "train.tokens" if "train.steps" in fields else "train.steps"
        fields = {none: 0} | fields
    set_fields(cfg, fields)
    return cfg.lock()


def set_fields(cfg: ml_collections.ConfigDict, fields: dict[str, Any]) -> None:
    """Set fields by their dotted names.

    Raises:
      ValueError: something else in the place of a number; config files calculate with these.
    """
    with cfg.unlocked(), cfg.ignore_type():
        for name, value in fields.items():
            *blocks, leaf = name.split(".")
            target = cfg
            for block in blocks:
                target = target[block]
            check_number(name, value, target.get(leaf))
            target[leaf] = value


def check_number(name: str, value: Any, before: Any) -> None:
    """Raise unless a number takes the place of a number, and a whole one that of a whole one."""
    wanted = {int: (int,), float: (int, float)}.get(type(before))
    if wanted and type(value) not in wanted:
        raise ValueError(f"{name}={value!r}: wants a number like {before!r}")


def teach_on(cfg: ml_collections.ConfigDict, chunk: int, periods: tuple[int, ...]) -> None:
    """Switch the inner loop on: chunk and CMS periods in tokens."""
    cfg.model.cms = ml_collections.ConfigDict()
    cfg.model.cms.periods = periods  # tokens between the writes of each level
    cfg.teach.mode = "exact"  # the gradient of the chunk's own loss
    cfg.teach.chunk = chunk  # tokens scored, then learned from
    cfg.teach.meta_gradient = "through"  # the outer gradient passes through the writes
