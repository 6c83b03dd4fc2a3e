"""Synthetic drills: short documents of arithmetic, a function of a seed and of their number.

A document has facts of the times table in several spellings, one-line problems, and some sums and
longer products. `shard` spreads them through the training split (``--drills``), so that they are
never in the held-out text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from nested_jax.errors import require

LINES = 12  # of a document
THINGS = ("apples", "books", "coins", "cards", "eggs", "pens", "seats", "stamps", "tiles", "toys")
HOLDERS = ("bags", "boxes", "rows", "shelves", "stacks", "teams", "trays", "weeks")
NAMES = ("Ana", "Ben", "Chen", "Dora", "Emil", "Fay", "Gita", "Hugo", "Iris", "Jon")


def table_line(rng: random.Random) -> str:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    forms = ("{} times {} equals {}.", "{}*{}={}", "{} \u00d7 {} = {}", "{} * {} = {}")
    return rng.choice(forms).format(a, b, a * b)


def question_line(rng: random.Random) -> str:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    forms = (
        "What is {a} times {b}? {a} * {b} = {c}. The answer is {c}.",
        "Question: {a} times {b}. Answer: {a}*{b}={c}",
        "If you multiply {a} by {b} you get {a} * {b} = {c}.",
    )
    return rng.choice(forms).format(a=a, b=b, c=a * b)


def story_line(rng: random.Random) -> str:
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    name, holder, thing = rng.choice(NAMES), rng.choice(HOLDERS), rng.choice(THINGS)
    return f"{name} has {a} {holder} with {b} {thing} each: {a} * {b} = {a * b} {thing}."


def sum_line(rng: random.Random) -> str:
    a, b = rng.randint(1, 100), rng.randint(1, 100)
    return rng.choice(("{} plus {} equals {}.", "{}+{}={}")).format(a, b, a + b)


def long_line(rng: random.Random) -> str:
    a, b = rng.randint(10, 99), rng.randint(2, 9)
    return rng.choice(("{} times {} equals {}.", "{}*{}={}")).format(a, b, a * b)


# How often each kind comes: the table is what the symbols are about.
KINDS: tuple[Callable[[random.Random], str], ...] = (
    *[table_line] * 5,
    *[question_line] * 3,
    *[story_line] * 2,
    sum_line,
    long_line,
)


def drill(seed: int, number: int) -> str:
    """Return the drill document of a number; equal arguments give equal text."""
    rng = random.Random(f"drill {seed} {number}")
    return "\n".join(rng.choice(KINDS)(rng) for _ in range(LINES)) + "\n"


def with_drills(texts: Sequence[str], share: float, seed: int, block: int) -> list[str]:
    """Return `texts` with drill documents spread evenly between them.

    Args:
      share: of the characters of the result that are drills, 0 to 0.5.
      block: number of the block that the texts are of; its drills are its own.
    """
    require(0 <= share <= 0.5, "drills", share, "wants a share in [0, 0.5]")
    found: list[str] = []
    written = read = count = 0
    for text in texts:
        found.append(text)
        read += len(text)
        while written < share / (1 - share) * read:
            found.append(drill(seed, block * 1_000_000 + count))
            written, count = written + len(found[-1]), count + 1
    return found
