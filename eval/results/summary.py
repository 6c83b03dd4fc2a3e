"""Markdown of results: ``python -m eval summary FILE_OR_FOLDER ... [--out summary.md]``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.core.cli import Command
from eval.core.flags import flag
from eval.core.report import markdown
from eval.core.same_text import ITEMS, Named, not_recorded, odd_ones, training_lines
from nested_jax.data.records import checked_row
from nested_jax.errors import require


def summarize(flags: argparse.Namespace) -> int:
    files = result_files(flags.files)
    results = [read_result(file) for file in files]
    text = "\n".join([*map(markdown, results), *items_lines(files, results)])
    if flags.out is None:
        print(text)
    else:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(text, encoding="utf-8")
    return 0


def items_lines(files: Sequence[Path], results: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each task whose results are of different items, or do not say of which."""
    lines = []
    for task in dict.fromkeys(result["task"] for result in results):
        of_task = [
            Named(str(file), result)
            for file, result in zip(files, results, strict=True)
            if result["task"] == task
        ]
        subjects = [Named(run.name, run.record["subject"]) for run in of_task]
        lines += [f"{task}: {line}.\n" for line in training_lines(subjects) if len(of_task) > 1]
        odd = odd_ones(of_task, ITEMS)
        lines += [f"**Not comparable**: {task}: {name}: {why}.\n" for name, why in odd.items()]
        old = not_recorded(of_task, ITEMS)
        if old and len(of_task) > 1:
            lines.append(f"{task}: the items are not recorded in {', '.join(old)}.\n")
    return lines


def result_files(paths: Sequence[Path], name: str = "file") -> list[Path]:
    """Return files, and those of folders in the order of their names.

    Raises:
      ValueError: a folder without .json files.
    """
    files: list[Path] = []
    for path in paths:
        found = sorted(path.glob("*.json")) if path.is_dir() else [path]
        require(len(found) > 0, name, str(path), "a folder without .json files")
        files += found
    return files


def read_result(file: Path) -> dict[str, Any]:
    """Return the result in a file.

    Raises:
      ValueError: a file that is not the result of a task.
    """
    require(file.is_file(), "file", str(file), "no such file; wants the --out of a task")
    try:
        result: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except ValueError as error:  # no JSON, or no text at all
        raise ValueError(f"{file}: not JSON ({error})") from error
    wanted = ("task", "subject", "metrics", "seconds", "device")
    require(isinstance(result, dict), "file", str(file), "is no result of a task")
    missing = [key for key in wanted if key not in result]
    require(not missing, "file", str(file), f"is no result of a task: lacks {', '.join(missing)}")
    about = checked_row(result["subject"], f"{file}: subject", name=str, step=int, block=str)
    checked_row(about, f"{file}: subject", parameters=int)
    groups = checked_row(result["metrics"], f"{file}: metrics")
    checked_row(groups, f"{file}: metrics", **dict.fromkeys(groups, dict))
    seconds = result["seconds"]
    require(isinstance(seconds, (int, float)), f"{file}: seconds", seconds, "wants a number")
    return result


FLAGS = (
    flag(
        "files", None, "files of results, or folders of them", type=Path, nargs="+", metavar="FILE"
    ),
    flag("--out", None, "Markdown file; else it is printed", makes="file", type=Path),
)
COMMAND = Command("summary", "Markdown of result files", __doc__, FLAGS, summarize)
