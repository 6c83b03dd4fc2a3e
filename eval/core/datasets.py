"""The files that evaluations read: where they are looked for, and what is said when they are not.

A root is a folder with ``zero_shot/piqa/validation.jsonl.gz`` and the like (docs/evaluation.md has
the list): ``--data-root``, else the environment variable NESTED_JAX_DATA, else ``data`` or
``../shared/data`` below the working directory, whichever has the file.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VARIABLE = "NESTED_JAX_DATA"
DEFAULTS = (Path("data"), Path("../shared/data"))
HOW = (
    f"give --data-root or set {VARIABLE}; docs/evaluation.md lists the files and columns, and "
    "`python -m eval fetch` gets the zero-shot ones from the Hugging Face Hub"
)


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
                return path
        looked = ", ".join(str(root.absolute()) for root in self.roots)
        raise ValueError(f"data file {name!r}: not found in {looked}; {HOW}")

    def has(self, name: str) -> bool:
        return any((root / n).is_file() for root in self.roots for n in (name, name[:-3]))

    def lines(self, name: str) -> Iterator[str]:
        """Yield the lines of a text file."""
        path = self.find(name)
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8") as file:
                yield from file
        else:
            with open(path, encoding="utf-8") as file:
                yield from file

    def rows(self, name: str, *columns: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a JSON-lines file.

        Raises:
          ValueError: a file that is missing or no JSON lines, or a row that lacks a column.
        """
        path = self.find(name)
        for number, line in enumerate(self.lines(name), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
            missing = [c for c in columns if c not in row]
            if missing:
                raise ValueError(f"{path}, line {number}: lacks {', '.join(missing)}")
            yield row
