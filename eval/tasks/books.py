"""Whole books: loss by position, ``python -m eval books --checkpoint runs/NAME``.

Each book is one stream of --context-tokens tokens from a fresh state. The loss is reported over
bins of positions that double in width, and over the last quarter: a memory that works makes later
tokens cheaper. With --memorize the inner loop runs while reading (a token is scored first).
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
from eval.core.memory import memorizer_of
from eval.core.stats import mean_stderr
from eval.core.subject import Subject
from eval.tasks.perplexity import (
    SEGMENTS,
    SPLIT_FLAG,
    document_items,
    documents,
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
    length, root = context_tokens(subject, flags.context_tokens), data_root(flags)
    memorizer = memorizer_of(subject, flags)
    texts = documents(root, flags.segment, flags.split)
    if flags.max_samples:
        texts = itertools.islice(texts, flags.max_samples)
    docs = tokenized(subject, texts, 0, length)
    base = streams(subject, docs, None)
    learned = streams(subject, docs, memorizer) if memorizer is not None else None
    edges = bins(max(len(tokens) for _, tokens in docs))
    metrics: dict[str, dict[str, Any]] = {}
    for name, low, high in (("all", 0, edges[-1]), ("last_quarter", edges[-1] * 3 // 4, edges[-1])):
        metrics[name] = both(subject, docs, base, learned, low, high)
    for low, high in itertools.pairwise(edges):
        metrics[f"{low}-{high}"] = both(subject, docs, base, learned, low, high)
    items = document_items("books", docs, base, learned)
    return Findings(metrics, items, stream_report(memorizer))


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
    """Draw the loss of each bin of positions."""
    bins = {name: group for name, group in found.metrics.items() if "-" in name}
    at = [max(1, sum(map(int, name.split("-"))) // 2) for name in bins]
    series = {"baseline": (at, [group["loss"] for group in bins.values()])}
    if found.memorize is not None:
        series["memorized"] = (at, [group["memorized"]["loss"] for group in bins.values()])
    labels = {"title": "Loss by position", "x": "token of the book", "y": "nats per token"}
    return [plots.lines(folder / "books.png", series, **labels, log_x=True)]


FLAGS = (
    flag("--context-tokens", 0, "of a book (0: 8192, or what the model holds)", least=0),
    SPLIT_FLAG,
    flag("--segment", "literary_novels", "where the texts come from", choices=SEGMENTS),
)
HELP = "whole books: loss by position"
TASK = Task("books", HELP, __doc__, FLAGS, evaluate, draw)
