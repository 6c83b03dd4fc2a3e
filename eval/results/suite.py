"""Many tasks in one go: ``python -m eval suite --checkpoint runs/NAME --out-dir FOLDER``.

Writes FOLDER/TASK.json for each task and FOLDER/summary.md. A task whose file is there, of the same
checkpoint and flags, is not run again: a suite that was killed goes on where it was. Flags after
``--`` go to every task that has them.

Presets: smoke; pilot, needles to 8K; mid, whole validation sets and needles to 32K; target, to 64K.
Lengths that the full attention of a model cannot hold are left out, and named.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.core.cli import (
    RESULTS,
    Command,
    evaluate,
    options_of,
    subject_of,
    tasks,
    write_out,
)
from eval.core.datasets import changed_files
from eval.core.flags import OUT, choose, flag, parse_lengths
from eval.core.report import markdown
from eval.core.subject import Subject
from nested_jax.errors import require
from nested_jax.files import hold_folder, write_bytes
from nested_jax.train.workdir import locate


def needle_tasks(lengths: str, samples: int) -> dict[str, list[str]]:
    flags = ["--context-lengths", lengths, "--samples-per-length", str(samples)]
    return {name: list(flags) for name in ("niah", "passkey", "babi")}


ROOM = 48  # tokens of an answer, after a prompt
WHOLE = ["--max-tokens", "0", "--doc-tokens", "0"]  # of every held-out text
REPEAT = ["--segments", "literary_novels,code,random"]
PRESETS: dict[str, dict[str, list[str]]] = {
    "smoke": {
        "zeroshot": ["--max-samples", "16"],
        "perplexity": ["--max-tokens", "2048", "--doc-tokens", "512"],
        "books": ["--max-samples", "2", "--context-tokens", "1024"],
        "niah": ["--context-lengths", "256", "--samples-per-length", "10"],
        "passkey": ["--context-lengths", "256", "--samples-per-length", "10"],
        "repeat": ["--distances", "256", "--passages", "4"],
    },
    "pilot": {
        "zeroshot": ["--max-samples", "1000"],
        "perplexity": [],
        "books": [],
        **needle_tasks("512,1024,2048,4096,8192", 100),
        "repeat": REPEAT,
        "continual": [],
    },
    "mid": {
        "zeroshot": [],
        "perplexity": WHOLE,
        "books": ["--context-tokens", "32768"],
        **needle_tasks("1024,2048,4096,8192,16384,32768", 200),
        "repeat": [*REPEAT, "--passages", "100"],
        "continual": ["--write-tokens", "65536", "--score-tokens", "16384"],
        "classification": ["--tasks", "0"],
    },
    "target": {
        "zeroshot": [],
        "perplexity": WHOLE,
        "books": ["--context-tokens", "65536"],
        **needle_tasks("2048,4096,8192,16384,32768,65536", 500),
        "repeat": [*REPEAT, "--passages", "100"],
        "continual": ["--write-tokens", "262144", "--score-tokens", "65536"],
        "classification": ["--tasks", "0", "--train-per-label", "20", "--eval-per-label", "20"],
    },
}


def act(flags: argparse.Namespace) -> int:
    wanted = "wants the folder of a run or of a step"
    require(flags.checkpoint.is_dir(), "--checkpoint", str(flags.checkpoint), wanted)
    folder = flags.out_dir or locate(flags.checkpoint)[0] / RESULTS
    chosen = task_flags(plan(flags.preset, flags.tasks), flags.checkpoint, flags.rest)
    with hold_folder(folder):
        results = run_suite(chosen, folder)
    metrics = {r["task"]: r["metrics"] for r in results}
    about = {"task": "suite", "subject": results[0]["subject"], "metrics": metrics}
    write_out(flags.out, about)
    return 0


def plan(preset: str, names: str) -> dict[str, list[str]]:
    """Return the tasks of a preset with their flags.

    Raises:
      ValueError: an unknown preset or task, with the known ones.
    """
    require(preset in PRESETS, "--preset", preset, f"wants one of {', '.join(PRESETS)}")
    known = PRESETS[preset]
    return {name: known[name] for name in choose(names, known, "--tasks")}


def task_flags(
    chosen: dict[str, list[str]], checkpoint: Path, rest: Sequence[str]
) -> dict[str, argparse.Namespace]:
    """Return the flags of every task, those of the preset and the ones of `rest` that it has.

    Raises:
      ValueError: a flag that none of the tasks has, or a bad value of one.
    """
    parsers = {name: tasks()[name].parser() for name in chosen}
    for word in rest[:1]:
        require(word.startswith("--"), "arguments after --", word, "wants flags of the tasks")
    for word in (word for word in rest if word.startswith("--")):
        known = any(supported(parser, [word]) for parser in parsers.values())
        require(known, "arguments after --", word, f"none of {', '.join(chosen)} has this flag")
    common = ["--checkpoint", str(checkpoint)]
    return {
        name: tasks()[name].parse([*common, *own, *supported(parsers[name], rest)])
        for name, own in chosen.items()
    }


def run_suite(chosen: dict[str, argparse.Namespace], folder: Path) -> list[dict[str, Any]]:
    """Run what is not done yet, and write the summary after every task."""
    results: list[dict[str, Any]] = []
    subject: Subject | None = None
    begun, ran = time.perf_counter(), 0
    for i, (name, flags) in enumerate(chosen.items()):
        subject = subject or subject_of(flags)
        for line in fit_lengths(name, flags, subject):
            print(line, flush=True)
        file = folder / f"{name}.json"
        result = finished(file, subject, flags)
        if result is None:
            result = evaluate(tasks()[name], subject, flags)
            write_out(file, result)
            ran += 1
            left = (time.perf_counter() - begun) / ran * (len(chosen) - i - 1)
            print(f"{name}: {result['seconds']:.0f} s, about {left:.0f} s left", flush=True)
        else:
            print(f"{name}: done before", flush=True)
        results.append(result)
        write_bytes(folder / "summary.md", "\n".join(map(markdown, results)).encode())
    return results


def fit_lengths(name: str, flags: argparse.Namespace, subject: Subject) -> list[str]:
    """Leave out the lengths that full attention cannot hold; return what is to be said of it.

    Raises:
      ValueError: it can hold none of them.
    """
    limit = subject.reader.limit
    if limit is None:
        return []
    said = []
    if getattr(flags, "context_tokens", None) and name == "books" and flags.context_tokens > limit:
        said.append(f"{name}: {limit} tokens of each text, not {flags.context_tokens}")
        flags.context_tokens = limit
    if hasattr(flags, "context_lengths"):
        lengths = parse_lengths(flags.context_lengths)
        kept = [length for length in lengths if length + ROOM <= limit]
        want = f"full attention of {subject.name} holds {limit} tokens (model.max_len)"
        require(bool(kept), "--context-lengths", flags.context_lengths, want)
        left = [str(length) for length in lengths if length not in kept]
        said += [f"{name}: lengths {', '.join(left)} are left out: {want}"] if left else []
        flags.context_lengths = ",".join(map(str, kept))
    return said


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
    """Return the result in `file` if it is of this checkpoint, these flags and the same texts."""
    if not file.is_file():
        return None
    try:
        result = json.loads(file.read_text("utf-8"))
    except ValueError:
        return None  # not one of ours; it is written again
    options = json.loads(json.dumps(options_of(flags)))
    if not isinstance(result, dict) or result.get("subject") != subject.describe():
        return None
    if result.get("options") != options:
        return None
    read = result.get("files")
    changed = changed_files(read) if isinstance(read, dict) else []
    why = f"its texts have changed: {', '.join(changed)}" if changed else ""
    if not isinstance(read, dict):
        why = "its result does not say which texts it read"
    if why:
        print(f"{file.stem}: run again, {why}", flush=True)
    return None if why else result


FLAGS = (
    flag("--checkpoint", None, "a workdir, or a step of it", type=Path, required=True),
    flag("--out-dir", None, "default: eval in the checkpoint's workdir", makes="folder", type=Path),
    OUT,
    flag("--preset", "pilot", f"one of {', '.join(PRESETS)}"),
    flag("--tasks", "all", "all, or some of the preset's"),
)
HELP = "many tasks in one go, resumable"
COMMAND = Command("suite", HELP, __doc__, FLAGS, act, takes_rest=True)
