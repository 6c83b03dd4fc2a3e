"""The record of a run: metrics.jsonl, the counters behind it, summary.json, optional trackers."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nested_jax.config import Config
from nested_jax.config.schema import to_dict
from nested_jax.errors import require

Report = Callable[[str], None]
# Of these the value of the last step is logged; counts add up, the rest are means over tokens.
LAST = ("learning_rate", "bad_updates", "bad_updates_in_a_row")


class Summary(NamedTuple):
    """What a finished run leaves in summary.json."""

    step: int
    train_loss: float  # nats a token, mean since the log line before the last
    valid_loss: float  # nats a token, on the fixed held-out set
    valid_bits_per_byte: float | None  # None: synthetic tasks, which have no bytes
    parameters: int
    tokens: int  # targets trained on
    seconds: float  # of wall clock over all starts, with compilation, evaluation and saving
    tokens_per_s: float  # of training steps alone
    peak_memory_bytes: int  # of the fullest device, or of the process on CPU
    writes: dict[str, int]  # chunks written, by level
    versions: dict[str, str]
    device: str
    git_commit: str | None
    valid_text_sha256: str  # of the rows that are scored, see data/identity.py
    train_order_sha256: str  # of the rows that are trained on, in their order
    scores: dict[str, float]  # of the last evaluation beside the loss: tasks and evaluators


# --- files ---------------------------------------------------------------------------------------


class MetricsFile:
    """metrics.jsonl, a JSON object a line; every line is flushed as it is written.

    A checkpoint records how long the file was; a restart cuts it there, so lines of steps that are
    taken again, and one that a kill left half written, are neither doubled nor kept.
    """

    def __init__(self, path: Path, size: int, report: Report) -> None:
        found = path.stat().st_size if path.exists() else 0
        if found < size:
            report(f"{path} holds {found} bytes, the checkpoint knows {size}: lines are missing")
        self._file = open(path, "ab")  # noqa: SIM115  (open for the whole run)
        self._file.truncate(min(found, size))

    def write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(finite(line)).encode() + b"\n")
            self._file.flush()
        except OSError as error:  # Python does not say which file was full
            raise OSError(error.errno, error.strerror, self._file.name) from error

    def sync(self) -> int:
        """Put all lines on disk; return the length of the file in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self.sync()
        self._file.close()


def finite(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the line with null for what JSON cannot say: NaN and infinities."""
    bad = {k for k, v in line.items() if isinstance(v, float) and not math.isfinite(v)}
    return {name: None if name in bad else value for name, value in line.items()}


# --- counters ------------------------------------------------------------------------------------


def is_count(name: str) -> bool:
    """Whether a metric adds up over microbatches and steps (the others are means over tokens)."""
    return name == "tokens" or name.endswith(("/writes", "/blocked"))


@dataclass
class Meter:
    """What the host counts, over the run and since the last logged step. Travels in checkpoints."""

    totals: dict[str, float] = field(default_factory=dict)  # counts over the run
    window: dict[str, float] = field(default_factory=dict)  # counts, and means times tokens
    window_steps: int = 0
    train_loss: float | None = None  # of the last window
    valid: dict[str, float] = field(default_factory=dict)  # newest evaluation, with its step
    seconds: float = 0.0  # of wall clock, over all starts
    train_seconds: float = 0.0  # of them in training steps

    def add(self, metrics: Mapping[str, float]) -> None:
        """Take in the metrics of one step."""
        self.window_steps += 1
        for name, value in metrics.items():
            if is_count(name):
                self.totals[name] = self.totals.get(name, 0.0) + value
                self.window[name] = self.window.get(name, 0.0) + value
            elif name in LAST:
                self.window[name] = value
            else:
                weighted = value * metrics["tokens"]
                self.window[name] = self.window.get(name, 0.0) + weighted

    def flush(self) -> dict[str, float]:
        """Return the metrics since the last call, means taken, and start over."""
        tokens = max(self.window["tokens"], 1.0)
        line = {
            name: value if is_count(name) or name in LAST else value / tokens
            for name, value in self.window.items()
        }
        line["tokens_a_step"] = line.pop("tokens") / self.window_steps
        self.window, self.window_steps, self.train_loss = {}, 0, line["loss"]
        return line

    def by_level(self, what: str) -> dict[str, int]:
        """Return the run's total of ``teach/LEVEL/what`` for each level."""
        parts = {name.split("/")[1]: v for name, v in self.totals.items() if name.endswith(what)}
        return {level: int(value) for level, value in sorted(parts.items())}

    def state(self) -> dict[str, Any]:
        return asdict(self)


# --- trackers ------------------------------------------------------------------------------------


class Tracker(NamedTuple):
    """A service that draws curves: TensorBoard or Weights & Biases."""

    log: Callable[[Mapping[str, Any], int], None]
    close: Callable[[], None]


def check_trackers(cfg: Config) -> None:
    """Raise unless the packages of the chosen trackers are installed."""
    wanted = {"tensorboard": "tensorboardX", "wandb": "wandb"}
    for name, package in wanted.items():
        value = getattr(cfg.train, name)
        found = not value or importlib.util.find_spec(package) is not None
        require(found, f"train.{name}", value, f"wants {package}: pip install 'nested-jax[log]'")


def open_trackers(cfg: Config, workdir: Path, step: int) -> list[Tracker]:
    """Open the trackers of the config; a restart goes on after `step`."""
    openers = {"tensorboard": _tensorboard, "wandb": _wandb}
    chosen = [name for name in openers if getattr(cfg.train, name)]
    return [openers[name](cfg, workdir, step) for name in chosen]


def _tensorboard(cfg: Config, workdir: Path, step: int) -> Tracker:
    del cfg
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else None)

    def log(line: Mapping[str, Any], step: int) -> None:
        for name, value in line.items():
            if isinstance(value, (int, float)):
                writer.add_scalar(name, value, step)

    return Tracker(log, writer.close)


def _wandb(cfg: Config, workdir: Path, step: int) -> Tracker:
    import wandb

    run = wandb.init(
        project=cfg.train.wandb,
        name=workdir.name,
        id=workdir.name,
        dir=str(workdir),
        config=to_dict(cfg),
        resume="allow" if step else None,
    )

    def log(line: Mapping[str, Any], step: int) -> None:
        run.log(dict(line), step=step)

    return Tracker(log, run.finish)
