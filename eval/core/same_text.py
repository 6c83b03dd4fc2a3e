"""Whether runs that are compared were scored on the same text, and trained on it in the same order.

A run says so by two hashes (nested_jax/data/identity.py) in summary.json and metrics.jsonl. Runs
from before there were any say nothing: they are "not recorded", which is said beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

VALID_TEXT = "valid_text_sha256"
TRAIN_ORDER = "train_order_sha256"
ITEMS = "items_sha256"  # of a task's result, see items.py
WHAT = {
    VALID_TEXT: "scored on other text",
    TRAIN_ORDER: "trained on other rows, or in another order",
    ITEMS: "asked other items",
}


class Named(NamedTuple):
    """A run, and what its summary or one of its evaluations says."""

    name: str
    record: Mapping[str, Any]


def odd_ones(runs: Sequence[Named], field: str) -> dict[str, str]:
    """Return why runs do not belong to the others, by name; those that most agree with do.

    Of as many the first ones count. Runs that have not recorded the field are not among them.
    """
    groups: dict[str, list[str]] = {}
    for run in runs:
        if run.record.get(field):
            groups.setdefault(run.record[field], []).append(run.name)
    if len(groups) < 2:
        return {}
    kept = max(groups, key=lambda value: len(groups[value]))
    return {
        name: f"{WHAT[field]} than {groups[kept][0]}: {field} {value[:12]} for {kept[:12]}"
        for value, names in groups.items()
        for name in names
        if value != kept
    }


def require_same(flag: str, runs: Sequence[Named], field: str) -> None:
    """Raise for the first run that differs from the others, naming both and the hash."""
    for name, why in odd_ones(runs, field).items():
        raise ValueError(f"{flag}={name!r}: {why}; these results are not comparable")


def training_lines(runs: Sequence[Named]) -> list[str]:
    """Return which runs were not trained on the same rows in the same order, or do not say."""
    lines = [f"{name}: {why}" for name, why in odd_ones(runs, TRAIN_ORDER).items()]
    old = not_recorded(runs, TRAIN_ORDER)
    return lines + ([f"order of training not recorded: {', '.join(old)}"] if old else [])


def not_recorded(runs: Sequence[Named], field: str) -> list[str]:
    """Return the names of runs from before the field was recorded."""
    return [run.name for run in runs if not run.record.get(field)]
