"""Finished cells as lines of JSON, which outlive their workdirs and fit into a repository.

A record has what the tables and plots of a cell are made from: the command, the scores, the loss by
step, device, versions, commit and date. ``--records DIR`` reads ``DIR/SUITE-BUDGET.jsonl`` and adds
what has run, so that a table can grow on several machines, and be written again from a clone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eval.proof.cells import Cell, Result
from nested_jax.errors import require
from nested_jax.files import hold, write_bytes

# Of summary.json: what the tables read.
SUMMARY = (
    "step",
    "parameters",
    "seconds",
    "valid_loss",
    "valid_bits_per_byte",
    "scores",
    "device",
    "git_commit",
    "versions",
    "valid_text_sha256",
    "train_order_sha256",
)
VERSIONS = ("python", "jax", "flax")
DIGITS = 6  # significant ones, of the numbers of a record


def record_of(result: Result) -> dict[str, Any]:
    """Return a finished cell as JSON."""
    summary = {name: result.summary[name] for name in SUMMARY if name in result.summary}
    if summary:
        summary["versions"] = {name: summary["versions"][name] for name in VERSIONS}
    record = {
        "cell": result.cell.folder,
        "seed": result.cell.seed,
        "command": command_of(result.cell),
        "dates": list(result.dates),
        "failed": result.failed,
        **summary,
        "curve": [list(point) for point in result.curve],
    }
    if result.positions is not None:
        record["positions"] = dict(result.positions)
    if result.tasks is not None:
        record["tasks"] = result.tasks
    if result.repeats:
        record["repeats"] = [list(point) for point in result.repeats]
    if result.known_from:
        record["known_from"] = result.known_from
    return rounded(record)


def result_of(record: Mapping[str, Any], cell: Cell) -> Result:
    """Return what `record_of` was given."""
    return Result(
        cell,
        {name: record[name] for name in SUMMARY if name in record},
        tuple((step, loss) for step, loss in record["curve"]),
        record["failed"],
        tuple(record["dates"]),
        record.get("positions"),
        record.get("tasks"),
        tuple((tokens, found) for tokens, found in record.get("repeats", ())),
        record.get("known_from", ""),
    )


def command_of(cell: Cell) -> list[str]:
    """Return the configuration of a cell as arguments, whatever folders it reads and writes."""
    fields = (re.sub(r"^(data\.source=).*", r"\1FOLDER", field) for field in cell.fields)
    before = (f"train.init_from={cell.before.folder}",) if cell.before else ()
    return [cell.config, *fields, *before]


def rounded(value: Any) -> Any:
    """Return JSON with its numbers to `DIGITS` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return value


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the records of a file; none if it is not there.

    Raises:
      ValueError: a line is no record.
    """
    if not file.exists():
        return []
    records = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            complete = {"cell", "seed", "command", "dates", "failed", "curve"} <= set(record)
        except (ValueError, TypeError):
            complete = False
        require(complete, "--records", f"{file}, line {number}", "wants a record of eval proof")
        records.append(record)
    return records


def read_records(file: Path, cells: Iterable[Cell]) -> dict[str, Result]:
    """Return the recorded ones of `cells`, by folder.

    Raises:
      ValueError: a record has another configuration than the cell of its name, or names none.
    """
    by_folder = {cell.folder: cell for cell in cells}
    results = {}
    for number, record in enumerate(read_lines(file), start=1):
        where = f"{file}, line {number}"
        cell = by_folder.get(record["cell"])
        require(
            cell is not None, "--records", where, f"wants a cell of the suite: {record['cell']}"
        )
        assert cell is not None
        want = command_of(cell)
        changed = sorted(set(record["command"]) ^ set(want))
        require(
            record["command"] == want,
            "--records",
            where,
            f"holds a run of another configuration ({'; '.join(changed[:3])}); wants another file",
        )
        results[cell.folder] = result_of(record, cell)
    return results


def add_records(file: Path, cells: Iterable[Cell], results: Iterable[Result]) -> list[Result]:
    """Add `results` to a file, in the order of `cells`; return all that it has now, as recorded.

    What has just run wins over what was recorded. Several drivers may share a file.
    """
    planned = list(cells)
    file.parent.mkdir(parents=True, exist_ok=True)
    with hold(file.with_name(f"{file.name}.lock"), str(file), wait=print):
        known = read_records(file, planned) | {result.cell.folder: result for result in results}
        merged = [known[cell.folder] for cell in planned if cell.folder in known]
        records = [record_of(result) for result in merged]
        if not records:
            return []
        lines = "".join(f"{json.dumps(record)}\n" for record in records)
        write_bytes(file, lines.encode())
    return [result_of(record, r.cell) for record, r in zip(records, merged, strict=True)]
