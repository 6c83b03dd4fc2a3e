"""Rules that keep or drop one document. Each is a function of the text; each drop has a name.

The repetition and symbol rules are those of Gopher (Rae et al., 2021, table A1); their thresholds
are fields, and `RULES` holds one set for prose and one for code.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nested_jax.errors import import_extra

WORD = re.compile(r"\w+")
LETTER = re.compile(r"[^\W\d_]")
LANGUAGE_CHARS = 1000  # of a document that its language is told by: 1 ms; the whole changes little


@dataclass(frozen=True)
class Rules:
    """Thresholds; a document beyond one is dropped under the name of the rule."""

    min_chars: int = 1  # too_short
    max_chars: int = 0  # too_long; 0 is any length
    lang: str = ""  # language; "" is any
    lang_threshold: float = 0.85
    duplicate_lines: float = 1.0  # repetition: characters in lines seen before in the document
    top_ngrams: tuple[tuple[int, float], ...] = ()  # repetition: (n, share of the top n-gram)
    symbols: float = 1.0  # symbols: '#' and ellipses a word
    bullets: float = 1.0  # symbols: lines that begin with a bullet
    min_alphabetic: float = 0.0  # symbols: words with a letter, at least


RULES = {
    "prose": Rules(
        duplicate_lines=0.3,
        top_ngrams=((2, 0.20), (3, 0.18), (4, 0.16)),
        symbols=0.1,
        bullets=0.9,
        min_alphabetic=0.6,
    ),
    "code": Rules(duplicate_lines=0.7),  # code repeats itself and has more marks than words
    "none": Rules(),
}


class Words(NamedTuple):
    """A text and its lower-cased words as numbers, which the rules share."""

    text: str
    hashes: np.ndarray  # uint64 [words]
    lengths: np.ndarray  # int64 [words], characters


def drop_reason(text: str, rules: Rules) -> str | None:
    """Return the name of the rule on size that drops the text, None where it is kept."""
    if not text.strip():
        return "empty"
    if len(text) < rules.min_chars:
        return "too_short"
    if rules.max_chars and len(text) > rules.max_chars:
        return "too_long"
    return None


def word_drop_reason(words: Words, rules: Rules) -> str | None:
    """Return the name of the first rule on content that drops the text, None where it is kept."""
    for name, rule in WORD_RULES.items():
        if rule(words, rules):
            return name
    return None


def too_repetitive(words: Words, rules: Rules) -> bool:
    """Return whether lines or n-grams of words repeat beyond the thresholds."""
    if rules.duplicate_lines < 1:
        lines = [line.strip() for line in words.text.split("\n") if line.strip()]
        repeated = sum(map(len, lines)) - sum(map(len, set(lines)))
        if repeated > rules.duplicate_lines * sum(map(len, lines)):
            return True
    size = int(words.lengths.sum())
    for n, share in rules.top_ngrams:
        grams = ngram_hashes(words.hashes, n)
        if len(grams) == 0:
            continue
        _, places, counts = np.unique(grams, return_index=True, return_counts=True)
        top = int(counts.argmax())
        characters = int(words.lengths[places[top] : places[top] + n].sum())
        if counts[top] > 1 and counts[top] * characters > share * size:
            return True
    return False


def too_many_symbols(words: Words, rules: Rules) -> bool:
    """Return whether the text is marks, bullets or numbers rather than words."""
    parts = words.text.split()
    if rules.symbols < 1:
        marks = words.text.count("#") + words.text.count("...") + words.text.count("\u2026")
        if marks > rules.symbols * len(parts):
            return True
    if rules.bullets < 1:
        lines = [line.lstrip() for line in words.text.split("\n") if line.strip()]
        bullets = sum(line.startswith(("\u2022", "-", "*")) for line in lines)
        if len(lines) > 3 and bullets > rules.bullets * len(lines):
            return True
    if rules.min_alphabetic > 0:
        plain = sum(map(str.isalpha, parts))
        mixed = sum(LETTER.search(part) is not None for part in parts if not part.isalpha())
        return plain + mixed < rules.min_alphabetic * len(parts)
    return False


def wrong_language(words: Words, rules: Rules) -> bool:
    """Return whether py3langid is less than `lang_threshold` sure that the text is in `lang`."""
    if not rules.lang:
        return False
    language, probability = identifier().classify(words.text[:LANGUAGE_CHARS])
    return language != rules.lang or probability < rules.lang_threshold


WORD_RULES: dict[str, Callable[[Words, Rules], bool]] = {
    "symbols": too_many_symbols,
    "repetition": too_repetitive,
    "language": wrong_language,
}


@functools.cache
def identifier() -> Any:
    """Return the language identifier, loaded once a process (its model comes with the package)."""
    langid = import_extra("py3langid.langid", "data", "for the language rule (lang)")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def check_language(lang: str) -> None:
    """Raise unless `lang` is a language that the identifier knows."""
    if lang and lang not in identifier().labels:
        raise ValueError(f"lang={lang!r}: wants an ISO 639-1 code such as 'en'")


# --- words as numbers: what overlap and near-duplicate rules work on ---------------------------


@functools.lru_cache(1 << 18)
def word_hash(word: str) -> int:
    """Return a 64-bit hash of a word, the same in every process (FNV-1a)."""
    value = 0xCBF29CE484222325
    for byte in word.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def words_of(text: str) -> Words:
    """Return the lower-cased words of a text as numbers."""
    words = WORD.findall(text.lower())
    return Words(
        text,
        np.fromiter(map(word_hash, words), np.uint64, len(words)),
        np.fromiter(map(len, words), np.int64, len(words)),
    )


def ngram_hashes(hashes: np.ndarray, n: int) -> np.ndarray:
    """Return uint64 [words - n + 1]: a hash of every run of n words, its bits well mixed."""
    size = len(hashes) - n + 1
    if size <= 0:
        return np.empty(0, np.uint64)
    total = np.zeros(size, np.uint64)
    for i in range(n):
        total = total * np.uint64(0x9E3779B97F4A7C15) + hashes[i : i + size]
    return mix(total)


def mix(values: np.ndarray) -> np.ndarray:
    """Return the values with their bits mixed (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
