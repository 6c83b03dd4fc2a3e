"""The text of a small experiment: samples below a data root, or generated in their place."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.core.datasets import DataRoot
from nested_jax.data.prepare.drills import HOLDERS, NAMES, THINGS, drill
from nested_jax.data.splits import split_of_content
from nested_jax.data.text.stdlib_text import collect, stdlib_root
from nested_jax.files import write_bytes

CORPORA = ("web_gov_techdocs", "encyclopedic_wikipedia")
SEED = 42
Row = Mapping[str, Any]
ASKED = (
    "What is {a} times {b}?",
    "What is {a} times {b}?",
    "Multiply {a} by {b}.",
    "How much is {a} \u00d7 {b}?",
    "Tell me what {a} * {b} is.",
)
ANSWERED = ("The answer is {c}.", "The answer is {a} * {b} = {c}.")


def write_lines(file: Path, rows: Iterable[Row]) -> int:
    """Write JSON lines, whole or not at all; return how many."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, "".join(f"{line}\n" for line in lines).encode())
    return len(lines)


def corpus(root: DataRoot, split: str, chars: int) -> Iterator[dict[str, str]]:
    """Yield documents of the corpora in turn, about `chars` characters of them.

    Where a corpus is absent, documents of Python's standard library stand in.
    """
    streams: list[Iterator[str]] = []
    for name in CORPORA:
        file = f"lm/{name}/{split}.jsonl.gz"
        if root.has(file):
            streams.append(row["text"] for _, row in root.rows(file, text=str))
    if not streams:
        streams = [embedded(split)]
    given = 0
    for texts in itertools.zip_longest(*streams):
        for text in texts:
            if text and given < chars:
                given += len(text)
                yield {"text": text}


def embedded(split: str) -> Iterator[str]:
    """Yield documents of Python's standard library; a tenth of them is held out."""
    for document in collect(stdlib_root()).documents:
        held_out = split_of_content(document.text, 0.1) == "valid"
        if document.segment in ("prose", "library") and held_out == (split == "valid"):
            yield document.text


def conversations(root: DataRoot, split: str, dialogues: int, drills: int) -> list[Row]:
    """Return dialogues, and questions of arithmetic among them, in a fixed random order."""
    file = f"lm/dialogue_sgd/{split}.jsonl.gz"
    found: list[Row] = []
    if root.has(file):
        rows = root.rows(file, text=str)
        found = [{"messages": turns(row["text"])} for _, row in itertools.islice(rows, dialogues)]
    rng = random.Random(f"{SEED} {split}")
    found += [{"messages": arithmetic(rng)} for _ in range(drills)]
    if not root.has(file):
        found += [{"messages": small_talk(rng)} for _ in range(dialogues)]
    rng.shuffle(found)
    return found


def turns(text: str) -> list[dict[str, str]]:
    """Return a dialogue of USER and SYSTEM lines as messages."""
    roles = {"USER": "user", "SYSTEM": "assistant"}
    found = []
    for line in text.splitlines():
        who, _, said = line.partition(":")
        if who in roles and said.strip():
            found.append({"role": roles[who], "content": said.strip()})
    return found


def arithmetic(rng: random.Random) -> list[dict[str, str]]:
    kind = rng.random()
    if kind < 0.85:
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        question, answer = rng.choice(ASKED), rng.choice(ANSWERED)
    elif kind < 0.95:
        a, b = rng.randint(1, 100), rng.randint(1, 100)
        question, answer = "What is {a} plus {b}?", "The answer is {c}."
    else:
        a, b = rng.randint(10, 99), rng.randint(2, 9)
        question, answer = ASKED[0], ANSWERED[0]
    c = a + b if "plus" in question else a * b
    return [
        {"role": "user", "content": question.format(a=a, b=b)},
        {"role": "assistant", "content": answer.format(a=a, b=b, c=c)},
    ]


def small_talk(rng: random.Random) -> list[dict[str, str]]:
    thing, holder = rng.choice(THINGS), rng.choice(HOLDERS)
    return [
        {"role": "user", "content": f"Do you have any {thing}?"},
        {"role": "assistant", "content": f"Yes, there are {thing} in the {holder}."},
    ]


def problems(root: DataRoot, split: str, count: int) -> list[Row]:
    """Return problems of GSM8K, or generated ones of its form; 0 is all."""
    file = f"gsm8k/{split}.jsonl.gz"
    if root.has(file):
        rows = root.rows(file, question=str, answer=str)
        return [dict(row) for _, row in itertools.islice(rows, count or None)]
    rng = random.Random(f"{SEED} problems {split}")
    return [problem(rng) for _ in range(count or 1000)]


def problem(rng: random.Random) -> Row:
    name, holder, thing = rng.choice(NAMES), rng.choice(HOLDERS), rng.choice(THINGS)
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 20)
    total = a * b + c
    return {
        "question": f"{name} has {a} {holder} with {b} {thing} each and finds {c} more {thing}. "
        f"How many {thing} does {name} have?",
        "answer": f"In the {holder} are {a} * {b} = <<{a}*{b}={a * b}>>{a * b} {thing}.\n"
        f"Then there are {a * b} + {c} = <<{a * b}+{c}={total}>>{total}.\n#### {total}",
    }


def endings(count: int) -> Iterator[Row]:
    """Yield questions of HellaSwag's form: how does a line of a drill go on?"""
    rng = random.Random(f"{SEED} endings")
    lines = [line for i in range(count) for line in drill(SEED + 1, i).splitlines() if " " in line]
    for number in range(count):
        line = lines[number * 3]
        context, _, ending = line.rpartition(" ")
        wrong = [rng.choice(lines).rpartition(" ")[2] + "?" for _ in range(3)]
        gold = rng.randrange(4)
        yield {
            "id": f"generated-{number}",
            "query": f"Drill: {context}",
            "choices": [*wrong[:gold], ending, *wrong[gold:]],
            "gold": gold,
            "activity_label": "Drill",
        }


def small_root(root: DataRoot, out: Path, say: Callable[[str], None]) -> Path:
    """Return a data root for the evaluations, with stand-ins for what `root` lacks."""
    stand_ins: dict[str, Callable[[], Iterable[Row]]] = {
        "zero_shot/hellaswag/validation.jsonl.gz": lambda: endings(200),
        "gsm8k/test.jsonl.gz": lambda: problems(root, "test", 100),
    }
    for name, make in stand_ins.items():
        rows: Iterable[Row] = (row for _, row in root.rows(name)) if root.has(name) else make()
        if not root.has(name):
            say(f"{name} is absent: generated questions stand in")
        write_lines(out / name.removesuffix(".gz"), rows)
    return out
