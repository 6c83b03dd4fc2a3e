"""Needles in a haystack: ``python -m eval niah --checkpoint runs/NAME``.

Variants: s1 (noise, number), s2 (essay, number), s3 (essay, uuid), mk (4 keys, one asked for), mq
(4 keys, all asked for), mv (4 values of one key). A prompt has exactly the stated tokens, question
included. accuracy: the model writes the value (all of them, for mv and mq), exactly and first;
contains: the value stands anywhere in what it writes (RULER's score); rank1: the value is likelier
than 9 others of its form, where chance is 0.1. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eval.core import plots
from eval.core.cli import Findings, Task, data_root, with_memorized
from eval.core.flags import choose, flag, parse_lengths
from eval.core.memorize.write import Memorizer, memorizer_of
from eval.core.requests import Request, Start
from eval.core.stats import wilson
from eval.core.subject import Subject
from eval.tasks.needles import (
    HAYSTACKS,
    KINDS,
    Haystack,
    NeedleItem,
    describe,
    make_item,
    needle_words,
)

SUITE = [name for name in KINDS if name != "passkey"]


def evaluate(subject: Subject, flags: argparse.Namespace) -> Findings:
    return find_needles(subject, flags, choose(flags.variants, SUITE, "--variants"))


def find_needles(subject: Subject, flags: argparse.Namespace, names: Sequence[str]) -> Findings:
    return ask_at_lengths(subject, flags, names, partial(make_items, subject, flags))


def ask_at_lengths(
    subject: Subject,
    flags: argparse.Namespace,
    names: Sequence[str],
    make: Callable[[str, int, int], list[NeedleItem]],
) -> Findings:
    """Run variants at every length.

    `make` gives the items of (variant, tokens, samples).
    """
    lengths = parse_lengths(flags.context_lengths)
    samples = flags.max_samples or flags.samples_per_length
    for length in lengths:
        subject.scorer.check(length)
        for name in names:  # what is too short for one of them is said before any is asked
            make(name, length, 1)
    memorizer = memorizer_of(subject, flags)
    metrics: dict[str, dict[str, Any]] = {}
    kept: list[dict[str, Any]] = []
    for name in names:
        for length in lengths:
            items = make(name, length, samples)
            group = f"{name}@{length}"
            base = answer(subject, items, flags.max_new_tokens)
            after = None
            if memorizer is not None:
                after = answer_memorized(subject, memorizer, items, flags.max_new_tokens)
            metrics[group] = with_memorized(
                summarize(base), summarize(after) if after is not None else None
            )
            for i, item in enumerate(items):
                row = {**describe(item), "group": group, **base[i]}
                kept.append(row if after is None else {**row, "memorized": after[i]})
    report = memorizer.report() if memorizer is not None else None
    return Findings(metrics, kept, report)


def make_items(
    subject: Subject, flags: argparse.Namespace, name: str, length: int, samples: int
) -> list[NeedleItem]:
    root = data_root(flags)
    source = KINDS[name].haystack if flags.haystack == "auto" else flags.haystack
    hay = Haystack(subject.tokenizer, source, root, length)
    words = needle_words(root)
    return [
        make_item(name, subject.tokenizer, hay, words, length, i, samples, flags.seed)
        for i in range(samples)
    ]


def answer_memorized(
    subject: Subject, memorizer: Memorizer, items: Sequence[NeedleItem], max_new: int
) -> list[dict[str, Any]]:
    """Answer each item from memories that its own text was written into."""
    texts = [memorized_text(subject, memorizer, item) for item in items]
    rows: dict[int, dict[str, Any]] = {}
    for part, start in memorizer.batches(texts, subject.scorer):
        found = answer(subject, [items[i] for i in part], max_new, start)
        rows |= dict(zip(part, found, strict=True))
    return [rows[i] for i in range(len(items))]


def memorized_text(subject: Subject, memorizer: Memorizer, item: NeedleItem) -> tuple[int, ...]:
    if not memorizer.options.use_correct_answer:
        return item.context
    query = item.queries[0]
    return item.context + query.tokens + tuple(subject.tokenizer.encode(f" {query.answers[0]}"))


def answer(
    subject: Subject, items: Sequence[NeedleItem], max_new: int, start: Start | None = None
) -> list[dict[str, Any]]:
    """Ask every query of every item: generate, and rank the first value among wrong ones.

    With `start`, item i begins in its row i.
    """
    asked = [(i, q) for i, item in enumerate(items) for q in item.queries]
    encode = subject.tokenizer.encode
    prompts = [items[i].context + q.tokens for i, q in asked]
    rows = [i for i, _ in asked]
    longest = max(len(encode(f" {', '.join(q.answers)}.")) for _, q in asked)
    written = subject.scorer.generate_until(
        prompts, subject.tokenizer, ["\n"], max_new or longest + 4, start=start, rows=rows
    )
    requests, owners = [], []
    for j, (prompt, (_, query)) in enumerate(zip(prompts, asked, strict=True)):
        for value in (query.answers[0], *query.wrong):
            requests.append(Request(tuple(prompt), tuple(encode(f" {value}"))))
            owners.append(j)
    own_rows = [rows[j] for j in owners]
    scores = subject.scorer.loglikelihood(requests, start, own_rows)
    sums: list[list[float]] = [[] for _ in asked]
    for j, score in zip(owners, scores, strict=True):
        sums[j].append(score.logprob)
    found: list[list[dict[str, Any]]] = [[] for _ in items]
    for (i, query), text, values in zip(asked, written, sums, strict=True):
        found[i].append(judge(text, query.answers, np.asarray(values)))
    return [join(parts) for parts in found]


def judge(text: str, answers: Sequence[str], sums: np.ndarray) -> dict[str, Any]:
    """Return how one query was answered; `sums` has the right value first.

    Values that are exactly as likely as the right one share the first rank with it: a model that
    tells nothing apart is at chance.
    """
    wanted = [word for answer in answers for word in words_of(answer)]
    first = words_of(text)[: len(wanted)]
    better, ties = int((sums > sums[0]).sum()), int((sums == sums[0]).sum())
    return {
        "text": text,
        "answers": list(answers),
        "correct": first == wanted if len(answers) == 1 else set(first) == set(wanted),
        "contains": sum(a in text for a in answers) / len(answers),
        "rank": better + 1,
        "rank1_share": 0.0 if better else 1 / ties,
        "choices": len(sums),
        "logprob": float(sums[0]),
        "margin": float(sums[0] - sums[1:].max()),
    }


def words_of(text: str) -> list[str]:
    return re.split(r"[^0-9a-zA-Z-]+", text.strip())


def join(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return an item of one or several queries: right where all of them are."""
    if len(parts) == 1:
        return parts[0]
    averaged = ("contains", "logprob", "margin", "rank1_share")
    mean = {k: float(np.mean([p[k] for p in parts])) for k in averaged}
    return {
        "text": [p["text"] for p in parts],
        "answers": [p["answers"] for p in parts],
        "correct": all(p["correct"] for p in parts),
        "rank": max(p["rank"] for p in parts),
        "choices": parts[0]["choices"],
        **mean,
    }


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    count = len(rows)
    hits = sum(row["correct"] for row in rows)
    first = [row["rank1_share"] for row in rows]
    return {
        "accuracy": hits / count,
        "accuracy_interval": wilson(hits, count),
        "contains": sum(row["contains"] for row in rows) / count,
        "rank1": sum(first) / count,
        "rank1_interval": wilson(sum(first), count),
        "margin": sum(row["margin"] for row in rows) / count,
        "rank1_chance": sum(1 / row["choices"] for row in rows) / count,
        "n": count,
    }


def draw(task: str, folder: Path, found: Findings) -> list[Path]:
    """Draw, for each variant, accuracy over length and depth."""
    paths, rows = [], found.items
    bands = np.linspace(0, 1, 6)
    lengths = list(dict.fromkeys(row["tokens"] for row in rows))
    for name in dict.fromkeys(row["group"].rpartition("@")[0] for row in rows):
        table = np.full((5, len(lengths)), np.nan)
        for column, length in enumerate(lengths):
            here = [r for r in rows if r["group"] == f"{name}@{length}"]
            for band in range(5):
                hits = [r["correct"] for r in here if bands[band] <= r["depth"] < bands[band + 1]]
                table[band, column] = np.mean(hits) if hits else np.nan
        labels = [f"{int(100 * a)}-{int(100 * b)} %" for a, b in itertools.pairwise(bands)]
        paths.append(
            plots.heat_map(
                folder / f"{task}_{name}.png",
                table,
                labels,
                [str(n) for n in lengths],
                title=f"{name}: answered exactly",
                x="tokens",
                y="depth",
                limits=(0.0, 1.0),
            )
        )
    return paths


LENGTH_FLAGS = (
    flag("--context-lengths", "512,1024", "tokens of a prompt"),
    flag("--samples-per-length", 100, "prompts of each", least=1),
    flag("--haystack", "auto", "what needles are hidden in", choices=("auto", *HAYSTACKS)),
    flag("--max-new-tokens", 0, "0: what the answers need", least=0),
)
FLAGS = (*LENGTH_FLAGS, flag("--variants", "all", f"all, or some of {', '.join(SUITE)}"))
HELP = "needles in a haystack: S-NIAH, multi-key, -value, -query"
TASK = Task("niah", HELP, __doc__, FLAGS, evaluate, partial(draw, "niah"))
