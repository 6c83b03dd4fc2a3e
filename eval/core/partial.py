"""Items that a killed evaluation has done: kept beside --out, and not done again.

The file is JSON lines: what is evaluated and how, then one row per item. It goes when the result is
written.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.core.subject import Subject
from nested_jax.files import write_bytes

CHUNK = 256  # items that are done at a time


def partial_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def forget(out: Path | None) -> None:
    """Remove the items of a result that is written."""
    if out is not None:
        partial_of(out).unlink(missing_ok=True)


def in_parts(
    label: str,
    subject: Subject,
    flags: argparse.Namespace,
    asked: Sequence[str],
    make: Callable[[list[int]], list[dict[str, Any]]],
    chunk: int = CHUNK,
) -> list[dict[str, Any]]:
    """Return a row for every item, made chunk by chunk, those of an earlier start not again.

    Args:
      label: of these items among those of the task.
      asked: the hash of what each item asks; `flags.out` says where rows are kept (None: nowhere).
      make: given numbers of items, returns their rows.
    """
    skip = ("out", "plots", "save_items", "checkpoint")
    options = {k: str(v) for k, v in sorted(vars(flags).items()) if k not in skip}
    head = {"subject": subject.describe(), "options": options}
    file = None if flags.out is None else partial_of(flags.out)
    kept = {} if file is None else read(file, head)
    rows = {i: kept[key] for i, item in enumerate(asked) if (key := f"{label} {i} {item}") in kept}
    todo = [i for i in range(len(asked)) if i not in rows]
    if rows:
        print(f"{label}: {len(rows)} of {len(asked)} items are done", flush=True)
    began = time.perf_counter()
    for start in range(0, len(todo), chunk):
        part = todo[start : start + chunk]
        made = make(part)
        rows |= dict(zip(part, made, strict=True))
        done = start + len(part)
        if file is not None:
            append(file, head, {f"{label} {i} {asked[i]}": rows[i] for i in part})
        if done < len(todo):
            left = (time.perf_counter() - began) / done * (len(todo) - done)
            print(f"{label}: {done}/{len(todo)}, about {left:.0f} s left", flush=True)
    return [rows[i] for i in range(len(asked))]


def read(file: Path, head: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of a file by their keys; none of another evaluation, no half line."""
    try:
        lines = [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
    except (OSError, ValueError):
        return {}
    if not lines or lines[0] != json.loads(json.dumps(head)):
        return {}
    return {key: row for line in lines[1:] for key, row in line.items()}


def append(file: Path, head: dict[str, Any], rows: dict[str, Any]) -> None:
    """Add rows; a half line is cut, and a file of another evaluation replaced."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not read(file, head):
        write_bytes(file, json.dumps(head).encode() + b"\n")
    elif not (found := file.read_bytes()).endswith(b"\n"):
        write_bytes(file, found.rpartition(b"\n")[0] + b"\n")
    with open(file, "a") as out:
        out.write(json.dumps(rows) + "\n")
        out.flush()
        os.fsync(out.fileno())
