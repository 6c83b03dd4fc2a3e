"""Recall at any length: ``python -m eval recall --checkpoint runs/NAME``.

The checkpoint is one of configs/synthetic.py. Its task (the last of data.task.train) is scored on
test rows of 1, 2, 4 and 8 times the tokens that it was trained on, or of --lengths. accuracy: rows
with every answer right, with Wilson's 95 % interval; token: answers that are right; loss: nats an
answer. Answers are read as in training, with the inner loop where the run has one.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from eval.core import plots
from eval.core.cli import Findings, Task
from eval.core.flags import flag, parse_lengths
from eval.core.items import ASKED, item_hash
from eval.core.stats import wilson
from eval.core.subject import Subject
from nested_jax.data.synthetic.rows import SyntheticSource, task_of
from nested_jax.data.synthetic.task import Task as Synthetic
from nested_jax.errors import require
from nested_jax.sharding import to_host
from nested_jax.train.task_scores import answer
from nested_jax.types import Batch

FACTORS = (1, 2, 4, 8)  # times the training length


def evaluate(subject: Subject, flags: argparse.Namespace) -> Findings:
    samples = flags.max_samples or flags.samples
    base = trained_task(subject, flags.spec)
    trained = base.length
    lengths = (
        parse_lengths(flags.lengths, "--lengths")
        if flags.lengths
        else [f * trained for f in FACTORS]
    )
    tasks = {f"{n} tokens": resized(base, n, subject) for n in lengths}
    metrics: dict[str, dict[str, Any]] = {}
    items: list[dict[str, Any]] = []
    for group, task in tasks.items():
        rows = answered(subject, task, samples, flags.seed)
        metrics[group] = {"times": task.length / trained, **summarize(rows, task)}
        items += [{"id": f"{group}/{i}", "group": group, **row} for i, row in enumerate(rows)]
    return Findings(metrics, items)


def trained_task(subject: Subject, spec: str) -> Synthetic:
    """Return the task of a spec, or the last one that the run was trained on.

    Raises:
      ValueError: no spec, and a run of text; a task whose rows have no stated length.
    """
    known = subject.cfg.data.task.train
    wanted = "wants a checkpoint of configs/synthetic.py, or a task's --spec"
    require(bool(spec or known), "--checkpoint", subject.name, wanted)
    task = task_of(spec or known[-1])
    sized = "tokens" in {field.name for field in dataclasses.fields(task)}
    require(sized, "--spec", spec or known[-1], "wants a task with tokens, as mqar or needle")
    symbols = subject.cfg.model.vocab_size
    require(task.vocab_size <= symbols, "--spec", spec, f"wants at most {symbols} symbols")
    return task


def resized(task: Synthetic, tokens: int, subject: Subject) -> Synthetic:
    """Return the task with rows of so many tokens.

    Raises:
      ValueError: fewer than it needs, or more than the model can hold.
    """
    subject.scorer.check(tokens)
    changes: dict[str, Any] = {"tokens": tokens}
    return dataclasses.replace(task, **changes)


def answered(subject: Subject, task: Synthetic, samples: int, seed: int) -> list[dict[str, Any]]:
    """Return what is kept of each test row: answers that are right, and their nats."""
    cfg, reader = subject.cfg, subject.model_reader
    width = -(-task.length // cfg.chunk) * cfg.chunk
    source = SyntheticSource(task, cfg.data.task.seed + seed, width, samples, "test")
    size = subject.scorer.rows(width)
    step = jax.jit(partial(answer, reader.model, cfg=cfg, symbols=task.vocab_size))
    rows = []
    for first in range(0, samples, size):
        batch, used = source.empty(size), min(size, samples - first)
        for place in range(used):
            source.fill(batch, place, first + place)
        with jax.set_mesh(reader.mesh):
            placed = Batch(**dict(zip(batch, reader.put(*batch.values()), strict=True)))
            found = to_host(step(reader.params, placed))
        for i in range(used):
            asked = batch["weights_BT"][i] > 0
            right = found.predictions_BT[i][asked] == batch["targets_BT"][i][asked]
            nats = float(found.loss_BT[i][asked].mean())
            parts = (batch["tokens_BT"][i], batch["targets_BT"][i], batch["weights_BT"][i])
            rows.append(
                {
                    "correct": bool(right.all()),
                    "token": float(right.mean()),
                    "loss": nats,
                    ASKED: item_hash(*(part[: task.length].tolist() for part in parts)),
                }
            )
    return rows


def summarize(rows: Sequence[dict[str, Any]], task: Synthetic) -> dict[str, Any]:
    hits, count = sum(row["correct"] for row in rows), len(rows)
    return {
        "accuracy": hits / count,
        "accuracy_interval": wilson(hits, count),
        "token": sum(row["token"] for row in rows) / count,
        "loss": sum(row["loss"] for row in rows) / count,
        "chance": task.chance,
        "n": count,
    }


def draw(folder: Path, found: Findings) -> list[Path]:
    lengths = [int(group.split()[0]) for group in found.metrics]
    groups = list(found.metrics.values())
    series = {
        "all answers of a row": (lengths, [g["accuracy"] for g in groups]),
        "chance": (lengths, [g["chance"] for g in groups]),
    }
    title = f"Recall, trained on {lengths[0] / groups[0]['times']:.0f} tokens"
    path = folder / "recall.png"
    return [plots.lines(path, series, title=title, x="tokens", y="accuracy", log_x=True)]


FLAGS = (
    flag("--lengths", "", "tokens, as in 128,512 (default: 1x to 8x)"),
    flag("--spec", "", "a task, as in needle,tokens=128 (default: its)"),
    flag("--samples", 512, "rows of each length", least=1),
)
HELP = "synthetic recall at 1, 2, 4 and 8 times the training length"
TASK = Task("recall", HELP, __doc__, FLAGS, evaluate, draw, memorizes=False)
