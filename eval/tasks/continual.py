"""Continual learning over segments: ``python -m eval continual --checkpoint runs/NAME``.

Stages are the checkpoints of one run or of several, in the order of --checkpoint and --then, each
scored on every segment's held-out text: fast weights unwritten, and with --memorize learning while
reading beside it. With one checkpoint the stages are the segments themselves: the training text of
one after the other is written into the memories of one stream, and after each the held-out text of
all segments is scored from the memories alone.

matrix[i][j] is the loss of segment j after stage i. Checkpoints as many as segments are the stages
of those segments in their order; one more, and the first is from before them, as row 0 of a stream
is. Of any other number no stage is a segment's own.

forgetting: loss at the end minus the lowest one before, of segments whose stage is not the last.
backward_transfer: of those, the loss at the end minus the one right after their own stage (below 0
is better). forward_transfer: loss before the segment's own stage minus that of the first row, of
segments that come after another (below 0: earlier segments helped).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.core import plots
from eval.core.cli import Findings, Task, data_root, subject_of, with_memorized
from eval.core.flags import flag
from eval.core.items import ASKED, item_hash
from eval.core.memorize.options import MemorizeOptions, memorize_options
from eval.core.memorize.write import Memories, Memorizer
from eval.core.requests import Start
from eval.core.subject import Subject
from eval.core.texts import TEXT_FLAGS, Segment, open_segments
from eval.tasks.perplexity import tokenized
from nested_jax.errors import require

Docs = list[tuple[str, list[int]]]


def evaluate(subject: Subject, flags: argparse.Namespace) -> Findings:
    splits = ("test",) if flags.then else ("test", "train")
    segments = open_segments(flags, data_root(flags), subject.cfg, splits)
    names = [segment.name for segment in segments]
    later = [load_later(path, subject, flags) for path in flags.then]
    held_out = {
        n: tokenized(subject, read("test"), flags.score_tokens, flags.doc_tokens)
        for n, read in segments
    }
    options = memorize_options(flags)
    learned, report = None, None
    if later:
        subjects = (subject, *later)
        stages = [f"{s.name}@{s.step}" for s in subjects]
        matrix = np.asarray([score(s, held_out, None) for s in subjects])
        if options.on:
            learned, report = while_reading(subjects, options, held_out)
    else:
        stages = ["before", *names]
        memorizer = Memorizer(subject, options)
        matrix = np.asarray(stream(subject, memorizer, held_out, segments, flags.write_tokens))
        report = memorizer.report()
    metrics = compared(matrix, learned, stages, names)
    items = [
        {
            "id": f"{stage}/{n}",
            "group": stage,
            "loss": float(matrix[i, j]),
            ASKED: item_hash([[int(token) for token in tokens] for _, tokens in held_out[n]]),
        }
        for i, stage in enumerate(stages)
        for j, n in enumerate(names)
    ]
    return Findings(metrics, items, report)


def while_reading(
    subjects: Sequence[Subject], options: MemorizeOptions, held_out: dict[str, Docs]
) -> tuple[np.ndarray, dict[str, Any] | None]:
    """Return the losses of checkpoints that learn while they read, and what the last one wrote.

    Raises:
      NotWrittenError: one of them has memories, and wrote none.
    """
    rows, report = [], None
    for subject in subjects:
        memorizer = Memorizer(subject, options)
        rows.append(score(subject, held_out, None, memorizer))
        report = memorizer.report()
    return np.asarray(rows), report


def compared(
    matrix: np.ndarray, learned: np.ndarray | None, stages: Sequence[str], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the numbers of every segment, those of learning while reading beside them."""
    first = own_stages(len(stages), len(names))
    base = summarize(matrix, names, first)
    after = summarize(learned, names, first) if learned is not None else {}
    metrics = {n: with_memorized(base[n], after.get(n)) for n in base}
    metrics["matrix"] = {"stages": list(stages), "segments": list(names), "loss": matrix.tolist()}
    if learned is not None:
        metrics["matrix"]["memorized"] = {"loss": learned.tolist()}
    return metrics


def own_stages(stages: int, segments: int) -> int | None:
    """Return the row that is the first segment's own stage; None where no stage is a segment's."""
    before = stages - segments
    return before if before in (0, 1) else None


def load_later(path: Path, first: Subject, flags: argparse.Namespace) -> Subject:
    """Load a later stage.

    Raises:
      ValueError: its tokenizer is another one; losses per token could not be compared.
    """
    found = subject_of(flags, path)
    same = found.tokenizer.hash == first.tokenizer.hash
    require(same, "--then", str(path), f"has another tokenizer than {first.name}")
    return found


def score(
    subject: Subject,
    held_out: dict[str, Docs],
    start: Start | None,
    memorizer: Memorizer | None = None,
) -> list[float]:
    """Return the loss of every segment; with a memorizer it learns while it reads."""
    losses, prefix = [], subject.tokenizer.eos_id
    for docs in held_out.values():
        texts = [tokens for _, tokens in docs]
        if memorizer is None:
            nats = subject.scorer.rolling(texts, prefix, start=start)
        else:
            nats = memorizer.rolling(texts, prefix, subject.scorer)
        losses.append(float(np.concatenate(nats).mean(dtype=np.float64)))
    return losses


def stream(
    subject: Subject,
    memorizer: Memorizer,
    held_out: dict[str, Docs],
    segments: Sequence[Segment],
    write_tokens: int,
) -> list[list[float]]:
    """Write one segment after the other; score all segments before, and after each."""
    rows, state = [score(subject, held_out, None)], None
    for segment in segments:
        if not memorizer.available:  # the baseline, to the last bit
            rows.append(rows[0])
            continue
        docs = tokenized(subject, segment.read("train"), write_tokens, 0)
        for _, tokens in docs:
            limit = subject.reader.limit or len(tokens)
            for at in range(0, len(tokens), limit):
                state = memorizer.memorize([tokens[at : at + limit]], 1, state)
        start = Memories(memorizer, state) if state is not None else None
        rows.append(score(subject, held_out, start))
    return rows


def summarize(
    matrix: np.ndarray, names: Sequence[str], first: int | None
) -> dict[str, dict[str, Any]]:
    """Return forgetting and transfer; row ``first + j`` is the stage of segment j."""
    found: dict[str, dict[str, Any]] = {}
    last = len(matrix) - 1
    for j, name in enumerate(names):
        losses = matrix[:, j]
        own = first + j if first is not None else 0
        numbers = {"loss_first": float(losses[0]), "loss_last": float(losses[-1])}
        if own < last:
            numbers["forgetting"] = float(losses[-1] - losses[:-1].min())
        if first is not None and own < last:
            numbers["backward_transfer"] = float(losses[-1] - losses[own])
        if first is not None and own > 1:
            numbers["forward_transfer"] = float(losses[own - 1] - losses[0])
        found[name] = numbers
    keys = dict.fromkeys(k for numbers in found.values() for k in numbers)
    mean = {k: float(np.mean([g[k] for g in found.values() if k in g])) for k in keys}
    return {"mean": mean, **found}


def draw(folder: Path, found: Findings) -> list[Path]:
    table = found.metrics["matrix"]
    stages, names = table["stages"], table["segments"]
    losses = {"": table["loss"]}
    if "memorized" in table:
        losses["_memorized"] = table["memorized"]["loss"]
    paths, at = [], list(range(len(stages)))
    for ending, rows in losses.items():
        how, matrix = ", learning while reading" if ending else "", np.asarray(rows)
        series = {n: (at, matrix[:, j].tolist()) for j, n in enumerate(names)}
        title = f"Held-out loss by stage{how}"
        file = folder / f"continual_forgetting{ending}.png"
        paths.append(plots.lines(file, series, title=title, x="stage", y="nats per token"))
        file, title = folder / f"continual_matrix{ending}.png", f"Held-out loss{how}"
        paths.append(
            plots.heat_map(file, matrix, stages, names, title=title, x="segment", y="after stage")
        )
    return paths


FLAGS = (
    flag("--then", [], "a later checkpoint (repeatable)", type=Path, action="append"),
    *TEXT_FLAGS,
    flag("--write-tokens", 4096, "of a segment, in a stream", least=1),
    flag("--score-tokens", 4096, "of a segment, held out", least=1),
    flag("--doc-tokens", 512, "of a held-out document", least=1),
)
HELP = "loss matrix over segments, forgetting, transfer"
TASK = Task("continual", HELP, __doc__, FLAGS, evaluate, draw)
