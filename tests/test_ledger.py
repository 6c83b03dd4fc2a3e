"""docs/equations.md names functions and tests that exist, and every row names both."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEDGER = (ROOT / "docs" / "equations.md").read_text()
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)(::?)(\w+)`", LEDGER)))


def defined(file: Path) -> set[str]:
    """Return the functions and classes of a file, those of classes included."""
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds)}


@pytest.mark.parametrize("file", sorted({file for file, _, _ in NAMED}))
def test_what_the_ledger_names_exists(file: str) -> None:
    assert (ROOT / file).is_file(), file
    names = {name for where, _, name in NAMED if where == file}
    assert names <= defined(ROOT / file), names - defined(ROOT / file)


def test_every_row_names_a_function_and_a_test() -> None:
    rows = [line for line in LEDGER.splitlines() if line.startswith("|")]
    rows = [r for r in rows if not r.startswith(("|---", "| equation"))]
    assert len(rows) > 20
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 5, row
        assert re.search(r"`(nested_jax)/[\w/]+\.py:\w+`", cells[2]), row
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", cells[3]), row


def test_tests_are_named_with_two_colons() -> None:
    for file, colons, name in NAMED:
        is_test = file.startswith("tests/")
        assert colons == ("::" if is_test else ":"), (file, name)
        assert name.startswith("test_") == is_test, (file, name)
