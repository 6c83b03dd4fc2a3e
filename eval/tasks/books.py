"""Whole books: loss by position, ``python -m eval books --checkpoint runs/NAME``.

Each text of --segments is one stream of --context-tokens tokens from a fresh state. The loss is
reported over bins of positions that double in width, and over the last quarter: a memory that works
makes later tokens cheaper. Of several segments the groups begin with their names. With --memorize
the inner loop runs while reading (a token is scored first).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.core import plots
from eval.core.cli import Findings, Task, data_root, with_memorized
from eval.core.flags import flag
from eval.core.memorize.write import memorizer_of
from eval.core.stats import mean_stderr
from eval.core.subject import Subject
from eval.core.texts import READING_FLAGS, SPLIT_FLAG, open_segments
from eval.tasks.perplexity import (
    document_items,
    stream_report,
    streams,
    summarize,
    tokenized,
)
from nested_jax.errors import require

FIRST_BIN = 64  # tokens


def context_tokens(subject: Subject, wanted: int) -> int:
    """Return the tokens of a stream.

    Raises:
      ValueError: more than the model can hold.
    """
    limit = subject.reader.limit
    require(
        limit is None or wanted <= limit,
        "--context-tokens",
        wanted,
        f"full attention of {subject.name} holds {limit} tokens (model.max_len)",
    )
    return wanted or min(8192, limit or 8192)


def evaluate(subject: Subject, flags: argparse.Namespace) -> Findings:
    length = context_tokens(subject, flags.context_tokens)
    segments = open_segments(flags, data_root(flags), subject.cfg, (flags.split,))
    memorizer = memorizer_of(subject, flags)
    metrics: dict[str, dict[str, Any]] = {}
    items: list[dict[str, Any]] = []
    for name, read in segments:
        texts = itertools.islice(read(flags.split), flags.max_samples or None)
        docs = tokenized(subject, texts, 0, length)
        base = streams(subject, docs, None)
        learned = streams(subject, docs, memorizer) if memorizer is not None else None
        before = f"{name} " if len(segments) > 1 else ""
        for part, low, high in parts(max(len(tokens) for _, tokens in docs)):
            metrics[before + part] = both(subject, docs, base, learned, low, high)
        items += document_items(before.strip() or "books", docs, base, learned)
    return Findings(metrics, items, stream_report(memorizer))


def parts(longest: int) -> list[tuple[str, int, int]]:
    """Return what is reported of positions: all, the last quarter, and every bin."""
    edges = bins(longest)
    found = [("all", 0, longest), ("last_quarter", longest * 3 // 4, longest)]
    return found + [(f"{low}-{high}", low, high) for low, high in itertools.pairwise(edges)]


def bins(longest: int) -> list[int]:
    """Return the edges 0, 64, 128, 256, ..., the longest text."""
    edges = [0]
    width = FIRST_BIN
    while width < longest:
        edges.append(width)
        width *= 2
    return [*edges, longest]


def both(
    subject: Subject,
    docs: Sequence[tuple[str, list[int]]],
    base: Sequence[np.ndarray],
    learned: Sequence[np.ndarray] | None,
    low: int,
    high: int,
) -> dict[str, Any]:
    """Return the numbers of positions `low` to `high`, with the books as the unit of the error."""
    kept = [i for i, (_, tokens) in enumerate(docs) if len(tokens) > low]
    part = [(docs[i][0], docs[i][1][low:high]) for i in kept]

    def numbers(nats: Sequence[np.ndarray]) -> dict[str, Any]:
        cut = [nats[i][low:high] for i in kept]
        found = summarize(subject, part, cut)
        found["loss_stderr"] = mean_stderr([float(x.mean()) for x in cut])[1]
        return found

    return with_memorized(numbers(base), numbers(learned) if learned is not None else None)


def draw(folder: Path, found: Findings) -> list[Path]:
    """Draw the loss of each bin of positions, a line for each segment."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for name, group in found.metrics.items():
        segment, _, part = name.rpartition(" ")
        low, dash, high = part.partition("-")
        if not dash:
            continue
        for key, numbers in (("baseline", group), ("memorized", group.get("memorized"))):
            if numbers is not None:
                at, losses = series.setdefault(f"{segment} {key}".strip(), ([], []))
                at.append(max(1, (int(low) + int(high)) // 2))
                losses.append(numbers["loss"])
    labels = {"title": "Loss by position", "x": "token of the book", "y": "nats per token"}
    return [plots.lines(folder / "books.png", series, **labels, log_x=True)]


FLAGS = (
    flag("--context-tokens", 0, "of a book (0: 8192, or what the model holds)", least=0),
    SPLIT_FLAG,
    flag("--segments", "literary_novels", "names and places of text: docs/evaluation.md"),
    *READING_FLAGS,
)
HELP = "whole books: loss by position"
TASK = Task("books", HELP, __doc__, FLAGS, evaluate, draw)
