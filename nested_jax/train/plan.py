"""A run, checked and laid out: everything that can be refused is refused here.

Nothing is allocated on a device and nothing is written, except the prepared data in their cache.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from nested_jax import machine
from nested_jax.config import Config
from nested_jax.data.pipeline import DatasetInfo, prepare
from nested_jax.data.synthetic import rows as synthetic
from nested_jax.errors import require
from nested_jax.optim import group_counts
from nested_jax.sharding import Rows, make_mesh, process_rows
from nested_jax.storage import Store, free_bytes, scheme
from nested_jax.train.layout import Layout, lay_out
from nested_jax.train.memory import check_lower_bound
from nested_jax.train.mirror import check_mirror
from nested_jax.train.watch.profile import check_profile
from nested_jax.train.watch.trackers import check_trackers
from nested_jax.train.workdir import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    SUMMARY,
    TOKENIZER,
    check_free,
)

WORTH_IT = 4  # passes over a text


@dataclass(frozen=True, eq=False)
class Plan(Layout):
    """What a run consists of, before it starts."""

    workdir: Path
    data: DatasetInfo
    rows: Rows  # this process's part of every batch


def make_plan(cfg: Config, workdir: Path, say: Callable[[str], None]) -> Plan:
    """Check a run, from the cheapest check to the dearest, and lay it out.

    Raises:
      HeldError: another process uses the workdir.
      ValueError: a mesh that does not fit the devices, the batch or a parameter; a workdir that
        cannot be written; missing packages; levels that no row is long enough to write; data that
        are missing or damaged; a vocabulary smaller than the tokenizer's; a state that no device
        of this machine can hold.
    """
    mesh = make_mesh(cfg.mesh)
    check_workdir(workdir)
    check_free(workdir)
    check_trackers(cfg, workdir)
    check_mirror(cfg, workdir)
    check_profile(cfg, workdir)
    check_periods(cfg)
    check_answers(cfg)
    layout = lay_out(cfg, mesh)
    check_lower_bound(layout)
    check_space(layout, workdir)
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    say(f"{machine.device_name()}, mesh {axes}, {jax.process_count()} process(es)")
    say(
        f"{cfg.model.block}: {layout.parameters:,} parameters, {layout.flops:.3g} FLOPs per step "
        f"of {cfg.train.batch_size} x {cfg.data.seq_len} tokens"
    )
    groups = group_counts(cfg.optim, layout.info)
    say("optimizer: " + ", ".join(f"{name} {count:,}" for name, count in groups.items()))
    data = prepare(cfg.data, say)
    require(
        cfg.model.vocab_size >= data.vocab_size,
        "model.vocab_size",
        cfg.model.vocab_size,
        f"wants at least the {data.vocab_size} symbols of "
        f"{data.tokenizer_path or 'the tasks, ' + ', '.join(cfg.data.task.scored)}",
    )
    say_repeats(layout.cfg, data, say)
    rows = process_rows(mesh, cfg.train.batch_size)
    return Plan(**vars(layout), workdir=workdir, data=data, rows=rows)


def say_repeats(cfg: Config, data: DatasetInfo, say: Callable[[str], None]) -> None:
    """Warn of text that is read more often than is worth it.

    Up to about four passes a text is worth nearly as much as new text (arXiv 2305.16264).
    """
    tokens = {name: splits.get("train", 0) for name, splits in data.tokens.items()}
    weights = data.weights or tokens
    read = cfg.train.steps * cfg.train.batch_size * cfg.data.seq_len
    total = sum(weights.values())
    passes = {name: read * weights[name] / total / tokens[name] for name in tokens if tokens[name]}
    name = max(passes, key=lambda name: passes[name], default="")
    if name and passes[name] > WORTH_IT:
        say(
            f"warning: {read:,} tokens are about {passes[name]:,.0f} passes over the "
            f"{tokens[name]:,} training tokens of {name!r} in data.source={cfg.data.source!r}; "
            f"what is read more than {WORTH_IT} times adds little"
        )


def check_workdir(workdir: Path) -> None:
    """Raise unless `workdir` can be made and written, as far as that shows without writing."""
    if scheme(workdir):
        check_bucket(workdir)
        return
    existing = workdir.absolute()
    while not existing.exists():
        existing = existing.parent
    require(existing.is_dir(), "workdir", str(workdir), f"{existing} is a file, wants a folder")
    writable = os.access(existing, os.W_OK | os.X_OK)
    require(writable, "workdir", str(workdir), f"{existing} cannot be written")
    for name in (CONFIG, METRICS, SUMMARY, TOKENIZER):
        require(not (workdir / name).is_dir(), "workdir", str(workdir), f"{name} is a folder")
    folder = workdir / CHECKPOINTS
    fine = folder.is_dir() or not folder.exists()
    require(fine, "workdir", str(workdir), f"{CHECKPOINTS} is a file, wants a folder")


def check_bucket(workdir: Path) -> None:
    """Raise unless a bucket can be listed: a wrong name or account shows here."""
    try:
        Store(workdir).files()
    except OSError as error:
        require(False, "workdir", str(workdir), f"cannot be read: {error}")


def check_space(layout: Layout, workdir: Path) -> None:
    """Raise unless the disk of the workdir has room for a checkpoint.

    A run that goes on has its checkpoints already, and needs room for one more of them too.
    """
    if scheme(workdir) or jax.process_index() > 0:
        return
    size = checkpoint_bytes(layout)
    free, human = free_bytes(workdir), machine.human_bytes
    kept = layout.cfg.train.keep_latest + 1
    want = (
        f"has {human(free)} free, wants {human(size)} for one checkpoint ({human(kept * size)} for "
        f"train.keep_latest={kept - 1} and the one that is being written)"
    )
    require(free >= size, "workdir", str(workdir), want)


def checkpoint_bytes(layout: Layout) -> int:
    """Return the bytes of the arrays of a checkpoint."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(layout.abstract))


def check_periods(cfg: Config) -> None:
    """Raise if a level that is to be written waits for more tokens than a row has."""
    if not (cfg.teaches and cfg.train.check_writes):
        return
    for level, period in enumerate(cfg.model.cms.periods):
        require(
            level not in taught_levels(cfg) or period <= cfg.data.seq_len,
            "model.cms.periods",
            cfg.model.cms.periods,
            f"level {level} is never written in rows of data.seq_len={cfg.data.seq_len} tokens; "
            "leave it out of teach.levels, or set train.check_writes=False",
        )


def check_answers(cfg: Config) -> None:
    """Raise unless the model answers from where its tasks want to be answered."""
    wanted = synthetic.reads(cfg.data.task) if cfg.data.is_synthetic else {"each"}
    require(
        wanted == {cfg.model.answers},
        "model.answers",
        cfg.model.answers,
        f"the tasks {', '.join(cfg.data.task.scored)} want {' and '.join(sorted(wanted))!r}",
    )


def taught_levels(cfg: Config) -> tuple[int, ...]:
    """Return the CMS levels that are to be written."""
    if not cfg.teaches:
        return ()
    known = tuple(range(len(cfg.model.cms.periods)))
    return known if cfg.teach.levels is None else cfg.teach.levels
