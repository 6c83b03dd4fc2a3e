"""The form that every task has: common flags, one result, its JSON, Markdown and plots."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.core import memory
from eval.core.datasets import DataRoot
from eval.core.report import markdown
from eval.core.subject import Subject, load_subject, parse_mesh
from nested_jax import machine
from nested_jax.errors import require
from nested_jax.train.record import write_json


class Findings(NamedTuple):
    """What a task found.

    `metrics` maps a group ("piqa") to its numbers; with memorization a group also holds
    ``memorized`` and ``delta``, and the numbers beside them are the baseline's.
    """

    metrics: dict[str, dict[str, Any]]
    items: list[dict[str, Any]]  # each has an "id", and "group"
    memorize: dict[str, Any] | None = None
    plot: Callable[[Path], list[Path]] | None = None  # into a folder


class Task(NamedTuple):
    """A task: how it is called, and what it does."""

    name: str
    doc: str | None
    add_flags: Callable[[argparse.ArgumentParser], None]
    evaluate: Callable[[Subject, argparse.Namespace], Findings]
    memorizes: bool = True


def plain_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser without flags, whose help is `doc`."""
    return argparse.ArgumentParser(
        prog=f"python -m eval {name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parser_of(task: Task) -> argparse.ArgumentParser:
    parser = plain_parser(task.name, task.doc)
    add_common_flags(parser)
    if task.memorizes:
        memory.add_flags(parser)
    task.add_flags(parser)
    return parser


def split_rest(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before and behind the first ``--``."""
    words = list(arguments)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, help="a workdir, or its checkpoints/STEP")
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    parser.add_argument("--save-items", action="store_true", help="keep every item in --out")
    parser.add_argument("--plots", type=Path, help="folder for plots (wants matplotlib)")
    parser.add_argument("--data-root", type=Path, help="folder of the data files")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--max-samples", type=int, default=0, help="items a group; 0 is all")
    parser.add_argument("--batch-size", type=int, default=32, help="rows of a batch")
    parser.add_argument("--batch-tokens", type=int, default=16_384, help="tokens of a batch")
    parser.add_argument("--mesh", default="1,1,1", help="DATA,FSDP,MODEL; -1 takes what is left")


def run_task(task: Task, arguments: Sequence[str]) -> int:
    """Run a task from its command line: evaluate, write --out and --plots, print Markdown."""
    flags = parser_of(task).parse_args(arguments)
    check_common(flags)
    result = evaluate(task, subject_of(flags), flags)
    write_result(result, flags)
    return 0


def check_common(flags: argparse.Namespace) -> None:
    """Raise unless the common flags make sense, before anything is loaded."""
    wanted = "wants a workdir, runs/NAME, or one of its checkpoints/STEP"
    require(flags.checkpoint is not None, "--checkpoint", None, wanted)
    require(flags.max_samples >= 0, "--max-samples", flags.max_samples, "wants 0 (all) or more")
    for name in ("batch_size", "batch_tokens"):
        value = getattr(flags, name)
        require(value >= 1, f"--{name.replace('_', '-')}", value, "wants at least 1")
    if flags.out is not None:
        require(not flags.out.is_dir(), "--out", str(flags.out), "is a folder, wants a file")
    if "memorize" in flags:
        memory.from_flags(flags)


def subject_of(flags: argparse.Namespace) -> Subject:
    return load_subject(
        flags.checkpoint,
        mesh=parse_mesh(flags.mesh),
        batch_size=flags.batch_size,
        batch_tokens=flags.batch_tokens,
    )


def evaluate(task: Task, subject: Subject, flags: argparse.Namespace) -> dict[str, Any]:
    """Return the result of a task, with what made it."""
    start = time.perf_counter()
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
        "items": found.items,
    }
    if flags.plots is not None and found.plot is not None:
        result["plots"] = [str(path) for path in found.plot(flags.plots)]
    return result


def options_of(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that decide the numbers, and those that were given."""
    skip = ("checkpoint", "out", "plots", "save_items")
    found = {k: v for k, v in vars(flags).items() if k not in skip}
    return {k: names(v) for k, v in found.items()}


def names(value: Any) -> Any:
    """Return a flag's value with its paths as text, which JSON can hold."""
    if isinstance(value, list):
        return [names(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def write_result(result: dict[str, Any], flags: argparse.Namespace) -> None:
    """Write --out, items only with --save-items, and print the summary."""
    kept = result if flags.save_items else {k: v for k, v in result.items() if k != "items"}
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(flags.out, json.loads(json.dumps(kept)))
    print(markdown(result))


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
