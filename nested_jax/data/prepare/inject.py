"""Domain tokens: chosen spans of a text become one ordinary token each.

The spans are products of two digits, in one of two schemes:

* ``pairs``: ``7 * 8`` and its other spellings become ``<mul_7_8>``, and back, exactly. The first
  spelling of `FORMS` is the bare symbol, another one is the symbol after a form mark. A symbol that
  stands in the text itself is marked as literal, so the inverse is exact for every text.
* ``facts``: ``9 * 6 = 54`` becomes ``<MUL_6_9_54>`` (`products.FACTS`). There is no way back.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from nested_jax.data.prepare.products import (
    FACTS,
    PLACES,
    PRODUCT,
    PRODUCTS_ALONE,
    RULES,
    SYMBOL,
)
from nested_jax.data.records import checked_row, json_rows, not_of_source
from nested_jax.data.tokenizers.tokenizer import Tokenizer
from nested_jax.errors import require
from nested_jax.files import PARTIAL, Report, hold, replace_file, whole_file

FORMS = ("{} * {}", "{}*{}", "{} x {}", "{}x{}", "{} \u00d7 {}", "{}\u00d7{}", "{} times {}")
PRODUCTS = tuple(f"<mul_{a}_{b}>" for a in range(10) for b in range(10))
FORM_MARKS = tuple(f"<mul_form_{number}>" for number in range(1, len(FORMS)))
LITERAL_MARK = "<mul_literal>"
PAIRS = (*PRODUCTS, *FORM_MARKS, LITERAL_MARK)
SYMBOLS = {"pairs": PAIRS, "facts": FACTS}  # of each scheme
CONDITIONS = ("baseline", "mul_tokens", "mul_placebo")

FORM = f"<mul_form_([1-{len(FORM_MARKS)}])>"
SPAN = re.compile(rf"<mul_[0-9]_[0-9]>|{FORM}|{LITERAL_MARK}|{PRODUCT}")
INJECTED = re.compile(rf"{LITERAL_MARK}(<mul_\w+>)|(?:{FORM})?<mul_([0-9])_([0-9])>")


@dataclass(frozen=True)
class Injection:
    """What is rewritten. ``baseline`` rewrites nothing, with the same tokenizer.

    ``mul_placebo`` rewrites the spans of ``mul_tokens``, and puts a wrong fact, drawn anew for each
    of them, in its place: as short a text, without the knowledge.
    """

    condition: Literal["baseline", "mul_tokens", "mul_placebo"] = "baseline"
    rate: float = 1.0  # share of the products that are rewritten
    seed: int = 0  # of the choice, which depends on it and on the document alone
    scheme: Literal["pairs", "facts"] = "pairs"
    rule: Literal["bounded", "original"] = "bounded"  # of facts: what is a product

    def __post_init__(self) -> None:
        for name, known in (
            ("condition", CONDITIONS),
            ("scheme", tuple(SYMBOLS)),
            ("rule", tuple(RULES)),
        ):
            value = getattr(self, name)
            require(value in known, name, value, f"wants one of {', '.join(known)}")
        fits = -(2**63) <= self.seed < 2**63
        require(fits, "inject_seed", self.seed, "wants a number of 64 bits")
        require(0 <= self.rate <= 1, "rate", self.rate, "wants a share in [0, 1]")
        placebo = self.condition == "mul_placebo"
        require(not placebo or self.lossy, "scheme", self.scheme, "mul_placebo wants facts")
        want = "is a rule of scheme facts; pairs wants bounded"
        require(self.lossy or self.rule == "bounded", "rule", self.rule, want)

    @property
    def rewrites(self) -> bool:
        return self.condition != "baseline"

    @property
    def lossy(self) -> bool:
        return self.scheme == "facts"

    @property
    def symbols(self) -> tuple[str, ...]:
        return SYMBOLS[self.scheme]


class Injected(NamedTuple):
    """A rewritten text and what was done to it."""

    text: str
    counts: Counter[str]  # products found, rewritten; symbols that were literal text
    lengths: tuple[int, ...] = ()  # of facts: UTF-8 bytes that each symbol of the text stands for


def inject(text: str, injection: Injection) -> Injected:
    """Rewrite the products of a text; `restore` is the exact inverse of scheme ``pairs``."""
    if not injection.rewrites:
        found = list(RULES[injection.rule](text)) if injection.lossy else products(text)
        return Injected(text, Counter(products=len(found)))
    salt = injection.seed.to_bytes(8, "little", signed=True)
    key = hashlib.blake2b(text.encode(), digest_size=8, salt=salt).digest()
    return (inject_facts if injection.lossy else inject_pairs)(text, injection, key)


def inject_pairs(text: str, injection: Injection, key: bytes) -> Injected:
    """Rewrite the products of a text as symbols from which they can be restored."""
    counts: Counter[str] = Counter(products=0, rewritten=0, literal=0)

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


def inject_facts(text: str, injection: Injection, key: bytes) -> Injected:
    """Rewrite the products of a text as facts, or as wrong ones; a fact in the text stays."""
    counts: Counter[str] = Counter(products=0, rewritten=0, literal=0)
    parts: list[str] = []
    lengths: list[int] = []
    done = 0

    def keep(until: int) -> None:
        parts.append(text[done:until])
        literal = [m[0] for m in SYMBOL.finditer(parts[-1]) if m[0] in PLACES]
        counts["literal"] += len(literal)
        lengths.extend(map(len, literal))

    for span in RULES[injection.rule](text):
        counts["products"] += 1
        if draw(key, counts["products"]) >= injection.rate:
            continue
        counts["rewritten"] += 1
        keep(span.start)
        fact = span.fact
        if injection.condition == "mul_placebo":
            step = 1 + int(draw(key, -counts["products"]) * (len(FACTS) - 1))
            fact = FACTS[(PLACES[fact] + step) % len(FACTS)]
        parts.append(fact)
        lengths.append(len(text[span.start : span.stop].encode()))
        done = span.stop
    keep(len(text))
    return Injected("".join(parts), counts, tuple(lengths))


def products(text: str) -> list[str]:
    """Return the products that scheme ``pairs`` would rewrite at rate 1."""
    return PRODUCTS_ALONE.findall(text)


def restore(text: str) -> str:
    """Return the text that `inject` was given, in scheme ``pairs``."""

    def original(match: re.Match[str]) -> str:
        literal, form, first, second = match.groups()
        return literal or FORMS[int(form or 0)].format(first, second)

    return INJECTED.sub(original, text)


def draw(key: bytes, number: int) -> float:
    """Return a number in [0, 1), a function of the document's key and the product's place."""
    place = number.to_bytes(8, "little", signed=True)
    digest = hashlib.blake2b(place, key=key, digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def check_symbols(tokenizer: Tokenizer, injection: Injection) -> None:
    """Raise unless every symbol of the injection is one token of the tokenizer."""
    missing = [symbol for symbol in injection.symbols if not has(tokenizer, symbol)]
    name = "facts" if injection.lossy else "mul_tokens"
    require(
        not missing,
        "tokenizer",
        tokenizer.hash[:12],
        f"lacks {len(missing)} symbols of scheme {injection.scheme}, {missing[:2]} ...; make it "
        f"with them (`python -m nested_jax.data tokenizer --symbols {name}`)",
    )


def has(tokenizer: Tokenizer, symbol: str) -> bool:
    """Return whether a symbol is one token."""
    return tokenizer.encode(symbol) == [tokenizer.id_of(symbol)]


def original_bytes(injection: Injection) -> dict[str, int]:
    """Return the bytes of the original text that each symbol stands for, by symbol.

    In scheme ``pairs`` a product counts as its first spelling and a form mark as the difference to
    its own, so sums over injected text are the bytes of the original, and bits per byte compare
    across conditions. (Only a symbol that stood in the text itself is counted short, by 4 to 10
    bytes.) A fact has no length of its own: the shards keep that of each one.
    """
    if injection.lossy or not injection.rewrites:
        return {}
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
      ValueError: no such file, a line that is not JSON, no such column, a scheme without inverse.
    """
    counts: Counter[str] = Counter(documents=0)
    want = "has no inverse: facts do not say how a product was spelled"
    require(not (restoring and injection.lossy), "scheme", injection.scheme, want)
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
                row[column], found, _ = inject(text, injection)
                counts.update(found)
            counts["documents"] += 1
            out.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        require(counts["documents"] > 0, "input", str(source), "has no record")
    replace_file(draft, output, report)
    return dict(counts)
