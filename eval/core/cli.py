"""The form that every command has. A task is scored on a checkpoint and leaves one result.

A module of `FOLDERS` with a `TASK` is a task, one with a `COMMAND` any other command. They are
found by looking into the folders: a new file is a new command, and no list has to know of it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from eval.core.datasets import DataRoot, files_read
from eval.core.flags import OUT, Flag, check_place, flag, parser_for, split_rest
from eval.core.items import ASKED, items_sha256
from eval.core.memorize.options import MEMORY_FLAGS, memorize_options
from eval.core.partial import forget
from eval.core.report import markdown
from eval.core.subject import Subject, load_subject, parse_mesh
from nested_jax import machine
from nested_jax.errors import require
from nested_jax.files import write_json
from nested_jax.train.workdir import locate

FOLDERS = ("tasks", "harness", "results", "proof")  # of eval
RESULTS = "eval"  # folder of a workdir
COMPARED = (
    "id",
    "group",
    ASKED,
    "correct",
    "loss",
    "memorized",
    "depth",
    "tokens",
)  # of an item that is kept
COMMON = (
    flag("--checkpoint", help="a workdir, or its checkpoints/STEP", type=Path),
    OUT,
    flag("--save-items", False, "keep items whole: what was asked and answered"),
    flag("--plots", help="folder for plots (wants matplotlib)", makes="folder", type=Path),
    flag("--data-root", help="folder of the data files", type=Path),
    flag("--seed", 0, "of everything that is drawn", least=0),
    flag("--max-samples", 0, "items per group; 0 is all", least=0),
    flag("--batch-size", 32, "rows of a batch", least=1),
    flag("--batch-tokens", 16_384, "tokens of a batch", least=1),
    flag("--state", help="memory of `nested_jax.read` that every text begins with", type=Path),
    flag("--mesh", "1,1,1", "DATA,FSDP,MODEL; -1 takes what is left"),
)


class Findings(NamedTuple):
    """What a task found.

    `metrics` maps a group ("piqa") to its numbers; with memorization a group also holds
    ``memorized`` and ``delta``, and the numbers beside them are the baseline's.
    """

    metrics: dict[str, dict[str, Any]]
    items: list[dict[str, Any]]  # each has an "id", a "group" and what it asks, `items.ASKED`
    memorize: dict[str, Any] | None = None
    detail: dict[str, Any] | None = None  # what a task keeps beside them, in a form of its own


class Task(NamedTuple):
    """What is measured on a checkpoint."""

    name: str
    help: str  # one line, for the list of commands
    doc: str | None
    flags: tuple[Flag, ...]
    evaluate: Callable[[Subject, argparse.Namespace], Findings]
    plot: Callable[[Path, Findings], list[Path]] | None = None  # into a folder
    memorizes: bool = True

    def parser(self) -> argparse.ArgumentParser:
        written = [("test-time memorization", MEMORY_FLAGS)] if self.memorizes else []
        groups = [("", (*COMMON, *self.flags)), *written]
        return parser_for(self.name, self.doc, groups)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the flags of a command line, each in its range; nothing is loaded.

        Raises:
          ValueError: no checkpoint, a number out of its range, a place that cannot be written.
        """
        flags = self.parser().parse_args(arguments)
        wanted = "wants a workdir, runs/NAME, or one of its checkpoints/STEP"
        require(flags.checkpoint is not None, "--checkpoint", None, wanted)
        for each in (*COMMON, *self.flags):
            each.check(flags)
        if self.memorizes:
            memorize_options(flags)
        return flags

    def run(self, arguments: Sequence[str]) -> int:
        """Evaluate, write the result and --plots, print Markdown."""
        flags = self.parse(arguments)
        out = flags.out or result_file(flags.checkpoint, self.name)
        if flags.out is None and out.parent.parent.is_dir():
            check_place("--out", out, "file")
        result = evaluate(self, subject_of(flags), flags)
        kept = dict(result)
        if not flags.save_items:
            kept["items"] = [{k: x[k] for k in COMPARED if k in x} for x in result["items"]]
        write_out(out, kept)
        forget(flags.out)
        print(markdown(result))
        print(f"kept in {out}")
        return 0


class Command(NamedTuple):
    """A command that is no task."""

    name: str
    help: str
    doc: str | None
    flags: tuple[Flag, ...]
    act: Callable[[argparse.Namespace], int]
    takes_rest: bool = False  # arguments after ``--``, as ``flags.rest``

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the flags of a command line, each in its range."""
        own, rest = split_rest(arguments) if self.takes_rest else (arguments, [])
        flags = parser_for(self.name, self.doc, [("", self.flags)]).parse_args(own)
        for each in self.flags:
            each.check(flags)
        flags.rest = rest
        return flags

    def run(self, arguments: Sequence[str]) -> int:
        return self.act(self.parse(arguments))


@cache
def commands() -> dict[str, Task | Command]:
    """Return all commands by name."""
    found: dict[str, Task | Command] = {}
    for folder in FOLDERS:
        package = importlib.import_module(f"eval.{folder}")
        for entry in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = vars(importlib.import_module(entry.name))
            record = module.get("COMMAND", module.get("TASK"))
            if record is not None:
                assert record.name not in found, f"two commands are called {record.name}"
                found[record.name] = record
    return found


def tasks() -> dict[str, Task]:
    """Return the tasks among the commands."""
    return {name: found for name, found in commands().items() if isinstance(found, Task)}


def subject_of(flags: argparse.Namespace, path: Path | None = None) -> Subject:
    """Load --checkpoint, or another one in the same way."""
    return load_subject(
        path or flags.checkpoint,
        mesh=parse_mesh(flags.mesh),
        batch_size=flags.batch_size,
        batch_tokens=flags.batch_tokens,
        state=getattr(flags, "state", None),
    )


def evaluate(task: Task, subject: Subject, flags: argparse.Namespace) -> dict[str, Any]:
    """Return the result of a task, with what made it."""
    start = time.perf_counter()
    with files_read() as read:
        found = task.evaluate(subject, flags)
    result: dict[str, Any] = {
        "task": task.name,
        "subject": subject.describe(),
        "options": options_of(flags),
        "metrics": found.metrics,
        "memorize": found.memorize,
        "seconds": round(time.perf_counter() - start, 3),
        "device": machine.device_name(),
        "versions": machine.versions(),
        "git_commit": machine.git_commit(),
        "files": read,
        "items_sha256": items_sha256(found.items),
        "items": found.items,
    }
    if found.detail is not None:
        result["detail"] = found.detail
    if flags.plots is not None and task.plot is not None:
        result["plots"] = [str(path) for path in task.plot(flags.plots, found)]
    return result


def options_of(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that decide the numbers, and those that were given."""
    skip = ("checkpoint", "out", "plots", "save_items")
    return {k: names(v) for k, v in vars(flags).items() if k not in skip}


def names(value: Any) -> Any:
    """Return a flag's value with its paths as text, which JSON can hold."""
    if isinstance(value, list):
        return [names(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def write_out(file: Path | None, content: dict[str, Any]) -> None:
    """Write the JSON of --out, where it was given."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, json.loads(json.dumps(content)))


def result_file(checkpoint: Path, task: str) -> Path:
    """Return where a result is kept without --out: eval/TASK-TIME.json of the workdir."""
    stem = f"{task}-{datetime.now():%Y-%m-%dT%H-%M-%S}"
    folder = locate(checkpoint)[0] / RESULTS
    names = (f"{stem}{more}.json" for more in ("", *(f".{i}" for i in range(1, 1000))))
    return next(folder / name for name in names if not (folder / name).exists())


def data_root(flags: argparse.Namespace) -> DataRoot:
    return DataRoot(flags.data_root)


def with_memorized(base: dict[str, Any], memorized: dict[str, Any] | None) -> dict[str, Any]:
    """Return a group's numbers with those of the memorized run and the differences beside them."""
    if memorized is None:
        return base
    numbers = [k for k, v in base.items() if isinstance(v, (int, float)) and k in memorized]
    fixed = ("n", "majority", "tokens", "bytes")
    changed = [k for k in numbers if k not in fixed and not k.endswith(("_stderr", "chance"))]
    delta = {k: memorized[k] - base[k] for k in changed}
    return {**base, "memorized": memorized, "delta": delta}
