"""Fields of a run that others give: its model from ``train.init_from``, its steps from epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nested_jax.config import Config, ModelConfig
from nested_jax.data.pipeline import open_rows
from nested_jax.errors import require
from nested_jax.storage import as_path
from nested_jax.train.checkpoint import find_checkpoint
from nested_jax.train.workdir import CHECKPOINTS, saved_steps


def resolve(cfg: Config, workdir: Path, say: Callable[[str], None]) -> Config:
    """Return the configuration with ``model``, ``train.steps`` and ``optim.warmup_steps`` known.

    Raises:
      ValueError: no checkpoint at ``train.init_from``; a field of the model that is given beside
        ``train.init_model="same"``; data that are missing.
    """
    if cfg.train.init_model == "same":
        model = same_model(cfg, workdir)
        cfg = replace(cfg, model=model)
    if cfg.train.epochs > 0:
        rows = sum(len(source) for source in open_rows(cfg.data, cfg.align)[0])
        steps = math.ceil(cfg.train.epochs * rows / cfg.train.batch_size)
        cfg = replace(cfg, train=replace(cfg.train, steps=max(steps, 1)))
        say(f"train.epochs={cfg.train.epochs:g}: {steps:,} steps over {rows:,} rows")
    if cfg.optim.warmup_share > 0:
        warmup = round(cfg.optim.warmup_share * cfg.train.steps)
        cfg = replace(cfg, optim=replace(cfg.optim, warmup_steps=warmup))
    return cfg


def same_model(cfg: Config, workdir: Path) -> ModelConfig:
    """Return the model of the run's own checkpoints, else that of ``train.init_from``."""
    begun = saved_steps(workdir / CHECKPOINTS)
    source = workdir if begun else as_path(cfg.train.init_from, "train.init_from")
    require(source.is_dir(), "train.init_from", str(source), "wants the folder of a run")
    model = find_checkpoint(source).cfg.model
    want = "takes the model of train.init_from; leave every field of model out"
    require(cfg.model in (ModelConfig(), model), "train.init_model", "same", want)
    return model
