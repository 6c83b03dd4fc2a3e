"""Zero-shot tasks: ``python -m eval zeroshot --checkpoint runs/NAME --tasks piqa,hellaswag``.

A choice is scored by the summed log-likelihood of its tokens after the prompt: acc takes the
largest sum, acc_norm the largest sum divided by the choice's length in characters. WinoGrande
scores what follows the blank (partial scoring); LAMBADA's acc asks for the word greedily, and ppl
is a word's. chance is the mean of 1 / choices, and majority the share of the commonest answer.

``--protocol completion`` is how reproductions of GPT-2 score HellaSwag: the raw context, context
and `` ending`` tokenized apart, and acc_norm the largest log-likelihood per token. Numbers of the
two protocols differ by about a point; never compare them. HellaSwag's raw text is in files that
`python -m eval fetch` made; of others the label before the context is taken away, which is exact
for ActivityNet alone (raw: share of questions with raw text).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.core import plots
from eval.core.cli import Findings, Task, data_root, with_memorized
from eval.core.flags import choose, flag
from eval.core.items import ASKED, item_hash
from eval.core.memorize.write import Memorizer, memorizer_of
from eval.core.partial import in_parts
from eval.core.requests import Request, Score, encode_apart, encode_pair
from eval.core.stats import mean_stderr, wilson
from eval.core.subject import Subject
from eval.tasks.zeroshot_files import SETS, Question
from nested_jax.errors import require
from nested_jax.losses import perplexity


class ListTasks(argparse.Action):
    """Show the tasks and stop."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        for name, task in SETS.items():
            print(f"{name:15} {task.kind:8} {task.file:45} {task.form!r}")
        parser.exit(0)


def evaluate(subject: Subject, flags: argparse.Namespace) -> Findings:
    names, root = choose(flags.tasks, SETS, "--tasks"), data_root(flags)
    raw = flags.protocol == "completion"
    for name in names if raw else ():
        want = f"completion is for sets of choices, and {name} is scored by {SETS[name].kind}"
        require(SETS[name].kind == "choice", "--protocol", flags.protocol, want)
    asked = {name: list(SETS[name].questions(root, flags.max_samples, raw)) for name in names}
    memorizer = memorizer_of(subject, flags)
    metrics: dict[str, dict[str, Any]] = {}
    items: list[dict[str, Any]] = []
    for name, questions in asked.items():
        requests = encode(subject, questions, raw)
        if raw:  # the length of a choice is its tokens
            sizes = [[len(r.continuation) for r in group] for group in requests]
            questions = [q._replace(lengths=n) for q, n in zip(questions, sizes, strict=True)]
        rows = judged(subject, flags, name, questions, requests)
        after = None
        if memorizer is not None:
            written = judge(questions, score_memorized(subject, memorizer, questions, requests))
            after = summarize(SETS[name].kind, questions, written)
            for row, more in zip(rows, written, strict=True):
                row["memorized"] = more
        metrics[name] = with_memorized(summarize(SETS[name].kind, questions, rows), after)
        if raw:
            metrics[name]["raw"] = sum(q.raw for q in questions) / len(questions)
        items += [
            {"id": f"{name}/{q.id}", "group": name, ASKED: item_hash(q.pairs, q.gold), **r}
            for q, r in zip(questions, rows, strict=True)
        ]
    report = memorizer.report() if memorizer is not None else None
    return Findings(metrics, items, report)


def encode(
    subject: Subject, questions: Sequence[Question], apart: bool = False
) -> list[list[Request]]:
    how = encode_apart if apart else encode_pair
    return [[how(subject.tokenizer, *pair) for pair in q.pairs] for q in questions]


def judged(
    subject: Subject,
    flags: argparse.Namespace,
    name: str,
    questions: Sequence[Question],
    requests: Sequence[Sequence[Request]],
) -> list[dict[str, Any]]:
    """Return what is kept of each question; a killed evaluation with --out goes on."""

    def make(part: list[int]) -> list[dict[str, Any]]:
        found = score(subject, [requests[i] for i in part])
        return judge([questions[i] for i in part], found)

    hashes = [item_hash(q.pairs, q.gold) for q in questions]
    return in_parts(name, subject, flags, hashes, make, chunk=2048)


def score(subject: Subject, requests: Sequence[Sequence[Request]]) -> list[list[Score]]:
    """Return the scores of every question's choices."""
    flat = subject.scorer.loglikelihood([r for group in requests for r in group])
    return regroup(flat, [len(group) for group in requests])


def regroup(flat: Sequence[Score], sizes: Sequence[int]) -> list[list[Score]]:
    at, groups = 0, []
    for size in sizes:
        groups.append(list(flat[at : at + size]))
        at += size
    return groups


def score_memorized(
    subject: Subject,
    memorizer: Memorizer,
    questions: Sequence[Question],
    requests: Sequence[Sequence[Request]],
) -> list[list[Score]]:
    """Score each question from memories that its own prompt was written into."""
    texts = [
        memorized_text(r, q.gold, memorizer.options.use_correct_answer)
        for q, r in zip(questions, requests, strict=True)
    ]
    scores: dict[int, list[Score]] = {}
    for part, start in memorizer.batches(texts, subject.scorer):
        flat = [r for i in part for r in requests[i]]
        rows = [row for row, i in enumerate(part) for _ in requests[i]]
        found = subject.scorer.loglikelihood(flat, start, rows)
        sizes = [len(requests[i]) for i in part]
        scores |= dict(zip(part, regroup(found, sizes), strict=True))
    return [scores[i] for i in range(len(questions))]


def memorized_text(requests: Sequence[Request], gold: int, answer: bool) -> tuple[int, ...]:
    """Return what is written: the prompt all choices share, or the right choice with its prompt."""
    if answer:
        return requests[gold].context + requests[gold].continuation
    contexts = [r.context for r in requests]
    shared = 0
    while all(len(c) > shared and c[shared] == contexts[0][shared] for c in contexts):
        shared += 1
    return contexts[0][:shared]


def judge(questions: Sequence[Question], scores: Sequence[Sequence[Score]]) -> list[dict[str, Any]]:
    """Return what is kept of each question: log-likelihoods, and whether it was right."""
    rows = []
    for question, found in zip(questions, scores, strict=True):
        sums = [s.logprob for s in found]
        norms = [s / max(n, 1) for s, n in zip(sums, question.lengths, strict=True)]
        one = len(found) == 1
        right = found[0].greedy if one else argmax(sums) == question.gold
        rows.append(
            {
                "logprobs": sums,
                "gold": question.gold,
                "correct": right,
                "correct_norm": right if one else argmax(norms) == question.gold,
                "margin": 0.0 if one else margin(sums, question.gold),
            }
        )
    return rows


def argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: values[i])


def margin(sums: Sequence[float], gold: int) -> float:
    """Return by how much the right choice is likelier than the best wrong one, in nats."""
    return sums[gold] - max(s for i, s in enumerate(sums) if i != gold)


def summarize(
    kind: str, questions: Sequence[Question], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return the numbers of one task."""
    hits = [float(row["correct"]) for row in rows]
    acc, stderr = mean_stderr(hits)
    found: dict[str, Any] = {
        "acc": acc,
        "acc_stderr": stderr,
        "acc_interval": wilson(sum(hits), len(hits)),
    }
    if kind == "word":
        nats = [-row["logprobs"][0] for row in rows]
        return {
            **found,
            "ppl": perplexity(sum(nats) / len(nats)),
            "chance": 0.0,
            "n": len(rows),
        }
    if kind == "choice":
        norm, norm_stderr = mean_stderr([float(row["correct_norm"]) for row in rows])
        found |= {"acc_norm": norm, "acc_norm_stderr": norm_stderr}
    golds = Counter(question.gold for question in questions)
    return {
        **found,
        "margin": sum(row["margin"] for row in rows) / len(rows),
        "chance": sum(1 / len(question.pairs) for question in questions) / len(rows),
        "majority": max(golds.values()) / len(rows),
        "n": len(rows),
    }


def draw(folder: Path, found: Findings) -> list[Path]:
    """Draw the accuracies beside chance."""
    names, metrics = list(found.metrics), found.metrics
    series = {"baseline": [metrics[n]["acc"] for n in names]}
    errors = {"baseline": [metrics[n]["acc_stderr"] for n in names]}
    if any("memorized" in metrics[n] for n in names):
        series["memorized"] = [metrics[n]["memorized"]["acc"] for n in names]
        errors["memorized"] = [metrics[n]["memorized"]["acc_stderr"] for n in names]
    series["chance"] = [metrics[n]["chance"] for n in names]
    path = folder / "zeroshot.png"
    return [plots.bars(path, names, series, title="Zero-shot", y="accuracy", errors=errors)]


FLAGS = (
    flag("--tasks", "all", "all, or a comma-separated list"),
    flag("--protocol", "harness", "how choices are scored", choices=("harness", "completion")),
    flag("--list-tasks", None, "show the tasks and stop", action=ListTasks, nargs=0),
)
HELP = "multiple choice and LAMBADA: acc, acc_norm, chance"
TASK = Task("zeroshot", HELP, __doc__, FLAGS, evaluate, draw)
