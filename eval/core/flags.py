"""Flags as data: a name, a default, what it means, and the least value that it may have."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nested_jax.errors import require


class Flag(NamedTuple):
    """A flag, or a positional argument (a name without dashes)."""

    name: str
    default: Any
    help: str
    least: float | None
    makes: str  # file | folder: a path that is written
    how: dict[str, Any]  # of argparse.ArgumentParser.add_argument

    def add_to(self, parser: Any) -> None:
        how = dict(self.how)
        if self.default is False:
            how["action"] = "store_true"
        elif isinstance(self.default, (int, float)):
            how.setdefault("type", type(self.default))
        parser.add_argument(self.name, default=self.default, help=self.help, **how)

    def check(self, values: argparse.Namespace) -> None:
        """Raise for a bad number, or a path that cannot be written, before anything is loaded."""
        value = getattr(values, self.name.strip("-").replace("-", "_"))
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, float):
                require(math.isfinite(each), self.name, each, "wants a finite number")
            if self.least is not None and each is not None:
                require(each >= self.least, self.name, each, f"wants {self.least} or more")
            if self.makes and each is not None:
                check_place(self.name, each, self.makes)


def flag(
    name: str,
    default: Any = None,
    help: str = "",
    least: float | None = None,
    makes: str = "",
    **how: Any,
) -> Flag:
    """Return a flag; `how` are arguments of argparse, which takes the type of the default."""
    return Flag(name, default, help, least, makes, how)


OUT = flag("--out", help="JSON file of the result (a task: eval/TASK-TIME.json of the workdir)",
           makes="file", type=Path)  # fmt: skip


def parser_for(
    name: str, doc: str | None, groups: Iterable[tuple[str, Sequence[Flag]]]
) -> argparse.ArgumentParser:
    """Return the parser of a command: its flags in groups, each under a title ("" has none)."""
    parser = argparse.ArgumentParser(
        prog=f"python -m eval {name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for title, flags in groups:
        place = parser.add_argument_group(title) if title else parser
        for each in flags:
            each.add_to(place)
    return parser


def check_place(name: str, path: Path, kind: str) -> None:
    """Raise unless a file or a folder can be written at `path`; nothing is written yet."""
    wrong = path.is_dir() if kind == "file" else path.exists() and not path.is_dir()
    other = "folder" if kind == "file" else "file"
    require(not wrong, name, str(path), f"is a {other}, wants a {kind}")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    right = above.is_dir() and os.access(above, os.W_OK)
    require(right, name, str(path), f"cannot be made: {above} is no folder that may be written")


def split_rest(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before and after the first ``--``."""
    words = list(arguments)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def choose(text: str, known: Iterable[str], name: str) -> list[str]:
    """Return the names of ``all`` or of a comma-separated list, each once.

    Args:
      text: the value of the flag.
      known: every name.
      name: of the flag.
    Raises:
      ValueError: an unknown name, with the known ones, or none.
    """
    names = list(known)
    chosen = names if text == "all" else [part.strip() for part in text.split(",") if part.strip()]
    for each in chosen or [text]:
        require(each in names, name, each, f"wants all, or some of {', '.join(names)}")
    return list(dict.fromkeys(chosen))


def parse_lengths(text: str, name: str = "--context-lengths") -> list[int]:
    """Return the lengths of ``512,4096``, each once.

    Raises:
      ValueError: something that is no positive number.
    """
    parts = [part.strip() for part in text.split(",")]
    right = all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts)
    require(right, name, text, "wants tokens, as in 512,4096")
    return list(dict.fromkeys(map(int, parts)))
