"""Domain tokens: chosen spans of a text become one user-defined symbol each, and back, exactly.

The spans are products of two digits, ``7 * 8`` and its other spellings, as ``<mul_7_8>``.
The first spelling of `FORMS` is the bare symbol, another one is the symbol after a form mark. A
symbol that stands in the text itself is marked as literal, so the inverse is exact for every text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from nested_jax.data.records import checked_row, json_rows, not_of_source
from nested_jax.data.tokenizers.tokenizer import Tokenizer
from nested_jax.errors import require
from nested_jax.files import PARTIAL, Report, hold, replace_file, whole_file

FORMS = ("{} * {}", "{}*{}", "{} x {}", "{}x{}", "{} \u00d7 {}", "{}\u00d7{}", "{} times {}")
PRODUCTS = tuple(f"<mul_{a}_{b}>" for a in range(10) for b in range(10))
FORM_MARKS = tuple(f"<mul_form_{number}>" for number in range(1, len(FORMS)))
LITERAL_MARK = "<mul_literal>"
SYMBOLS = (*PRODUCTS, *FORM_MARKS, LITERAL_MARK)

OPERATOR = r"(?:\*|x|\u00d7)"
FORM = f"<mul_form_([1-{len(FORM_MARKS)}])>"
PRODUCT = (
    r"[0-9](?<![\w.*/^\u00d7][0-9])(?<![*/^x\u00d7] [0-9])"  # no part of a number or of a longer
    rf"(?:{OPERATOR}| {OPERATOR} | times )"  # product
    r"[0-9](?!\w|\.[0-9]| ?[*/^\u00d7]| x )"
)
PRODUCTS_ALONE = re.compile(PRODUCT)
SPAN = re.compile(rf"<mul_[0-9]_[0-9]>|{FORM}|{LITERAL_MARK}|{PRODUCT}")
INJECTED = re.compile(rf"{LITERAL_MARK}(<mul_\w+>)|(?:{FORM})?<mul_([0-9])_([0-9])>")


@dataclass(frozen=True)
class Injection:
    """What is rewritten. ``baseline`` rewrites nothing, with the same tokenizer."""

    condition: Literal["baseline", "mul_tokens"] = "baseline"
    rate: float = 1.0  # share of the products that are rewritten
    seed: int = 0  # of the choice, which depends on it and on the document alone

    def __post_init__(self) -> None:
        require(
            self.condition in ("baseline", "mul_tokens"),
            "condition",
            self.condition,
            "wants baseline or mul_tokens",
        )
        fits = -(2**63) <= self.seed < 2**63
        require(fits, "inject_seed", self.seed, "wants a number of 64 bits")
        require(0 <= self.rate <= 1, "rate", self.rate, "wants a share in [0, 1]")

    @property
    def rewrites(self) -> bool:
        return self.condition != "baseline"


class Injected(NamedTuple):
    """A rewritten text and what was done to it."""

    text: str
    counts: Counter[str]  # products found, rewritten; symbols that were literal text


def inject(text: str, injection: Injection) -> Injected:
    """Rewrite the products of a text; `restore` is the exact inverse of condition mul_tokens."""
    if not injection.rewrites:
        return Injected(text, Counter(products=len(products(text))))
    counts: Counter[str] = Counter(products=0, rewritten=0, literal=0)
    salt = injection.seed.to_bytes(8, "little", signed=True)
    key = hashlib.blake2b(text.encode(), digest_size=8, salt=salt).digest()

    def rewrite(match: re.Match[str]) -> str:
        span = match[0]
        if span.startswith("<"):
            counts["literal"] += 1
            return LITERAL_MARK + span
        counts["products"] += 1
        if draw(key, counts["products"]) >= injection.rate:
            return span
        counts["rewritten"] += 1
        first, second = span[0], span[-1]
        number = next(i for i, form in enumerate(FORMS) if form.format(first, second) == span)
        mark = FORM_MARKS[number - 1] if number else ""
        return f"{mark}<mul_{first}_{second}>"

    return Injected(SPAN.sub(rewrite, text), counts)


def products(text: str) -> list[str]:
    """Return the products that `inject` would rewrite at rate 1."""
    return PRODUCTS_ALONE.findall(text)


def restore(text: str) -> str:
    """Return the text that `inject` was given."""

    def original(match: re.Match[str]) -> str:
        literal, form, first, second = match.groups()
        return literal or FORMS[int(form or 0)].format(first, second)

    return INJECTED.sub(original, text)


def draw(key: bytes, number: int) -> float:
    """Return a number in [0, 1), a function of the document's key and the product's place."""
    digest = hashlib.blake2b(number.to_bytes(8, "little"), key=key, digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def check_symbols(tokenizer: Tokenizer) -> None:
    """Raise unless every symbol of the injection is one token of the tokenizer."""
    missing = [symbol for symbol in SYMBOLS if tokenizer.id_of(symbol) == tokenizer.unk_id]
    require(
        not missing,
        "tokenizer",
        tokenizer.hash[:12],
        f"lacks {len(missing)} symbols of mul_tokens, {missing[:2]} ...; train it with "
        "`python -m nested_jax.data tokenizer --symbols mul_tokens`",
    )


def original_bytes() -> dict[str, int]:
    """Return the bytes of the original text that each symbol stands for, by symbol.

    A product counts as its first spelling and a form mark as the difference to its own, so sums
    over injected text are the bytes of the original, and bits per byte compare across conditions.
    (Only a symbol that stood in the text itself is counted short, by 4 to 10 bytes.)
    """
    base = len(FORMS[0].format(0, 0).encode())
    marks = {
        mark: len(form.format(0, 0).encode()) - base
        for mark, form in zip(FORM_MARKS, FORMS[1:], strict=True)
    }
    return {**dict.fromkeys(PRODUCTS, base), **marks, LITERAL_MARK: 0}


def rewrite_file(
    source: Path,
    output: Path,
    injection: Injection,
    report: Report = print,
    *,
    column: str,
    restoring: bool,
) -> dict[str, int]:
    """Inject into, or restore, the texts of a JSON lines file; return the counts.

    Raises:
      ValueError: no such file, a line that is not JSON, no such column.
    """
    counts: Counter[str] = Counter(documents=0)
    if not source.is_file():
        raise ValueError(f"input={str(source)!r}: no such file")
    not_of_source(output, [source])
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(f".{output.name}{PARTIAL}")
    lock = hold(output.with_name(f"{output.name}.lock"), str(output))
    with lock, whole_file(draft) as out:
        for where, row in json_rows(source):
            text = checked_row(row, where, **{column: str})[column]
            if restoring:
                row[column] = restore(text)
            else:
                row[column], found = inject(text, injection)
                counts.update(found)
            counts["documents"] += 1
            out.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        require(counts["documents"] > 0, "input", str(source), "has no record")
    replace_file(draft, output, report)
    return dict(counts)
