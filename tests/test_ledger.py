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


NUMBERS = {  # what a row is wanted for: the sections that are implemented
    "NL": {*range(6, 32), *range(54, 66), *range(70, 98), *range(113, 122)},
    "Titans": set(range(1, 32)),
}


def numbers(cell: str) -> set[int]:
    """Return the equations of a first cell: "NL Eq. 6, 8-10" gives 6, 8, 9, 10."""
    ranges = re.findall(r"(\d+)(?:-(\d+))?", cell.split("Eq.")[1].split("(")[0])
    return {n for low, high in ranges for n in range(int(low), int(high or low) + 1)}


@pytest.mark.parametrize("paper", NUMBERS)
def test_every_number_has_a_row(paper: str) -> None:
    cells = re.findall(rf"^\| ({paper} Eq\.[^|]*)\|", LEDGER, re.MULTILINE)
    had = [n for cell in cells for n in numbers(cell)]
    missing = NUMBERS[paper] - set(had)
    assert not missing, sorted(missing)


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
