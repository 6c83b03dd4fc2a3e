"""Results as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    head = list(header)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean_spread(values: Sequence[float], scale: float = 100.0, digits: int = 1) -> str:
    """Return "mean ± sample standard deviation", or the one value there is."""
    mean = scale * statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {scale * statistics.stdev(values):.{digits}f}"


def number(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return f"{number(value[0])} to {number(value[1])}"
    return str(value)


def plain(value: Any) -> bool:
    """Whether a value fits a cell: a number, a word, or an interval."""
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    if pair:
        return all(isinstance(v, (int, float)) for v in value)
    return isinstance(value, (int, float, str))


def group_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one row a group; memorized numbers and differences in rows of their own."""
    rows = []
    for name, group in metrics.items():
        rows.append((name, group))
        for part in ("memorized", "delta"):
            if isinstance(group.get(part), Mapping):
                rows.append((f"{name}, {part}", group[part]))
    columns = list(dict.fromkeys(k for _, group in rows for k, v in group.items() if plain(v)))
    body = [
        [name, *(number(g[c]) if c in g and plain(g[c]) else "" for c in columns)]
        for name, g in rows
    ]
    return table(["", *columns], body)


def markdown(result: Mapping[str, Any]) -> str:
    """Return a result as a section of Markdown."""
    who = result["subject"]
    parts = [
        f"## {result['task']}: {who['name']}, step {who['step']}",
        f"{who['block']}, {who['parameters']:,} parameters; {result['seconds']:.1f} s on "
        f"{result['device']}",
        group_table(result["metrics"]),
    ]
    memorize = result.get("memorize")
    if memorize:
        parts.append(memorize_line(memorize))
    return "\n\n".join(parts) + "\n"


def memorize_line(report: Mapping[str, Any]) -> str:
    """Return in a sentence what test-time memorization did."""
    if report.get("note"):
        return f"Memorization: {report['note']}."
    each = ", ".join(
        f"{name} {count:,} writes (change {report['change'].get(name, 0.0):.3g})"
        for name, count in report["writes"].items()
    )
    leak = " **Leakage: the correct answers were written.**" if report["leakage"] else ""
    return f"Memorization over {report['texts']:,} texts: {each}.{leak}"
