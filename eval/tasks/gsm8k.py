"""Grade-school mathematics: ``python -m eval gsm8k --checkpoint runs/NAME``.

A problem is asked in the words of fine-tuning, ``User: QUESTION`` and ``Assistant:``, and answered
greedily up to the end of document, the next turn or --max-tokens.

* accuracy: the number after ``####``, or else the last one, is the right one (with a 95 % Wilson
  interval); strict: after ``####`` only; flexible: the last number.
* digits: the same as accuracy, where domain tokens do not count as numbers.
* hit_limit: share of answers that were cut by --max-tokens.

``--annotations`` says what is done with GSM8K's ``<<6*9=54>>``: keep (the model writes them),
calculator (a calculator writes the result after each ``=`` in one) or strip (the model was trained
without them; they are taken out of what is kept with --save-items). A killed evaluation with --out
goes on where it was.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from eval.core import answers
from eval.core.cli import Findings, Task, data_root
from eval.core.flags import flag
from eval.core.items import ASKED, item_hash
from eval.core.partial import in_parts
from eval.core.requests import Written
from eval.core.stats import wilson
from eval.core.subject import Subject
from nested_jax.data.chat.templates import TEMPLATES
from nested_jax.errors import require

ANNOTATION = re.compile(r"<<[^>]*>>")


def evaluate(subject: Subject, flags: argparse.Namespace) -> Findings:
    problems = read_problems(flags)
    template, tokenizer = TEMPLATES[flags.template], subject.tokenizer
    prompts = tokenizer.encode_batch([template.prompt(question) for question, _ in problems])
    for prompt in prompts:
        subject.scorer.check(len(prompt) + flags.max_tokens - 1)
    force = answers.calculator(tokenizer) if flags.annotations == "calculator" else None
    symbols = answers.symbol_ids(tokenizer)

    def make(part: list[int]) -> list[dict[str, Any]]:
        asked = [prompts[i] for i in part]
        found = subject.scorer.generate(
            asked, tokenizer, template.stops, flags.max_tokens, force=force
        )
        golds = [problems[i][1] for i in part]
        strip = flags.annotations == "strip"
        return [judge(w, g, symbols, strip) for w, g in zip(found, golds, strict=True)]

    hashes = [item_hash(question, str(gold)) for question, gold in problems]
    rows = in_parts("gsm8k", subject, flags, hashes, make)
    items = [
        {"id": f"gsm8k/{i}", "group": "gsm8k", ASKED: asked, "question": question, **row}
        for i, (asked, (question, _), row) in enumerate(zip(hashes, problems, rows, strict=True))
    ]
    return Findings({"gsm8k": summarize(rows)}, items)


def read_problems(flags: argparse.Namespace) -> list[tuple[str, Fraction]]:
    """Return questions and right answers.

    Raises:
      ValueError: a file that is missing or damaged, an answer without ``####``.
    """
    found = []
    for where, row in data_root(flags).rows(flags.file, question=str, answer=str):
        gold = answers.strict(row["answer"])
        require(gold is not None, f"{where}: answer", row["answer"][-80:], "wants #### NUMBER")
        assert gold is not None
        found.append((row["question"], gold))
        if len(found) == flags.max_samples:
            break
    return found


def judge(
    written: Written, gold: Fraction, symbols: frozenset[int], strip: bool = False
) -> dict[str, Any]:
    """Return what is kept of an answer."""
    text = ANNOTATION.sub("", written.text) if strip else written.text
    plain = answers.without_symbols(text)
    found = answers.marked_or_last(text)
    return {
        "response": text,
        "gold": str(gold),
        "answer": None if found is None else str(found),
        "correct": found == gold,
        "strict": answers.strict(text) == gold,
        "flexible": answers.flexible(text) == gold,
        "digits": answers.marked_or_last(plain) == gold,
        "tokens": len(written.tokens),
        "domain_tokens": sum(token in symbols for token in written.tokens),
        "hit_limit": not written.ended,
    }


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers of a group of answers."""
    count = len(rows)
    hits = sum(row["correct"] for row in rows)

    def mean(name: str) -> float:
        return sum(row[name] for row in rows) / count

    found: dict[str, Any] = {"accuracy": hits / count, "accuracy_interval": wilson(hits, count)}
    found |= {name: mean(name) for name in ("strict", "flexible", "digits") if name in rows[0]}
    return {
        **found,
        "hit_limit": mean("hit_limit"),
        "tokens_per_answer": mean("tokens"),
        "domain_tokens": sum(row["domain_tokens"] for row in rows),
        "domain_tokens_per_answer": mean("domain_tokens"),
        "n": count,
    }


TEMPLATE_FLAG = flag("--template", "turns", "of the fine-tuning", choices=tuple(TEMPLATES))
FLAGS = (
    TEMPLATE_FLAG,
    flag(
        "--file", "gsm8k/test.jsonl.gz", "JSON lines with question and answer, below the data root"
    ),
    flag("--max-tokens", 256, "of an answer", least=1),
    flag(
        "--annotations",
        "keep",
        "what is done with <<...>>",
        choices=("keep", "strip", "calculator"),
    ),
)
HELP = "GSM8K: problems in words, answered in words"
TASK = Task("gsm8k", HELP, __doc__, FLAGS, evaluate, memorizes=False)
