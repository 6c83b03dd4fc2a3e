"""281 questions of arithmetic: ``python -m eval probes --checkpoint runs/NAME``.

81 products of two digits (mul_table), 100 of a two-digit and a one-digit number (mul_multidigit)
and 100 sums (addition): ``What is 6 times 9?`` after ``User:``. The answer is made to begin with
``The answer is``. Its first number counts; where that begins an equation, what follows its ``=``.

Beside each accuracy stands what asks for no arithmetic: constant (one number for all questions of
the group, the best there is) and copy (a number of the question, the better of the two). digits is
the accuracy where domain tokens do not count as numbers. A killed evaluation with --out goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from eval.core import answers
from eval.core.cli import Findings, Task
from eval.core.flags import flag
from eval.core.items import ASKED, item_hash
from eval.core.partial import in_parts
from eval.core.requests import Written
from eval.core.subject import Subject
from eval.tasks.gsm8k import TEMPLATE_FLAG, summarize
from nested_jax.data.chat.templates import TEMPLATES

SHA256 = "81642abeced86436ebcfa139518dd9a98be105fbe79606579dbcacd5c4ef77f2"  # see `sha256`
SAMPLES, SEED = 100, 42
GROUPS = ("mul_table", "mul_multidigit", "addition")


class Probe(NamedTuple):
    question: str
    answer: int
    group: str
    operands: tuple[int, int]


def probes() -> list[Probe]:
    """Return the probes of the first domain-token experiment, in its order."""

    def product(a: int, b: int, group: str) -> Probe:
        return Probe(f"What is {a} times {b}?", a * b, group, (a, b))

    found = [product(a, b, "mul_table") for a in range(1, 10) for b in range(1, 10)]
    rng = random.Random(SEED)
    for _ in range(SAMPLES):
        a, b = rng.randint(10, 99), rng.randint(2, 9)
        found.append(product(a, b, "mul_multidigit"))
    rng = random.Random(SEED)
    for _ in range(SAMPLES):
        a, b = rng.randint(1, 100), rng.randint(1, 100)
        found.append(Probe(f"What is {a} plus {b}?", a + b, "addition", (a, b)))
    return found


def sha256(asked: Sequence[Probe]) -> str:
    lines = "\n".join(f"{p.question}|{p.answer}|{p.group}" for p in asked)
    return hashlib.sha256(lines.encode()).hexdigest()


def evaluate(subject: Subject, flags: argparse.Namespace) -> Findings:
    asked = probes()
    assert sha256(asked) == SHA256, "the probes are those of the experiment"
    template, tokenizer = TEMPLATES[flags.template], subject.tokenizer
    opening = f"{template.gap}The answer is"
    # The opening is an answer's beginning: it is tokenized apart, as in training.
    prompts = [
        tokenizer.encode(template.prompt(p.question)) + tokenizer.encode(opening) for p in asked
    ]
    for prompt in prompts:
        subject.scorer.check(len(prompt) + flags.max_tokens - 1)
    symbols = answers.symbol_ids(tokenizer)

    def make(part: list[int]) -> list[dict[str, Any]]:
        chosen = [prompts[i] for i in part]
        found = subject.scorer.generate(chosen, tokenizer, template.stops, flags.max_tokens)
        return [judge(w, asked[i], symbols) for w, i in zip(found, part, strict=True)]

    hashes = [item_hash(p.question, p.answer) for p in asked]
    rows = in_parts("probes", subject, flags, hashes, make)
    items = [
        {
            "id": f"probes/{i}",
            "group": probe.group,
            ASKED: hashed,
            "question": probe.question,
            **row,
        }
        for i, (probe, hashed, row) in enumerate(zip(asked, hashes, rows, strict=True))
    ]
    metrics = {"all": group_metrics(asked, rows)}
    for group in GROUPS:
        own = [i for i, probe in enumerate(asked) if probe.group == group]
        metrics[group] = group_metrics([asked[i] for i in own], [rows[i] for i in own])
    return Findings(metrics, items)


def judge(written: Written, probe: Probe, symbols: frozenset[int]) -> dict[str, Any]:
    """Return what is kept of an answer."""
    found = answers.first(written.text)
    return {
        "response": written.text,
        "gold": str(probe.answer),
        "answer": None if found is None else str(found),
        "correct": found == probe.answer,
        "digits": answers.first(answers.without_symbols(written.text)) == probe.answer,
        "tokens": len(written.tokens),
        "domain_tokens": sum(token in symbols for token in written.tokens),
        "hit_limit": not written.ended,
    }


def group_metrics(asked: Sequence[Probe], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers of a group, with the controls."""
    return {**summarize(rows), **controls(asked)}


def controls(asked: Sequence[Probe]) -> dict[str, float]:
    """Return the accuracies of the best constant answer and of the better copy of an operand."""
    constant = Counter(probe.answer for probe in asked).most_common(1)[0][1]
    copies = [sum(probe.operands[side] == probe.answer for probe in asked) for side in (0, 1)]
    return {"constant": constant / len(asked), "copy": max(copies) / len(asked)}


FLAGS = (TEMPLATE_FLAG, flag("--max-tokens", 32, "of an answer", least=1))
HELP = "281 questions of arithmetic, with controls"
TASK = Task("probes", HELP, __doc__, FLAGS, evaluate, memorizes=False)
