"""The tables of docs/proof/retrofit.md, from the records alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.retrofit.measure import LONG, SEGMENTS, SWEEP
from eval.core.report import mean_spread
from eval.core.report import table as markdown_table

Record = dict[str, Any]
# Ways to read, as the records have them, and as a table says.
UNTRAINED = {"safe": "safe default", "calibrated": "calibrated", "wild": "default x 10"}
TRAINED = {
    "longer": "Transformer, trained on",
    "longer_writes": "the same, retrofitted",
    "rates_writes": "rates trained on",
    "everything": "everything trained on, no writes",
    "everything_writes": "the same, writing",
}
QUARTERS = {
    "safe": "safe default",
    "calibrated": "calibrated",
    "everything_writes": "everything trained on, writing",
}
READERS = {"reader": "nothing trained", "everything": "everything trained on"}


def tables(records: Sequence[Record]) -> str:
    """Return the Markdown tables: means over seeds, with the lowest and the highest."""
    parts = []
    for base in dict.fromkeys(r["base"] for r in records):
        texts = [r for r in records if r["base"] == base and "read" in r]
        asked = [r for r in records if r["base"] == base and "tasks" in r]
        steps = texts[0]["further"]
        parts += [
            f"### A base of {base}\n\nChange of the loss by writing; nothing is trained",
            changes(texts, UNTRAINED),
            f"Change of the loss to the base as it was, after {steps} further steps",
            changes(texts, TRAINED),
            "Gain in bits per token by quarter of a row, 512 tokens each; the first is as long as "
            "the rows of training",
            quarters(texts),
            "Second halves of documents, given a memory alone",
            halves(texts),
        ]
        if any("sweep" in r["read"] for r in texts):
            parts += ["Change of the loss by rule and rate, without a bound", swept(texts)]
        if asked:
            parts += ["A passage again: bits per token saved", repeated(asked)]
        if any("zeroshot base" in r["tasks"] for r in asked):
            parts += ["Zero-shot accuracy, per cent", zero_shot(asked)]
    return "\n\n".join(parts) + "\n"


def of(records: Sequence[Record], segment: str) -> list[Record]:
    return [r["read"] for r in records if r["corpus"] == segment]


def changes(records: Sequence[Record], ways: dict[str, str]) -> str:
    rows = []
    for segment in SEGMENTS:
        reads = of(records, segment)
        if reads:
            cells = [over([100 * (r[way] / r["none"] - 1) for r in reads]) for way in ways]
            none = f"{statistics.mean(r['none'] for r in reads):.3f}"
            rows.append([segment, str(len(reads)), none, *cells])
    header = ("corpus", "seeds", "base, no writes, bits per token", *ways.values())
    return markdown_table(header, rows)


def quarters(records: Sequence[Record]) -> str:
    rows = []
    for segment in SEGMENTS:
        for way, said in QUARTERS.items():
            found = [r["gains"][way]["quarters"] for r in of(records, segment)]
            if found:
                columns = [f"{statistics.mean(column):+.3f}" for column in zip(*found, strict=True)]
                rows.append([segment, said, *columns])
    return markdown_table(("corpus", "read by", "first", "second", "third", "last"), rows)


def halves(records: Sequence[Record]) -> str:
    rows = []
    for segment in LONG:
        found = [r["memory"] for r in records if r["corpus"] == segment]
        if found:
            none = f"{statistics.mean(m['none'] for m in found):.3f}"
            cells = [over([100 * (m[x] / m["none"] - 1) for m in found]) for x in ("own", "other")]
            rows.append([segment, str(len(found)), none, *cells])
    return markdown_table(
        ("corpus", "seeds", "no memory, bits per token", "own memory", "another document's"), rows
    )


def swept(records: Sequence[Record]) -> str:
    columns = [(rule, str(rate)) for rule in SWEEP for rate in SWEEP[rule]]
    rows = []
    for segment in SEGMENTS:
        reads = [r for r in of(records, segment) if "sweep" in r]
        if reads:
            cells = [
                over([100 * (r["sweep"][rule][rate] / r["none"] - 1) for r in reads])
                for rule, rate in columns
            ]
            rows.append([segment, *cells])
    return markdown_table(("corpus", *(f"{rule} {rate}" for rule, rate in columns)), rows)


def repeated(records: Sequence[Record]) -> str:
    found = [r["tasks"]["repeat reader"]["metrics"] for r in records]
    distances = list(found[0])
    rows = [["no writes", *(saved(found, d, memorized=False) for d in distances)]]
    for name, said in READERS.items():
        metrics = [r["tasks"][f"repeat {name}"]["metrics"] for r in records]
        rows.append([f"{said}, writing", *(saved(metrics, d, memorized=True) for d in distances)])
    header = ("model", *(f"{int(d.split('@')[1]):,} tokens" for d in distances))
    return markdown_table(header, rows)


def saved(metrics: Sequence[Record], distance: str, *, memorized: bool) -> str:
    groups = [m[distance]["memorized"] if memorized else m[distance] for m in metrics]
    return mean_spread([g["gain"] for g in groups], 1.0, 2)


def zero_shot(records: Sequence[Record]) -> str:
    """Return accuracies of the base, and of the reader with and without writes."""
    asked = [r["tasks"] for r in records if "zeroshot base" in r["tasks"]]
    rows = []
    for task, group in asked[0]["zeroshot base"]["metrics"].items():
        if "acc" not in group:
            continue
        base = [a["zeroshot base"]["metrics"][task]["acc"] for a in asked]
        reader = [a["zeroshot reader"]["metrics"][task] for a in asked]
        same = all(r["acc"] == b for r, b in zip(reader, base, strict=True))
        written = mean_spread([r["memorized"]["acc"] for r in reader])
        rows.append([task, mean_spread(base), "the same" if same else "not the same", written])
    header = ("task", "base", "retrofitted, no writes", "retrofitted, writing")
    return markdown_table(header, rows)


def over(values: Sequence[float]) -> str:
    """Return the mean of percentages, with the lowest and the highest of several."""
    text = f"{statistics.mean(values):+.2f} %"
    if len(values) > 1:
        text += f" ({min(values):+.2f} to {max(values):+.2f})"
    return text
