"""Products of digits in a text: where they are, and the 45 symbols that can stand for them.

A *fact* is a symbol that names two factors and their product, ``<MUL_6_9_54>``. It stands for every
spelling of ``6 * 9`` and ``9 * 6``, with its right result if that follows. So it is lossy.
Two rules find the products:

* ``bounded``: two digits that are no part of a longer number or product, with ``*``, ``x``, ``×``
  or ``times`` between them; a result after ``=`` or ``equals`` is read as a whole number.
* ``original``: the pattern of the first domain-token experiment, with its faults: no boundaries
  (``6*2.5`` holds ``6*2``, ``1005*5`` holds ``05*5``), and no ``times``.

Both leave a product alone if a wrong result follows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

FACTS = tuple(f"<MUL_{a}_{b}_{a * b}>" for a in range(1, 10) for b in range(a, 10))
PLACES = {symbol: place for place, symbol in enumerate(FACTS)}
SYMBOL = re.compile(r"<MUL_([1-9])_([1-9])_([0-9]{1,2})>")

OPERATOR = r"(?:\*|x|\u00d7)"
PRODUCT = (
    r"[0-9](?<![\w.*/^\u00d7][0-9])(?<![*/^x\u00d7] [0-9])"  # no part of a number or of a longer
    rf"(?:{OPERATOR}| {OPERATOR} | times )"  # product
    r"[0-9](?!\w|\.[0-9]| ?[*/^\u00d7]| x )"
)
PRODUCTS_ALONE = re.compile(PRODUCT)
EQUALS = re.compile(r" ?(?:=|equals) ?(?=[0-9])")
RESULT = re.compile(r"([0-9][0-9,]*(?:\.[0-9]+)?)(?!\w|%| ?[*/^\u00d7+-] ?[0-9(])")
ORIGINAL = re.compile(
    r"(\d{1,2})\s*(?:[*\u00d7]|x(?![a-z]))\s*(\d{1,2})(?:\s*=\s*(\d+))?", re.IGNORECASE
)


class Span(NamedTuple):
    """A product in a text, from `start` to `stop`; `fact` is the symbol that stands for it."""

    start: int
    stop: int
    fact: str


def fact_of(a: int, b: int) -> str:
    """Return the symbol of a product of two digits from 1 to 9, in either order."""
    small, large = sorted((a, b))
    return f"<MUL_{small}_{large}_{a * b}>"


def bounded(text: str) -> Iterator[Span]:
    """Yield the products that the rule ``bounded`` finds, in their order."""
    for match in PRODUCTS_ALONE.finditer(text):
        a, b = int(match[0][0]), int(match[0][-1])
        stop = match.end()
        if equals := EQUALS.match(text, stop):
            result = RESULT.match(text, equals.end())
            if result is None or float(result[1].replace(",", "")) != a * b:
                continue
            stop = result.end()
        if a and b:
            yield Span(match.start(), stop, fact_of(a, b))


def original(text: str) -> Iterator[Span]:
    """Yield the products that the rule ``original`` finds, in their order."""
    for match in ORIGINAL.finditer(text):
        a, b, result = (int(part) if part else 0 for part in match.groups())
        if 1 <= a <= 9 and 1 <= b <= 9 and (match[3] is None or result == a * b):
            yield Span(*match.span(), fact_of(a, b))


RULES: dict[str, Callable[[str], Iterator[Span]]] = {"bounded": bounded, "original": original}


def spelled_out(text: str) -> str:
    """Return the text with every fact as the equation that it names, ``6*9=54``."""

    def equation(match: re.Match[str]) -> str:
        a, b, c = match.groups()
        return f"{a}*{b}={c}" if match[0] in PLACES else match[0]

    return SYMBOL.sub(equation, text)
