"""What a workdir is: the folder of one run, which one start at a time may use.

It holds ``config.json``, ``metrics.jsonl``, ``checkpoints/STEP``, the tokenizer of its text, and
``summary.json`` when it has ended. docs/guide.md says what it promises.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

import jax

from nested_jax.errors import HeldError
from nested_jax.files import LOCK, describe, hold_folder, owner_of
from nested_jax.sharding import agree

CHECKPOINTS = "checkpoints"
CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
TOKENIZER = "tokenizer.model"
RECORD = (CONFIG, METRICS, SUMMARY, TOKENIZER, "tensorboard", "profile", "wandb")


# --- what lies where -----------------------------------------------------------------------------


def locate(path: str | Path) -> tuple[Path, str]:
    """Return (workdir, name of the checkpoint, "" for its newest) that `path` stands for.

    Args:
      path: a workdir, its ``checkpoints`` folder, or one ``checkpoints/STEP`` of it; relative to
        wherever this process runs, and also by a symbolic link.
    """
    given = Path(os.path.abspath(path))
    for place in (given, Path(os.path.realpath(path))):
        if (place / CHECKPOINTS).is_dir():
            return place, ""
        if place.name == CHECKPOINTS:
            return place.parent, ""
        if place.parent.name == CHECKPOINTS:
            return place.parent.parent, place.name
    return given, ""


def saved_steps(folder: Path) -> list[int]:
    """Return the steps that have a complete checkpoint in a ``checkpoints`` folder, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir())


def free_name(folder: Path, name: str) -> Path:
    tries = (folder / (name + suffix) for suffix in ["", *(f".{i}" for i in range(1, 1000))])
    return next(path for path in tries if not path.exists())


# --- who uses it ---------------------------------------------------------------------------------


def check_free(workdir: Path) -> None:
    """Raise `HeldError` at once if another run uses the workdir; nothing is written."""
    if jax.process_count() > 1:
        return  # process 0 of this run may hold it by now
    owner = owner_of(workdir)
    if owner is not None:
        raise HeldError(f"{workdir} is in use by {describe(owner, workdir / LOCK)}")


@contextmanager
def hold_workdir(workdir: Path) -> Iterator[None]:
    """Make the workdir and hold its lock: process 0 for all processes of a run.

    Raises:
      HeldError: another run uses it; raised in every process.
      ValueError: it cannot be made.
    """
    with ExitStack() as stack:
        refused: Exception | None = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(hold_folder(workdir))
            except HeldError as error:
                refused = error
            except OSError as error:
                refused = ValueError(f"workdir={str(workdir)!r}: cannot be made: {error.strerror}")
        if not agree(refused is None):
            raise refused or HeldError(f"{workdir}: process 0 of this run could not take it")
        yield


def set_aside_record(workdir: Path, say: Callable[[str], None]) -> None:
    """Move the record of a run whose checkpoints are gone to a dated folder of the workdir.

    A run that starts anew would write over it. Process 0 does it; the caller holds the workdir.
    """
    metrics = workdir / METRICS
    lines = metrics.is_file() and metrics.stat().st_size > 0
    if saved_steps(workdir / CHECKPOINTS) or not (lines or (workdir / SUMMARY).exists()):
        return
    aside = free_name(workdir, f"set-aside-{datetime.now():%Y-%m-%dT%H-%M-%S}")
    aside.mkdir()
    moved = [name for name in RECORD if (workdir / name).exists()]
    for name in moved:
        (workdir / name).rename(aside / name)
    say(
        f"{workdir} has the record of a run and no checkpoint to go on from: "
        f"{', '.join(moved)} moved to {aside}; this run starts anew"
    )
