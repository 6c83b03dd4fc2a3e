"""Continual learning over segments: ``python -m eval continual --checkpoint runs/NAME``.

Stages are the checkpoints of one run or of several, in the order of --checkpoint and --then, each
scored on every segment (held-out text, fast weights unwritten). With one checkpoint the stages are
the segments themselves: the training text of one after the other is written into the memories of
one stream, and after each the held-out text of all segments is scored from the memories alone.

matrix[i][j] is the loss of segment j after stage i; in a stream row 0 is before anything was
written. forgetting: loss at the end minus the lowest one before. backward_transfer: loss at the end
minus the loss right after the segment's own stage (below 0 is better). forward_transfer: loss
before the segment's own stage minus that of the first row (below 0: earlier segments helped).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval import memory, plots
from eval.cli import Findings, Task, data_root, run_task
from eval.memory import Memories, Memorizer
from eval.perplexity import SEGMENTS, choose_segments, documents, tokenized
from eval.requests import Start
from eval.subject import Subject, load_subject, parse_mesh
from nested_jax.config import require

Docs = list[tuple[str, list[int]]]


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--then", type=Path, action="append", default=[], help="a later checkpoint")
    parser.add_argument("--segments", default="all", help=f"all, or some of {', '.join(SEGMENTS)}")
    parser.add_argument("--write-tokens", type=int, default=4096, help="of a segment, in a stream")
    parser.add_argument("--score-tokens", type=int, default=4096, help="of a segment, held out")
    parser.add_argument("--doc-tokens", type=int, default=512, help="of a held-out document")


def evaluate(subject: Subject, flags: argparse.Namespace) -> Findings:
    names, root = choose_segments(flags.segments), data_root(flags)
    for name in ("write_tokens", "score_tokens", "doc_tokens"):
        value = getattr(flags, name)
        require(value >= 1, f"--{name.replace('_', '-')}", value, "wants at least 1 token")
    later = [load_later(path, subject, flags) for path in flags.then]
    held_out = {
        n: tokenized(subject, documents(root, n, "test"), flags.score_tokens, flags.doc_tokens)
        for n in names
    }
    report = None
    if later:
        stages = [f"{s.name}@{s.step}" for s in (subject, *later)]
        rows = [score(s, held_out, None) for s in (subject, *later)]
    else:
        stages = ["before", *names]
        options = memory.from_flags(flags)
        memorizer = Memorizer(subject, options)
        rows = stream(subject, memorizer, held_out, flags)
        report = memorizer.report()
    matrix = np.asarray(rows)
    metrics = summarize(matrix, names, first=1 if not later else 0)
    metrics["matrix"] = {"stages": stages, "segments": names, "loss": matrix.tolist()}
    items = [
        {"id": f"{stage}/{n}", "group": stage, "loss": float(matrix[i, j])}
        for i, stage in enumerate(stages)
        for j, n in enumerate(names)
    ]
    return Findings(metrics, items, report, lambda f: draw(f, matrix, stages, names))


def load_later(path: Path, first: Subject, flags: argparse.Namespace) -> Subject:
    """Load a later stage.

    Raises:
      ValueError: its tokenizer is another one; losses a token could not be compared.
    """
    found = load_subject(
        path,
        mesh=parse_mesh(flags.mesh),
        batch_size=flags.batch_size,
        batch_tokens=flags.batch_tokens,
    )
    same = found.tokenizer.hash == first.tokenizer.hash
    require(same, "--then", str(path), f"has another tokenizer than {first.name}")
    return found


def score(subject: Subject, held_out: dict[str, Docs], start: Start | None) -> list[float]:
    """Return the loss of every segment."""
    losses = []
    for docs in held_out.values():
        texts = [tokens for _, tokens in docs]
        nats = subject.scorer.rolling(texts, subject.tokenizer.eos_id, start=start)
        losses.append(float(np.concatenate(nats).mean(dtype=np.float64)))
    return losses


def stream(
    subject: Subject, memorizer: Memorizer, held_out: dict[str, Docs], flags: argparse.Namespace
) -> list[list[float]]:
    """Write one segment after the other; score all segments before, and after each."""
    rows, state = [score(subject, held_out, None)], None
    for name in held_out:
        root = data_root(flags)
        docs = tokenized(subject, documents(root, name, "train"), flags.write_tokens, 0)
        for _, tokens in docs:
            limit = subject.reader.limit or len(tokens)
            for at in range(0, len(tokens), limit):
                state = memorizer.memorize([tokens[at : at + limit]], 1, state)
        start = Memories(memorizer, state) if state is not None else None
        rows.append(score(subject, held_out, start))
    return rows


def summarize(matrix: np.ndarray, names: Sequence[str], first: int) -> dict[str, dict[str, Any]]:
    """Return forgetting and transfer; row ``first + j`` is the stage of segment j."""
    found: dict[str, dict[str, Any]] = {}
    for j, name in enumerate(names):
        own = first + j
        numbers = {
            "loss_first": float(matrix[0, j]),
            "loss_last": float(matrix[-1, j]),
            "forgetting": float(matrix[-1, j] - matrix[:, j].min()),
        }
        if own < len(matrix):
            numbers["backward_transfer"] = float(matrix[-1, j] - matrix[own, j])
            numbers["forward_transfer"] = float(matrix[max(own - 1, 0), j] - matrix[0, j])
        found[name] = numbers
    mean = {k: float(np.mean([g[k] for g in found.values() if k in g])) for k in found[names[0]]}
    return {"mean": mean, **found}


def draw(
    folder: Path, matrix: np.ndarray, stages: Sequence[str], names: Sequence[str]
) -> list[Path]:
    at = list(range(len(stages)))
    series = {n: (at, matrix[:, j].tolist()) for j, n in enumerate(names)}
    curve = plots.lines(
        folder / "continual_forgetting.png",
        series,
        title="Held-out loss by stage",
        x="stage",
        y="nats a token",
    )
    table = plots.heat_map(
        folder / "continual_matrix.png",
        matrix,
        stages,
        names,
        title="Held-out loss",
        x="segment",
        y="after stage",
    )
    return [curve, table]


def main(arguments: list[str]) -> int:
    return run_task(TASK, arguments)


TASK = Task("continual", __doc__, add_flags, evaluate)
