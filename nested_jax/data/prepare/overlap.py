"""Removal of documents that hold text of the evaluation sets: word 13-grams, as in GPT-3.

Brown et al. (2020), appendix C. A task file is JSON lines; all its strings count. A string of fewer
than 13 words has no 13-gram and cannot be recognized; `EvalNgrams.short` counts those.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nested_jax.data.prepare.filters import ngram_hashes, words_of
from nested_jax.data.prepare.readers import bounded_lines, find_files, open_stream
from nested_jax.data.prepare.text_sources import MAX_DOCUMENT_BYTES

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
        for text in task_strings(file):
            grams = ngram_hashes(words_of(text).hashes, NGRAM)
            strings += 1
            short += len(grams) == 0
            found.append(grams)
    return EvalNgrams(
        np.unique(np.concatenate(found)), tuple(str(file) for file in files), strings, short
    )


def task_strings(path: Path) -> Iterator[str]:
    with open_stream(path) as stream:
        for number, line in enumerate(bounded_lines(stream, MAX_DOCUMENT_BYTES), 1):
            if not line or not line.strip():
                continue
            try:
                yield from strings_of(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: a task file is JSON lines ({error})") from error


def strings_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_of(item)


def overlaps(hashes: np.ndarray, ngrams: np.ndarray) -> bool:
    """Return whether a document with the given word hashes holds one of the sorted n-grams."""
    if len(ngrams) == 0:
        return False
    grams = ngram_hashes(hashes, NGRAM)
    places = np.searchsorted(ngrams, grams)
    return bool((ngrams[np.minimum(places, len(ngrams) - 1)] == grams).any())
