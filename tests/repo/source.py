"""The files that the checks read, by module name."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

TOPS = ("nested_jax", "eval", "configs", "recipes", "launch.py")


def modules(root: Path, tops: Sequence[str] = TOPS) -> dict[str, Path]:
    """Return the files below `root` by module name; a package is its ``__init__.py``."""
    found = {}
    for top in tops:
        place = root / top
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            name = ".".join(file.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = file
    return found


@cache
def _parse(file: Path, changed: int) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def parse(file: Path) -> ast.Module:
    return _parse(file, file.stat().st_mtime_ns)


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
