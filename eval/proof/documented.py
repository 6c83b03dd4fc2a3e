"""What the committed records say of a cell: the range over seeds that a new number falls in or not.

A claim of the documentation stands on the seeds of benchmarks/results/proof. Another machine may
end elsewhere, since a last bit can decide what is learned; the range says how far seeds differ.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.proof.cells import Result
from eval.proof.records import command_of, read_lines, result_of
from eval.proof.report import score_of
from nested_jax.errors import ROOT

RECORDS = ROOT / "benchmarks" / "results" / "proof"  # of a checkout
ENOUGH = 5  # seeds that a claim stands on
SLACK = 1e-4  # of a number: records are rounded to six digits
TEXT = "valid_text_sha256"

Known = dict[str, list[dict[str, Any]]]  # records by case, model and rate, whatever the seed


def read_documented(name: str, mode: str, folder: Path = RECORDS) -> Known:
    """Return the records of a suite at a budget, as they are before anything runs."""
    known: Known = defaultdict(list)
    for record in read_lines(folder / f"{name}-{mode}.jsonl"):
        known[seedless(record["cell"])].append(record)
    return known


def seedless(text: str) -> str:
    return re.sub(r",seed=\d+", "", text)


def numbers(result: Result) -> list[float]:
    """Return the accuracies of a cell in %, or the bits per byte of text."""
    scores = score_of(result)
    if scores:
        return [100 * score for score in scores.values()]
    return [result.summary["valid_bits_per_byte"]]


def beside(result: Result, known: Known) -> str:
    """Return the documented range of each number of a result, and whether it lies inside."""
    cell, found = result.cell, []
    for record in known.get(seedless(cell.folder), ()):
        same = seedless(str(record["command"])) == seedless(str(command_of(cell)))
        if same and not record["failed"]:
            found.append(result_of(record, cell))
    texts = {run.summary.get(TEXT) for run in found} | {result.summary.get(TEXT)}
    if not found:
        return "nothing documented"
    if None not in texts and len(texts) > 1 and not score_of(result):
        return "documented on other text"
    seeds = len({record["seed"] for record in known[seedless(cell.folder)]})
    few = f", fewer than {ENOUGH}" if seeds < ENOUGH else ""
    digits = 1 if score_of(result) else 4
    said = ranges(numbers(result), [numbers(run) for run in found], digits)
    return f"documented {said} ({seeds} seeds{few})"


def ranges(new: Sequence[float], documented: Sequence[Sequence[float]], digits: int) -> str:
    """Return "low to high: inside" for each number."""
    parts = []
    for number, values in zip(new, zip(*documented, strict=True), strict=True):
        low, high, slack = min(values), max(values), SLACK * max(1.0, *map(abs, values))
        verdict = "inside" if low - slack <= number <= high + slack else "outside"
        parts.append(f"{low:.{digits}f} to {high:.{digits}f}: {verdict}")
    return " / ".join(parts)
