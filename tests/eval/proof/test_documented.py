"""The documented range beside a new number: from the committed records, and what it cannot say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.proof.cells import Cell, Result, plan_cells
from eval.proof.documented import RECORDS, beside, ranges, read_documented
from eval.proof.records import command_of, record_of
from eval.proof.suites import SUITES


def cell_of(suite: str, folder: str) -> Cell:
    cells = plan_cells(SUITES[suite], SUITES[suite].budgets["quick"])
    return next(cell for cell in cells if cell.folder == folder)


def result(cell: Cell, *shares: float, text: str | None = None) -> Result:
    """Return what a cell would have left with these accuracies, or bits per byte of text."""
    names = cell.load().data.task.scored
    scores = {f"{n}/accuracy": share for n, share in zip(names, shares, strict=False)}
    bits = None if names else shares[0]
    summary = {"scores": scores, "valid_bits_per_byte": bits, "valid_text_sha256": text}
    return Result(cell, summary, (), "")


def write(folder: Path, suite: str, results: list[Result], **changes: object) -> None:
    lines = []
    for seed, each in enumerate(results):
        record = record_of(each._replace(summary={})) | each.summary | changes
        record |= {"seed": seed, "cell": record["cell"].replace("seed=0", f"seed={seed}")}
        record["command"] = [word.replace("seed=0", f"seed={seed}") for word in record["command"]]
        lines.append(json.dumps(record))
    (folder / f"{suite}-quick.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def parity() -> Cell:
    return cell_of("formal", "Parity/hope/lr=0.01,seed=0")


def test_each_number_is_held_to_its_own_range(parity: Cell, tmp_path: Path) -> None:
    write(tmp_path, "formal", [result(parity, 1.0, x, 0.0) for x in (0.039, 1.0, 0.5, 0.2, 0.1)])
    known = read_documented("formal", "quick", tmp_path)
    said = beside(result(parity, 1.0, 1.0, 0.127), known)
    assert said == (
        "documented 100.0 to 100.0: inside / 3.9 to 100.0: inside / 0.0 to 0.0: outside (5 seeds)"
    )


def test_fewer_than_five_seeds_are_said(parity: Cell, tmp_path: Path) -> None:
    write(tmp_path, "formal", [result(parity, 1.0, 0.5, 0.0)])
    said = beside(result(parity, 0.9, 0.5, 0.0), read_documented("formal", "quick", tmp_path))
    assert "100.0 to 100.0: outside / 50.0 to 50.0: inside" in said
    assert said.endswith("(1 seeds, fewer than 5)")


def test_another_configuration_is_not_documented(parity: Cell, tmp_path: Path) -> None:
    good = [result(parity, 1.0, 0.5, 0.0)]
    for changes in ({"failed": "exit status 3"}, {"command": [*command_of(parity), "model.dim=9"]}):
        write(tmp_path, "formal", good, **changes)
        known = read_documented("formal", "quick", tmp_path)
        assert beside(good[0], known) == "nothing documented"
    assert beside(good[0], read_documented("formal", "quick", tmp_path / "no")) == (
        "nothing documented"
    )


def test_text_has_bits_per_byte_and_must_be_the_same(tmp_path: Path) -> None:
    cell = cell_of("text", "real_text/hope/lr=0.003,seed=0")
    write(tmp_path, "text", [result(cell, x, text="a") for x in (1.7, 1.71234)])
    known = read_documented("text", "quick", tmp_path)
    said = beside(result(cell, 1.71, text="a"), known)
    assert said == "documented 1.7000 to 1.7123: inside (2 seeds, fewer than 5)"
    assert beside(result(cell, 1.71, text="b"), known) == "documented on other text"


def test_what_rounding_took_is_no_difference() -> None:
    assert ranges([12.34567891], [[12.3457]], 1).endswith("inside")
    assert ranges([12.36], [[12.3457]], 1).endswith("outside")


@pytest.mark.parametrize("suite", ["formal", "mqar", pytest.param("mad", marks=pytest.mark.slow)])
def test_the_committed_records_are_read(suite: str) -> None:
    known = read_documented(suite, "quick")
    assert RECORDS.is_dir()
    assert sum(map(len, known.values())) > 20
    for cell in plan_cells(SUITES[suite], SUITES[suite].budgets["quick"])[:1]:
        assert known[cell.folder.rpartition(",seed=")[0]]
