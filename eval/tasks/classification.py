"""Class-incremental intents: ``python -m eval classification --checkpoint runs/NAME``.

Labels come in increments (seeded groups of --task-size intents, or the domains of CLINC150). The
training examples of each increment are shown once, then the test examples of all increments so far
are classified among all labels seen so far. Three learners, on the same examples: `memory` writes
the examples into the memories, `in_context` has the last ones that fit --context-tokens in its
prompt, `frozen` sees none. --segments takes labelled texts
of your own. matrix[i][j] is the accuracy on increment j after increment i.
plasticity: accuracy right after an increment; stability: what is left of it at the end, as a share;
forgetting: best accuracy before the end minus the one at the end.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.core import plots
from eval.core.cli import Findings, Task, data_root
from eval.core.datasets import DataRoot
from eval.core.flags import choose, flag
from eval.core.items import ASKED, item_hash
from eval.core.memorize.options import memorize_options
from eval.core.memorize.write import Memories, Memorizer
from eval.core.requests import Request, Start, encode_pair
from eval.core.subject import Subject
from eval.core.texts import Reading, labelled
from nested_jax.data.records import checked_row
from nested_jax.data.splits import HELD_OUT
from nested_jax.errors import require

DATASETS = {"clinc150": "continual/clinc150", "banking77": "continual/banking77"}
LEARNERS = ("memory", "in_context", "frozen")


@dataclass(frozen=True)
class Increment:
    labels: list[str]
    train: list[tuple[str, str]]  # text, label
    test: list[tuple[str, str]]


def evaluate(subject: Subject, flags: argparse.Namespace) -> Findings:
    learners = choose(flags.learners, LEARNERS, "--learners")
    increments = load_increments(data_root(flags), flags)
    memorizer = Memorizer(subject, memorize_options(flags)) if "memory" in learners else None
    metrics: dict[str, dict[str, Any]] = {}
    items: list[dict[str, Any]] = []
    for name in learners:
        matrix, rows = learn(subject, increments, name, memorizer, flags.context_tokens)
        metrics[name] = summarize(matrix, increments)
        items += [{**row, "id": f"{name}/{row['id']}", "group": name} for row in rows]
    report = memorizer.report() if memorizer is not None else None
    return Findings(metrics, items, report)


def load_increments(root: DataRoot, flags: argparse.Namespace) -> list[Increment]:
    """Return the increments of a data set, the same for every checkpoint.

    Raises:
      ValueError: domains where there are none.
    """
    domains = flags.increments == "domains"
    right = not domains or bool(flags.segments) or flags.dataset == "clinc150"
    require(right, "--increments", flags.increments, "only clinc150 and --segments have domains")
    rng = np.random.default_rng(flags.seed)
    name = f"--segments {flags.segments}" if flags.segments else f"--dataset {flags.dataset}"
    train, groups = examples(rows_of(root, flags, "train"), name, rng)
    test, _ = examples(rows_of(root, flags, "test"), name, rng)
    missing = ", ".join(sorted(train.keys() - test.keys()))
    require(not missing, f"{name}, test examples of", missing, "there are none")
    labels = [str(x) for x in rng.permutation(sorted(train))]
    size = flags.task_size
    parts = [labels[i : i + size] for i in range(0, len(labels), size)]
    if domains:
        named = sorted({groups[x] for x in labels})
        parts = [[x for x in labels if groups[x] == d] for d in named]
    found = []
    for part in parts[: flags.tasks or None]:
        shown = [(t, x) for x in part for t in train[x][: flags.train_per_label]]
        order = rng.permutation(len(shown))
        asked = [(t, x) for x in part for t in test[x][: flags.eval_per_label]]
        found.append(Increment(part, [shown[i] for i in order], asked))
    return found


def rows_of(
    root: DataRoot, flags: argparse.Namespace, split: str
) -> Iterator[tuple[str, str, str]]:
    """Yield (text, label, domain) of a split; each of --segments is a domain."""
    if not flags.segments:
        file = f"{DATASETS[flags.dataset]}/{split}.jsonl.gz"
        for where, row in root.rows(file, text=str, intent=str):
            domain = checked_row({"domain": "", **row}, where, domain=str)["domain"]
            yield row["text"], row["intent"], domain
        return
    reading = Reading(flags.text_key, "file", flags.held_out)
    for word in flags.segments.split(","):
        name, _, place = word.strip().rpartition("=")
        for text, label in labelled(place, reading, flags.label_key, split):
            yield text, label, name or Path(place).name.partition(".")[0]


def examples(
    rows: Iterable[tuple[str, str, str]], name: str, rng: np.random.Generator
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the texts of each intent, shuffled, and the domain of each; out of scope left out."""
    texts: dict[str, list[str]] = defaultdict(list)
    groups: dict[str, str] = {}
    for text, label, domain in rows:
        if label != "oos":
            texts[label].append(text)
            require(
                groups.setdefault(label, domain) == domain,
                name,
                label,
                f"stands in two domains, {groups[label]} and {domain}",
            )
    require(len(texts) > 0, name, "no row", "has no label but oos, out of scope")
    return {x: [t[i] for i in rng.permutation(len(t))] for x, t in texts.items()}, groups


def prompt(text: str) -> str:
    return f"\nText: {text}\nIntent:"


def answer(label: str) -> str:
    return f" {label.replace('_', ' ')}"


def learn(
    subject: Subject,
    increments: Sequence[Increment],
    learner: str,
    memorizer: Memorizer | None,
    context_tokens: int,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Show the increments to one learner; return the accuracy matrix, and every answer."""
    matrix = np.full((len(increments), len(increments)), np.nan)
    rows: list[dict[str, Any]] = []
    shown: list[int] = []
    state: Any = None
    for i, increment in enumerate(increments):
        text = "".join(prompt(t) + answer(x) for t, x in increment.train)
        tokens = subject.tokenizer.encode(text)
        shown += tokens
        start: Start | None = None
        before: tuple[int, ...] = ()
        if learner == "memory":
            assert memorizer is not None
            state = memorizer.memorize([tokens], 1, state)
            start = Memories(memorizer, state)
        elif learner == "in_context":
            before = tuple(shown[-context_tokens:])
        labels = [x for seen in increments[: i + 1] for x in seen.labels]
        for j, seen in enumerate(increments[: i + 1]):
            guesses = classify(subject, seen.test, labels, before, start)
            hits = [g == x for g, (_, x) in zip(guesses, seen.test, strict=True)]
            matrix[i, j] = np.mean(hits)
            rows += [
                {
                    "id": f"{i}/{j}/{k}",
                    "label": x,
                    "guess": guesses[k],
                    "correct": hits[k],
                    ASKED: item_hash(text, t, x, labels),
                }
                for k, (t, x) in enumerate(seen.test)
            ]
    return matrix, rows


def classify(
    subject: Subject,
    tests: Sequence[tuple[str, str]],
    labels: Sequence[str],
    before: tuple[int, ...],
    start: Start | None,
) -> list[str]:
    """Return the likeliest label of each text, by mean log-likelihood per token."""
    requests = []
    for text, _ in tests:
        for label in labels:
            pair = encode_pair(subject.tokenizer, prompt(text), answer(label))
            requests.append(Request(before + pair.context, pair.continuation))
    scores = subject.scorer.loglikelihood(requests, start)
    means = np.asarray([s.logprob / s.tokens for s in scores]).reshape(len(tests), len(labels))
    return [labels[i] for i in means.argmax(axis=1)]


def summarize(matrix: np.ndarray, increments: Sequence[Increment]) -> dict[str, Any]:
    """Return average accuracy, plasticity, stability and forgetting of an accuracy matrix."""
    last, own = matrix[-1], np.diag(matrix)
    earlier = range(len(matrix) - 1)
    drops = [np.nanmax(matrix[:-1, j]) - last[j] for j in earlier]
    kept = [last[j] / own[j] for j in earlier if own[j] > 0]
    return {
        "average_accuracy": float(last.mean()),
        "plasticity": float(own.mean()),
        "stability": float(np.mean(kept)) if kept else 0.0,
        "forgetting": float(np.mean(drops)) if drops else 0.0,
        "chance": 1 / sum(len(x.labels) for x in increments),
        "n": sum(len(x.test) for x in increments),
        "matrix": [[None if np.isnan(v) else float(v) for v in row] for row in matrix],
    }


def draw(folder: Path, found: Findings) -> list[Path]:
    paths = []
    for name, group in found.metrics.items():
        matrix = np.asarray(group["matrix"], float)  # None becomes NaN
        numbers = [str(i + 1) for i in range(len(matrix))]
        labels = {"title": f"Accuracy, {name}", "x": "increment", "y": "after"}
        file = folder / f"classification_{name}.png"
        paths.append(plots.heat_map(file, matrix, numbers, numbers, **labels, limits=(0.0, 1.0)))
    return paths


FLAGS = (
    flag("--dataset", "clinc150", "the intents", choices=tuple(DATASETS)),
    flag("--segments", "", "your own: JSON lines with texts and labels, each a domain"),
    flag("--text-key", "text", "of your rows"),
    flag("--label-key", "intent", "of your rows"),
    flag("--held-out", HELD_OUT, "share of test, where no name decides", least=0.0),
    flag("--increments", "classes", "what comes together", choices=("classes", "domains")),
    flag("--task-size", 5, "labels per increment", least=1),
    flag("--tasks", 4, "increments; 0 is all", least=0),
    flag("--train-per-label", 5, "examples that are shown", least=1),
    flag("--eval-per-label", 5, "examples that are asked", least=1),
    flag("--context-tokens", 512, "of in-context examples", least=1),
    flag("--learners", ",".join(LEARNERS), "all, or some of them"),
)
HELP = "class-incremental intents"
TASK = Task("classification", HELP, __doc__, FLAGS, evaluate, draw)
