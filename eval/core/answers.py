"""Numbers in what a model wrote: how an answer is read, and a calculator for annotations.

Domain tokens are read as the equation that they name. Since the name holds the product, a result
says also what plain digits alone would give (`without_symbols`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from nested_jax.data.prepare.products import FACTS, PLACES, SYMBOL, spelled_out
from nested_jax.data.tokenizers.tokenizer import Tokenizer

DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
# A minus after a digit, a letter or a bracket takes away; it is no sign: 5-3 ends with 3.
NUMBER = re.compile(rf"(?:(?<![\w)\]])(-)\s?)?(?:\$\s?(-)?)?({DIGITS})")
MARK = re.compile(r"####\s*")
EQUATION = re.compile(rf"[ ]*(?:[*x\u00d7+/-]|times|plus)[ ]*\$?(?:{DIGITS})|[ ]*=[ ]*")
EXPRESSION = re.compile(r"[0-9.+*/() -]{1,64}")


def read(match: re.Match[str]) -> Fraction:
    """Return the value of a match of `NUMBER`."""
    number = Fraction(match[3].replace(",", ""))
    return -number if match[1] or match[2] else number


def numbers(text: str) -> list[Fraction]:
    """Return every number of a text; commas, a dollar sign and a final full stop are no part."""
    return [read(match) for match in NUMBER.finditer(text)]


def strict(text: str) -> Fraction | None:
    """Return the first number right after ``####``; None where there is none."""
    text = spelled_out(text)
    found = (NUMBER.match(text, mark.end()) for mark in MARK.finditer(text))
    begin = next((number for number in found if number), None)
    return None if begin is None else result_of(text, begin)


def flexible(text: str) -> Fraction | None:
    """Return the last number; that of a domain token is its product."""
    found = numbers(spelled_out(text))
    return found[-1] if found else None


def marked_or_last(text: str) -> Fraction | None:
    """Return the number after ``####``, or else the last one."""
    found = strict(text)
    return flexible(text) if found is None else found


def first(text: str) -> Fraction | None:
    """Return the first number; where it begins an equation, what stands after the ``=``."""
    text = spelled_out(text)
    begin = NUMBER.search(text)
    return None if begin is None else result_of(text, begin)


def result_of(text: str, begin: re.Match[str]) -> Fraction | None:
    """Return a number, or the result of the equation that it begins; None if that has none."""
    at = begin.end()
    while step := EQUATION.match(text, at):
        at = step.end()
        if step[0].strip() == "=":
            begin_of_result = NUMBER.match(text, at)
            return read(begin_of_result) if begin_of_result else None
    return read(begin)


def without_symbols(text: str) -> str:
    """Return the text without its domain tokens."""
    return SYMBOL.sub(lambda match: "" if match[0] in PLACES else match[0], text)


def symbol_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids of the domain tokens that a tokenizer has."""
    ids = {symbol: tokenizer.id_of(symbol) for symbol in FACTS}
    return frozenset(i for symbol, i in ids.items() if tokenizer.decode([i]) == symbol)


# --- the calculator ------------------------------------------------------------------------------


def calculator(tokenizer: Tokenizer) -> Callable[[np.ndarray], list[int]]:
    """Return what a calculator writes after tokens: the result of an open ``<<``, after its ``=``.

    Nothing where the text does not end so, or the expression is not one of numbers and + - * / ( ).
    """

    def write(tokens: np.ndarray) -> list[int]:
        text = tokenizer.decode(tokens[-96:])
        _, opened, inside = text.rpartition("<<")
        if not opened or not inside.endswith("=") or ">>" in inside:
            return []
        result = calculate(inside[:-1].replace("$", "").replace(",", ""))
        return [] if result is None else list(tokenizer.encode(f"{result}>>"))

    return write


def calculate(expression: str) -> str | None:
    """Return the value of an expression of numbers, + - * / and brackets; None if it has none."""
    if not EXPRESSION.fullmatch(expression):
        return None
    words = re.findall(r"[0-9]*\.?[0-9]+|[+*/()-]", expression)
    if "".join(words) != expression.replace(" ", ""):
        return None
    try:
        result, rest = _sum(words)
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    if rest:
        return None
    return str(result.numerator) if result.denominator == 1 else f"{float(result):.10g}"


def _sum(words: list[str]) -> tuple[Fraction, list[str]]:
    total, rest = _product(words)
    while rest and rest[0] in "+-":
        other, after = _product(rest[1:])
        total, rest = (total + other if rest[0] == "+" else total - other), after
    return total, rest


def _product(words: list[str]) -> tuple[Fraction, list[str]]:
    total, rest = _factor(words)
    while rest and rest[0] in "*/":
        other, after = _factor(rest[1:])
        total, rest = (total * other if rest[0] == "*" else total / other), after
    return total, rest


def _factor(words: list[str]) -> tuple[Fraction, list[str]]:
    word, rest = words[0], words[1:]
    if word == "-":
        number, rest = _factor(rest)
        return -number, rest
    if word == "(":
        number, rest = _sum(rest)
        if rest[0] != ")":
            raise ValueError("a bracket that does not close")
        return number, rest[1:]
    return Fraction(word), rest
