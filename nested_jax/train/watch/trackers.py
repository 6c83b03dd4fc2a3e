"""Services that draw curves of a run: TensorBoard and Weights & Biases, both optional."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nested_jax.config import Config
from nested_jax.config.schema import to_dict
from nested_jax.errors import require
from nested_jax.storage import scheme


class Tracker(NamedTuple):
    """A service that draws curves: TensorBoard or Weights & Biases."""

    log: Callable[[Mapping[str, Any], int], None]
    close: Callable[[], None]


def check_trackers(cfg: Config, workdir: Path) -> None:
    """Raise unless the packages of the chosen trackers are installed and can write here."""
    wanted = {"tensorboard": "tensorboardX", "wandb": "wandb"}
    events = "wants a workdir on this machine; its metrics.jsonl has the same numbers"
    fits = not cfg.train.tensorboard or not scheme(workdir)
    require(fits, "train.tensorboard", True, events)
    for name, package in wanted.items():
        value = getattr(cfg.train, name)
        found = not value or importlib.util.find_spec(package) is not None
        require(found, f"train.{name}", value, f"wants {package}: pip install 'nested-jax[log]'")


def open_trackers(cfg: Config, workdir: Path, step: int, about: Mapping[str, Any]) -> list[Tracker]:
    """Open the trackers of the config; a restart goes on after `step`.

    Args:
      about: of this start, see `train/watch/record.py`; ``run`` is the identity of the run.

    Raises:
      ValueError: one cannot be opened; what its package says.
    """
    openers = {"tensorboard": _tensorboard, "wandb": _wandb}
    opened = []
    for name in openers:
        value = getattr(cfg.train, name)
        if value:
            try:
                opened.append(openers[name](cfg, workdir, step, about))
            except Exception as error:  # whatever a service says: no network, no account
                said = str(error).strip().splitlines() or [type(error).__name__]
                raise ValueError(f"train.{name}={value!r}: cannot be opened: {said[0]}") from error
    return opened


def _tensorboard(cfg: Config, workdir: Path, step: int, about: Mapping[str, Any]) -> Tracker:
    del cfg
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else None)
    writer.add_text("start", json.dumps(about, indent=2), step)

    def log(line: Mapping[str, Any], step: int) -> None:
        for name, value in line.items():
            if isinstance(value, (int, float)):
                writer.add_scalar(name, value, step)

    return Tracker(log, writer.close)


def _wandb(cfg: Config, workdir: Path, step: int, about: Mapping[str, Any]) -> Tracker:
    import wandb

    run = wandb.init(
        project=cfg.train.wandb,
        name=workdir.name,
        id=about["run"],  # a name is no identity: another run of this name has another id
        dir=tempfile.gettempdir() if scheme(workdir) else str(workdir),
        config={**to_dict(cfg), "start": about},
        resume="allow" if step else None,
    )

    def log(line: Mapping[str, Any], step: int) -> None:
        run.log(dict(line), step=step)

    return Tracker(log, run.finish)
