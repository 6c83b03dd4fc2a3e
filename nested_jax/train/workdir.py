"""What a workdir is: the folder of one run, which one start at a time may use.

It holds ``config.json``, ``metrics.jsonl``, ``starts.jsonl``, ``checkpoints/STEP``, the tokenizer
of its text, and ``summary.json`` when it has ended. docs/guide.md says what it promises.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import jax

from nested_jax.errors import HeldError
from nested_jax.files import LOCK, describe, hold_folder, owner_of
from nested_jax.sharding import agree
from nested_jax.storage import as_path, hold_bucket, scheme, size_of

CHECKPOINTS = "checkpoints"
CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
STARTS = "starts.jsonl"  # one line per start: when, where, mesh, versions, what it needs
TOKENIZER = "tokenizer.model"
COMMITTED = "commit_success.txt"  # of a checkpoint in a bucket: Orbax writes it last
RECORD = (CONFIG, METRICS, STARTS, SUMMARY, TOKENIZER, "tensorboard", "profile", "wandb")


# --- what lies where -----------------------------------------------------------------------------


def locate(path: str | Path) -> tuple[Path, str]:
    """Return (workdir, name of the checkpoint, "" for its newest) that `path` stands for.

    Args:
      path: a workdir, its ``checkpoints`` folder, or one ``checkpoints/STEP`` of it; relative to
        wherever this process runs, and also by a symbolic link; or in a bucket.
    Raises:
      ValueError: a scheme that checkpoints are not read from.
    """
    remote = as_path(path, "checkpoint") if scheme(path) else None
    given = remote or Path(os.path.abspath(path))
    for place in (given, remote or Path(os.path.realpath(path))):
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
    found = [p for p in folder.iterdir() if p.name.isdigit() and p.is_dir()]
    if scheme(folder):  # a bucket has no renames
        found = [p for p in found if (p / COMMITTED).exists()]
    return sorted(int(p.name) for p in found)


def free_name(folder: Path, name: str) -> Path:
    tries = (folder / (name + suffix) for suffix in ["", *(f".{i}" for i in range(1, 1000))])
    return next(path for path in tries if not path.exists())


class Deleter:
    """Deletes checkpoints so that one operation takes each from every reader.

    A folder is renamed to ``.STEP.deleted`` first; in a bucket, which has no renames, `COMMITTED`
    goes first. What a kill leaves is no checkpoint, and goes at the next start. It stands before
    the deleter of an Orbax manager, which removes file by file; Orbax's `todelete_subdir` renames
    and never deletes, and not in a bucket.

    Args:
      folder: of the checkpoints.
      inner: Orbax's deleter.
    """

    def __init__(self, folder: Path, inner: Any) -> None:
        self.folder, self.inner = folder, inner
        # In a bucket Orbax removes what has no COMMITTED by itself.
        if jax.process_index() == 0 and not scheme(folder):
            for left in folder.glob(".*.deleted*"):
                shutil.rmtree(left)

    def delete_steps(self, steps: Sequence[int]) -> None:
        for step in steps:
            self.delete(step)

    def delete(self, step: int) -> None:
        if jax.process_index() > 0:
            return
        whole = self.folder / str(step)
        if scheme(self.folder):
            (whole / COMMITTED).unlink(missing_ok=True)
            self.inner.delete(step)
        elif whole.exists():
            shutil.rmtree(whole.rename(free_name(self.folder, f".{step}.deleted")))

    def close(self) -> None:
        self.inner.close()


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
                hold_it = hold_bucket if scheme(workdir) else hold_folder
                stack.enter_context(hold_it(workdir))
            except HeldError as error:
                refused = error
            except OSError as error:
                refused = ValueError(
                    f"workdir={str(workdir)!r}: cannot be made: {error.strerror or error}"
                )
        if not agree(refused is None):
            raise refused or HeldError(f"{workdir}: process 0 of this run could not take it")
        yield


def set_aside_record(workdir: Path, say: Callable[[str], None]) -> None:
    """Move the record of a run whose checkpoints are gone to a dated folder of the workdir.

    A run that starts anew would write over it. Process 0 does it; the caller holds the workdir.
    """
    metrics = workdir / METRICS
    lines = metrics.is_file() and size_of(metrics) > 0
    if saved_steps(workdir / CHECKPOINTS) or not (lines or (workdir / SUMMARY).exists()):
        return
    aside = new_aside(workdir)
    moved = [name for name in RECORD if (workdir / name).exists()]
    for name in moved:
        (workdir / name).rename(aside / name)
    say(
        f"{workdir} has the record of a run and no checkpoint to go on from: "
        f"{', '.join(moved)} moved to {aside}; this run starts anew"
    )


def new_aside(workdir: Path) -> Path:
    """Make a dated folder for what is set aside."""
    aside = free_name(workdir, f"set-aside-{datetime.now():%Y-%m-%dT%H-%M-%S}")
    aside.mkdir()
    return aside


def keep_lines(workdir: Path, step: int, say: Callable[[str], None]) -> None:
    """Copy the log to a dated folder, before a run that goes back to `step` cuts it."""
    aside = new_aside(workdir)
    (aside / METRICS).write_bytes((workdir / METRICS).read_bytes())
    say(f"{METRICS} goes back to step {step}; the lines after it are kept in {aside}")
