"""Many tasks in one go: ``python -m eval suite --checkpoint runs/NAME --out-dir FOLDER``.

Writes FOLDER/TASK.json for each task and FOLDER/summary.md. A task whose file is there, of the same
checkpoint and flags, is not run again: a suite that was killed goes on where it was. Flags after
``--`` go to every task that has them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.core.cli import (
    Task,
    check_common,
    evaluate,
    options_of,
    parser_of,
    plain_parser,
    split_rest,
    subject_of,
)
from eval.core.report import markdown
from eval.core.subject import Subject
from nested_jax.errors import require
from nested_jax.train.record import write_json

PRESETS: dict[str, dict[str, list[str]]] = {
    "smoke": {
        "zeroshot": ["--max-samples", "16"],
        "perplexity": ["--max-tokens", "2048", "--doc-tokens", "512"],
        "books": ["--max-samples", "2", "--context-tokens", "1024"],
        "niah": ["--context-lengths", "256", "--samples-per-length", "10"],
        "passkey": ["--context-lengths", "256", "--samples-per-length", "10"],
    },
    "pilot": {
        "zeroshot": ["--max-samples", "1000"],
        "perplexity": [],
        "books": [],
        "niah": ["--context-lengths", "512,1024,2048"],
        "passkey": ["--context-lengths", "512,1024,2048"],
        "babi": ["--context-lengths", "512,1024,2048"],
        "continual": [],
    },
    "full": {
        "zeroshot": [],
        "perplexity": ["--max-tokens", "0", "--doc-tokens", "0"],
        "books": [],
        "niah": ["--context-lengths", "512,1024,2048", "--samples-per-length", "500"],
        "passkey": ["--context-lengths", "512,1024,2048", "--samples-per-length", "500"],
        "babi": ["--context-lengths", "512,1024,2048", "--samples-per-length", "500"],
        "continual": [],
    },
}


def main(arguments: list[str]) -> int:
    own, rest = split_rest(arguments)
    parser = plain_parser("suite", __doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out-dir", type=Path, help="default: eval in the checkpoint's workdir")
    parser.add_argument("--out", type=Path, help="JSON file of all metrics")
    parser.add_argument("--preset", default="pilot", help=f"one of {', '.join(PRESETS)}")
    parser.add_argument("--tasks", default="all", help="all, or some of the preset's")
    flags = parser.parse_args(own)
    folder = flags.out_dir or flags.checkpoint / "eval"
    results = run_suite(flags.checkpoint, plan(flags.preset, flags.tasks), rest, folder)
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        metrics = {r["task"]: r["metrics"] for r in results}
        write_json(
            flags.out, {"task": "suite", "subject": results[0]["subject"], "metrics": metrics}
        )
    return 0


def plan(preset: str, tasks: str) -> dict[str, list[str]]:
    """Return the tasks of a preset with their flags.

    Raises:
      ValueError: an unknown preset or task, with the known ones.
    """
    require(preset in PRESETS, "--preset", preset, f"wants one of {', '.join(PRESETS)}")
    known = PRESETS[preset]
    names = list(known) if tasks == "all" else [n.strip() for n in tasks.split(",")]
    for name in names:
        require(name in known, "--tasks", name, f"wants all, or some of {', '.join(known)}")
    return {name: known[name] for name in names}


def run_suite(
    checkpoint: Path, tasks: dict[str, list[str]], rest: Sequence[str], folder: Path
) -> list[dict[str, Any]]:
    """Run what is not done yet, and write the summary after every task."""
    folder.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    subject: Subject | None = None
    begun, ran = time.perf_counter(), 0
    for i, (name, arguments) in enumerate(tasks.items()):
        task: Task = importlib.import_module(f"eval.tasks.{name}").TASK
        parser = parser_of(task)
        extra = [*arguments, *supported(parser, rest)]
        flags = parser.parse_args(["--checkpoint", str(checkpoint), *extra])
        check_common(flags)
        subject = subject or subject_of(flags)
        file = folder / f"{name}.json"
        result = finished(file, subject, flags)
        if result is None:
            result = evaluate(task, subject, flags)
            write_json(file, json.loads(json.dumps(result)))
            ran += 1
            left = (time.perf_counter() - begun) / ran * (len(tasks) - i - 1)
            print(f"{name}: {result['seconds']:.0f} s, about {left:.0f} s left", flush=True)
        else:
            print(f"{name}: done before", flush=True)
        results.append(result)
        text = "\n".join(markdown(r) for r in results)
        (folder / "summary.md").write_text(text, encoding="utf-8")
    return results


def supported(parser: argparse.ArgumentParser, rest: Sequence[str]) -> list[str]:
    """Return the flags of `rest`, with their values, that the parser knows."""
    kept: list[str] = []
    taking = False
    for word in rest:
        if word.startswith("--"):
            taking = word.partition("=")[0] in parser._option_string_actions
        if taking:
            kept.append(word)
    return kept


def finished(file: Path, subject: Subject, flags: argparse.Namespace) -> dict[str, Any] | None:
    """Return the result in `file` if it is of this checkpoint and of these flags."""
    if not file.is_file():
        return None
    try:
        result = json.loads(file.read_text("utf-8"))
    except json.JSONDecodeError:
        return None  # not one of ours; it is written again
    options = json.loads(json.dumps(options_of(flags)))
    same = result.get("subject") == subject.describe() and result.get("options") == options
    return result if same else None
