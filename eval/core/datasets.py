"""The files that evaluations read: where they are looked for, and what is said when they are not.

A root is a folder with ``zero_shot/piqa/validation.jsonl.gz`` and the like (docs/evaluation.md has
the list): ``--data-root``, else the environment variable NESTED_JAX_DATA, else ``data`` or
``../shared/data`` below the working directory, whichever has the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, get_args, get_origin

from nested_jax.data.records import checked_row, json_rows
from nested_jax.data.streams import text_lines
from nested_jax.files import file_sha256

VARIABLE = "NESTED_JAX_DATA"
DEFAULTS = (Path("data"), Path("../shared/data"))
HOW = (
    f"give --data-root or set {VARIABLE}; docs/evaluation.md lists the files and columns, and "
    "`python -m eval fetch` gets the zero-shot ones from the Hugging Face Hub"
)

_READ: ContextVar[dict[str, str] | None] = ContextVar("files_read", default=None)


@contextmanager
def files_read() -> Iterator[dict[str, str]]:
    """Yield a dict that fills with the files that are opened inside: path and SHA-256."""
    found: dict[str, str] = {}
    token = _READ.set(found)
    try:
        yield found
    finally:
        _READ.reset(token)


def opening(path: Path) -> Path:
    """Return a file that is about to be read, after `files_read` has been told of it."""
    found, name = _READ.get(), str(path.absolute())
    if found is not None and name not in found:
        found[name] = file_sha256(path)
    return path


def changed_files(read: dict[str, str]) -> list[str]:
    """Return the files that are gone, or hold something else than when `files_read` saw them."""
    return [
        name
        for name, digest in read.items()
        if not Path(name).is_file() or file_sha256(Path(name)) != digest
    ]


class DataRoot:
    """Finds and reads data files.

    Args:
      root: of the files; None looks at the environment variable, then at `DEFAULTS`.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        given = root or os.environ.get(VARIABLE)
        self.roots = (Path(given),) if given else DEFAULTS

    def find(self, name: str) -> Path:
        """Return the path of a file; one without ``.gz`` serves too.

        Raises:
          ValueError: it is missing; where it was looked for, and how to get it.
        """
        tried = [root / n for root in self.roots for n in (name, name.removesuffix(".gz"))]
        for path in dict.fromkeys(tried):
            if path.is_file():
                return opening(path)
        looked = ", ".join(str(root.absolute()) for root in self.roots)
        raise ValueError(f"data file {name!r}: not found in {looked}; {HOW}")

    def has(self, name: str) -> bool:
        return any((root / n).is_file() for root in self.roots for n in (name, name[:-3]))

    def lines(self, name: str) -> Iterator[str]:
        """Yield the lines of a text file, each with its line end.

        Raises:
          ValueError: a file that is missing, damaged, empty, or not UTF-8.
        """
        yield from some(text_lines(self.find(name)), self.find(name))

    def rows(self, name: str, **columns: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (FILE:LINE, row) of a JSON-lines file.

        Args:
          columns: the type of each column that is wanted, as ``str`` or ``list[str]``.
        Raises:
          ValueError: a file that is missing, damaged, empty or no JSON lines, or a row that lacks a
            column, or has one of another type or an empty list.
        """
        path = self.find(name)
        plain = {column: get_origin(wanted) or wanted for column, wanted in columns.items()}
        for where, row in some(json_rows(path), path):
            checked_row(row, where, **plain)
            for column, wanted in columns.items():
                for inner in get_args(wanted):
                    right = row[column] and all(type(value) is inner for value in row[column])
                    if not right:
                        kind = f"wants a list of {inner.__name__}, not an empty one"
                        raise ValueError(f"{where}: {column}={row[column]!r:.80}: {kind}")
            yield where, row


def some(found: Iterator[Any], path: Path) -> Iterator[Any]:
    """Yield what a file holds, and raise if that is nothing."""
    empty = True
    for each in found:
        empty = False
        yield each
    if empty:
        raise ValueError(f"{path}: is empty; {HOW}")
