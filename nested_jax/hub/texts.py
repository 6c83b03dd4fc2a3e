"""Text that a user names, as tokens: files, folders, or segments of the embedded text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from nested_jax.data.manifest import SourceSpec
from nested_jax.data.prepare.text_sources import local_files, records
from nested_jax.data.records import Problems
from nested_jax.data.tokenizers.tokenizer import Tokenizer
from nested_jax.errors import require

MOST = 64  # documents for each row, at most


def documents(name: str, flag: str) -> Iterator[str]:
    """Yield the documents of a file, a folder, a glob, or ``stdlib[:SEGMENT]``.

    A text file is one document; lines of JSON and rows of Parquet are one each.

    Raises:
      ValueError: nothing there, or text that cannot be read.
    """
    spec = SourceSpec(name="text", dataset=name, unit="file", rules="none")
    try:
        local_files(spec)
    except (ValueError, OSError) as error:
        raise ValueError(f"{flag}={name!r}: {error}") from error
    for record in records(spec, Problems(spec), lambda _: None):
        yield record.text


def token_rows(texts: Iterator[str], tokenizer: Tokenizer, rows: int, length: int) -> np.ndarray:
    """Return at most `rows` rows of `length` + 1 tokens, int32; documents follow each other.

    Every document comes after the document separator. None gives more than its share of the rows,
    so that they are of many documents.
    """
    found: list[list[int]] = []
    open_row: list[int] = []
    some = list(itertools.islice(texts, MOST * rows))
    share = -(-rows // max(len(some), 1)) * length
    for text in some:
        # No token has more than some 30 bytes: a book is not encoded whole for one row.
        open_row += [tokenizer.eos_id, *tokenizer.encode(text[: 30 * share])[:share]]
        while len(open_row) > length and len(found) < rows:
            found.append(open_row[: length + 1])
            open_row = open_row[length + 1 :] if share > length else []
    return np.asarray(found, np.int32).reshape(len(found), length + 1)


def enough(rows: np.ndarray, least: int, flag: str, name: Sequence[str] | str) -> None:
    want = f"has {len(rows)} rows of {rows.shape[1] - 1} tokens, wants {least} or more"
    require(len(rows) >= least, flag, name, want)
