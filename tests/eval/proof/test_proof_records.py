"""Records of finished cells: what they hold is what the tables show, without the workdirs."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_proof import CURRICULUM, TINY, leave
from test_proof_text import MODELS
from test_proof_text import leave as leave_text

from eval.proof import command as proof
from eval.proof.cells import Cell, Result, failure_file, plan_cells, record_failure
from eval.proof.plan import Budget
from eval.proof.records import add_records, read_records, record_of, result_of
from eval.proof.report import choose, section
from eval.proof.suites import SUITES, text
from nested_jax.errors import ROOT

COMMITTED = ROOT / "benchmarks" / "results" / "proof"


@pytest.fixture
def tiny_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    formal = SUITES["formal"]._replace(budgets={"quick": CURRICULUM})
    monkeypatch.setitem(proof.SUITES, "formal", formal)


def arguments(folder: Path, *more: str) -> list[str]:
    """Return those of a driver with records; cells run in a folder of the driver's own."""
    begin = ["--suite", "formal", "--quick", "--jobs", "1", "--report", str(folder / "r.md")]
    return [*begin, "--out", str(folder / "out"), "--records", str(folder / "records"), *more]


def test_tables_are_written_again_without_the_runs(
    tiny_suite: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed cell too; another driver adds a seed, and the first one's cells do not run again."""
    ran: list[str] = []

    def run(cell: Cell, out: Path, cores: tuple[int, ...], stop: threading.Event) -> None:
        ran.append(f"{cell.case.name} {cell.model} {cell.seed}")
        if cell.model == "lstm" and cell.before:
            failure_file(cell.workdir(out)).parent.mkdir(parents=True)
            record_failure(cell, out, 3, "diverged")
        else:
            # A loss that rounds to 4.9057, and its record to 4.9056.
            leave(cell, out, (1 / 3 + 0.1 * cell.seed, 0.25, 0.0), 4.9056503)

    monkeypatch.setattr(proof, "run_cell", run)
    assert proof.COMMAND.run(arguments(tmp_path)) == 0
    assert len(ran) == 4
    page = (tmp_path / "r.md").read_text()
    assert "| transformer | 33.3 / 25.0 / 0.0 | 33.3 / 25.0 / 0.0 |" in page
    assert "| lstm | 33.3 / 25.0 / 0.0 | failed |" in page
    (tmp_path / "r.md").unlink()
    shutil.rmtree(tmp_path / "out")
    assert proof.COMMAND.run(arguments(tmp_path, "--tables")) == 0
    assert (tmp_path / "r.md").read_text() == page
    assert proof.COMMAND.run(arguments(tmp_path)) == 0
    assert len(ran) == 4
    assert proof.COMMAND.run(arguments(tmp_path, "--seed", "5", "--case", "Parity")) == 0
    assert ran[4:] == ["Parity transformer 5", "Parity lstm 5"]
    shutil.rmtree(tmp_path / "out")
    assert proof.COMMAND.run(arguments(tmp_path, "--tables")) == 0
    page = (tmp_path / "r.md").read_text()
    assert "| transformer | 58.3 ± 35.4 / 25.0 ± 0.0 / 0.0 ± 0.0 | 33.3 / 25.0 / 0.0 |" in page
    assert "`python -m eval proof --suite formal --quick --seed 0 --seed 5`" in page
    assert "6 of 8 runs" in page


def test_a_recorded_cell_runs_where_another_goes_on_from_it(
    tiny_suite: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record has no parameters. A failure is tried again with --retry, as without records."""
    ran: list[str] = []

    def run(cell: Cell, out: Path, cores: tuple[int, ...], stop: threading.Event) -> None:
        ran.append(f"{cell.case.name} {cell.model}")
        if ran.count("(aa)* lstm") == 1 and cell.before:
            failure_file(cell.workdir(out)).parent.mkdir(parents=True, exist_ok=True)
            record_failure(cell, out, 3, "diverged")
        else:
            leave(cell, out, (0.5, 0.25, 0.0))

    monkeypatch.setattr(proof, "run_cell", run)
    lstm = ("--model", "lstm")
    assert proof.COMMAND.run(arguments(tmp_path, *lstm, "--case", "Parity")) == 0
    shutil.rmtree(tmp_path / "out")
    assert proof.COMMAND.run(arguments(tmp_path, *lstm)) == 0
    assert ran == ["Parity lstm", "Parity lstm", "(aa)* lstm"]
    shutil.rmtree(tmp_path / "out")
    assert proof.COMMAND.run(arguments(tmp_path, *lstm)) == 0
    assert len(ran) == 3
    assert proof.COMMAND.run(arguments(tmp_path, *lstm, "--retry")) == 0
    assert ran[3:] == ["Parity lstm", "(aa)* lstm"]
    assert "No run failed." in (tmp_path / "r.md").read_text()


def test_records_of_text_have_the_loss_by_position(tmp_path: Path) -> None:
    budget = Budget(text("test"), MODELS, 2, 8, (3e-3,), (0,))
    cells = plan_cells(SUITES["text"], budget)
    for cell in cells:
        hashes = {"valid_text_sha256": "a" * 64, "train_order_sha256": "b" * 64}
        run = leave_text(cell, tmp_path, 2.0, [1.0, 2.0, 3.0, 4.0], **hashes)
        versions = {"python": "3.11", "jax": "0.10", "flax": "0.12"}
        more = {"seconds": 1.0, "device": "toy", "git_commit": None, "versions": versions}
        summary = json.dumps(run.summary | more | {"scores": {}})
        (cell.workdir(tmp_path) / "summary.json").write_text(summary)
    kept = tmp_path / "records" / "text-quick.jsonl"
    page = tmp_path / "r.md"
    make = proof.Proof("text", "quick", SUITES["text"], budget, tmp_path, page, "X", kept)
    make.write(cells)
    written = page.read_text()
    assert "| hope_attention | 2.0000 | 1.0000 | 2.0000 | 3.0000 | 4.0000 |" in written
    page.unlink()
    replace(make, out=tmp_path / "gone").write(cells)
    assert page.read_text() == written


def test_a_record_is_what_was_left_to_six_digits(tmp_path: Path) -> None:
    (cell, *_) = plan_cells(SUITES["formal"], TINY)
    result = leave(cell, tmp_path, (1 / 3, 0.0, 1.0), 2 / 3)._replace(
        known_from="a table", dates=("2026-01-01", "2026-01-02")
    )
    record = json.loads(json.dumps(record_of(result)))
    assert list(record["scores"].values()) == [0.333333, 0.0, 1.0]
    assert record["valid_loss"] == 0.666667
    back = result_of(record, cell)
    assert back.curve == result.curve == ((1, 2.0), (2, 1.0))
    assert (back.failed, back.known_from, back.dates) == ("", "a table", result.dates)
    assert back.summary["parameters"] == result.summary["parameters"]
    page = proof.Proof("formal", "quick", SUITES["formal"], TINY, tmp_path, tmp_path, "X")
    shown = section("formal quick", page, choose([back]), [back], [])
    assert "1 of the runs are known from a table only: no more exact" in shown
    assert "2026-01-01 to 2026-01-02" in shown


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("{", r"records.jsonl, line 2'?: wants a record of eval proof"),
        ("[]", r"line 2'?: wants a record of eval proof"),
        ({"seed": None}, r"line 2'?: wants a record of eval proof"),
        (
            {"cell": "Parity/mamba/lr=1,seed=0"},
            r"line 2'?: wants a cell of the suite: Parity/mamba",
        ),
        ({"command": ["other"]}, r"line 2'?: holds a run of another configuration \(.*other"),
    ],
)
def test_a_bad_record_names_its_line(line: Any, want: str, tmp_path: Path) -> None:
    cells = plan_cells(SUITES["formal"], TINY)
    good = record_of(leave(cells[0], tmp_path, (1.0, 1.0, 1.0)))
    if isinstance(line, dict):
        line = {**good, **line}
        line = json.dumps({name: value for name, value in line.items() if value is not None})
    file = tmp_path / "records.jsonl"
    file.write_text(f"{json.dumps(good)}\n{line}\n")
    with pytest.raises(ValueError, match=want):
        read_records(file, cells)


def committed() -> list[Any]:
    """Return the files of records in this repository; planning most suites takes a while."""
    files = sorted(COMMITTED.glob("*.jsonl"))
    fast = ("formal-quick", "mqar-quick", "text-quick")
    return [pytest.param(f, marks=() if f.stem in fast else pytest.mark.slow) for f in files]


@pytest.mark.parametrize("file", committed(), ids=lambda file: file.stem)
def test_the_tables_in_the_docs_are_those_of_the_records(file: Path, tmp_path: Path) -> None:
    """Nothing typed by hand: the page of the suite, line by line, but for its plots."""
    suite, mode = file.stem.split("-")
    flags = ["--suite", suite, "--records", str(COMMITTED)]
    flags += [] if mode == "default" else [f"--{mode}"]
    flags += ["--text", str(tmp_path)] if suite == "text" else []  # a record says FOLDER
    made = proof.proof_of(suite, proof.COMMAND.parse(flags))
    cells = plan_cells(made.suite, made.budget)
    recorded = read_records(file, cells)
    results: list[Result] = [recorded[c.folder] for c in cells if c.folder in recorded]
    want = section(f"{suite} {mode}", made, choose(results), results, [])
    page = (ROOT / "docs" / "proof" / f"{file.stem}.md").read_text(encoding="utf-8")
    assert made.report == ROOT / "docs" / "proof" / f"{file.stem}.md"
    name = f"proof {suite} {mode}"
    _, _, rest = page.partition(f"<!-- {name}: written by python -m eval proof -->\n")
    got, _, _ = rest.partition(f"\n<!-- {name}: end -->")
    lines = [line for line in got.splitlines() if not line.startswith("![")]
    assert [line for line in lines if line] == [line for line in want.splitlines() if line]


def test_no_results_leave_no_file(tmp_path: Path) -> None:
    assert add_records(tmp_path / "formal-full.jsonl", [], []) == []
    assert not (tmp_path / "formal-full.jsonl").exists()
