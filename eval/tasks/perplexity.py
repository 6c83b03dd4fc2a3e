"""Held-out perplexity by segment: ``python -m eval perplexity --checkpoint runs/NAME``.

Every document is read as one stream from a fresh state, its first token after the document
separator; full attention reads documents longer than it can hold in disjoint windows. loss is in
nats per token, ppl its exponential, bits_per_byte does not depend on the tokenizer. With --memorize
the inner loop runs while reading: a token is scored before the write that it causes.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from eval.core.cli import Findings, Task, data_root, with_memorized
from eval.core.flags import flag
from eval.core.items import ASKED, item_hash
from eval.core.memorize.paths import SEQUENCE
from eval.core.memorize.write import Memorizer, memorizer_of
from eval.core.subject import Subject
from eval.core.texts import SPLIT_FLAG, TEXT_FLAGS, open_segments
from nested_jax.errors import require
from nested_jax.losses import bits_per, perplexity


def tokenized(
    subject: Subject, texts: Iterator[tuple[str, str]], max_tokens: int, doc_tokens: int
) -> list[tuple[str, list[int]]]:
    """Return (id, tokens) of documents until there are `max_tokens` tokens, each cut to its own."""
    found: list[tuple[str, list[int]]] = []
    left = max_tokens or math.inf
    for name, text in texts:
        # No token has more than some 30 bytes: a book is not encoded whole for its first page.
        cut = text[: 40 * doc_tokens] if doc_tokens else text
        tokens = subject.tokenizer.encode(cut)[: doc_tokens or None]
        tokens = tokens[: int(min(left, len(tokens)))]
        if tokens:
            found.append((name, tokens))
        left -= len(tokens)
        if left <= 0:
            break
    require(len(found) > 0, "data files", 0, "tokens in the texts; wants one at least")
    return found


def evaluate(subject: Subject, flags: argparse.Namespace) -> Findings:
    segments = open_segments(flags, data_root(flags), subject.cfg, (flags.split,))
    memorizer = memorizer_of(subject, flags)
    metrics: dict[str, dict[str, Any]] = {}
    items: list[dict[str, Any]] = []
    for name, read in segments:
        texts = itertools.islice(read(flags.split), flags.max_samples or None)
        docs = tokenized(subject, texts, flags.max_tokens, flags.doc_tokens)
        base = streams(subject, docs, None)
        learned = streams(subject, docs, memorizer) if memorizer is not None else None
        after = None if learned is None else summarize(subject, docs, learned)
        metrics[name] = with_memorized(summarize(subject, docs, base), after)
        items += document_items(name, docs, base, learned)
    return Findings(metrics, items, stream_report(memorizer))


def streams(
    subject: Subject, docs: Sequence[tuple[str, list[int]]], memorizer: Memorizer | None
) -> list[np.ndarray]:
    """Return the nats of every token of each document, learning while reading or not."""
    texts, prefix = [tokens for _, tokens in docs], subject.tokenizer.eos_id
    if memorizer is None:
        return subject.scorer.rolling(texts, prefix)
    return memorizer.rolling(texts, prefix, subject.scorer)


def stream_report(memorizer: Memorizer | None) -> dict[str, Any] | None:
    """Return the report of writes while reading; the sequence memory is written in both runs."""
    if memorizer is None:
        return None
    report = memorizer.report()
    both = [name for name in memorizer.paths if name in SEQUENCE]
    if both:
        report["written_in_baseline_too"] = both
    return report


def summarize(
    subject: Subject, docs: Sequence[tuple[str, list[int]]], nats: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Return loss, perplexity and bits per byte of documents."""
    lengths = subject.tokenizer.piece_byte_lengths
    count = sum(len(tokens) for _, tokens in docs)
    size = int(sum(lengths[tokens].sum() for _, tokens in docs))
    total = float(sum(x.sum(dtype=np.float64) for x in nats))
    loss = total / count
    return {
        "loss": loss,
        "ppl": perplexity(loss),
        "bits_per_byte": bits_per(total, size),
        "tokens": count,
        "bytes": size,
        "n": len(docs),
    }


def document_items(
    group: str,
    docs: Sequence[tuple[str, list[int]]],
    base: Sequence[np.ndarray],
    learned: Sequence[np.ndarray] | None,
) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    for i, (name, tokens) in enumerate(docs):
        item: dict[str, Any] = {"id": f"{group}/{name}", "group": group, "tokens": len(tokens)}
        item[ASKED] = item_hash([int(token) for token in tokens])
        item["loss"] = float(base[i].mean())
        if learned is not None:
            item["memorized"] = {"loss": float(learned[i].mean())}
        items.append(item)
    return items


FLAGS = (
    *TEXT_FLAGS,
    SPLIT_FLAG,
    flag("--max-tokens", 50_000, "per segment; 0 is all", least=0),
    flag("--doc-tokens", 8192, "of a document; 0 is all", least=0),
)
HELP = "held-out perplexity and bits per byte by segment"
TASK = Task("perplexity", HELP, __doc__, FLAGS, evaluate)
