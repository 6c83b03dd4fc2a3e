"""Removal of documents that hold text of the evaluation sets: word 13-grams, as in GPT-3.

Brown et al. (2020), appendix C. A task file is JSON lines; all its strings count. A string of fewer
than 13 words has no 13-gram and cannot be recognized; `EvalNgrams.short` counts those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from nested_jax.data.prepare.filters import ngram_hashes, words_of
from nested_jax.data.records import json_rows
from nested_jax.data.streams import find_files
from nested_jax.errors import require

NGRAM = 13  # words


class EvalNgrams(NamedTuple):
    """The 13-grams of the chosen task files."""

    hashes: np.ndarray  # uint64, sorted
    files: tuple[str, ...]
    strings: int
    short: int  # strings with fewer than 13 words


def eval_ngrams(paths: Sequence[str]) -> EvalNgrams:
    """Read the 13-grams of task files; each path is a file, a folder or a glob.

    Raises:
      ValueError: nothing there, or a file that is not JSON lines.
    """
    files = sorted({file for path in paths for file in find_files(path)})
    found, strings, short = [np.empty(0, np.uint64)], 0, 0
    for file in files:
        before = strings
        for text in (text for _, row in json_rows(file) for text in strings_of(row)):
            grams = ngram_hashes(words_of(text).hashes, NGRAM)
            strings += 1
            short += len(grams) == 0
            found.append(grams)
        require(strings > before, "eval_files", str(file), "has no text")
    return EvalNgrams(
        np.unique(np.concatenate(found)), tuple(str(file) for file in files), strings, short
    )


def strings_of(row: Any) -> Iterator[str]:
    """Yield every string of a JSON value, however deep."""
    stack = [row]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, list):
            stack += value


def overlaps(hashes: np.ndarray, ngrams: np.ndarray) -> bool:
    """Return whether a document with the given word hashes holds one of the sorted n-grams."""
    if len(ngrams) == 0:
        return False
    grams = ngram_hashes(hashes, NGRAM)
    places = np.searchsorted(ngrams, grams)
    return bool((ngrams[np.minimum(places, len(ngrams) - 1)] == grams).any())
