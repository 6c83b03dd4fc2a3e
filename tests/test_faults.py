"""Faults at every point: a part of `python -m benchmarks.faults`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT

from benchmarks.faults.__main__ import main, table
from benchmarks.faults.shim import Operation

RESULT = ROOT / "benchmarks" / "results" / "faults-cpu.jsonl"


def faults(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.faults", *arguments]
    command += ["--out", str(tmp_path / "out.jsonl")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="wants a C compiler")
def test_a_part_of_all_operations(tmp_path: Path) -> None:
    rows = faults(tmp_path, "operations", "--every", "9", "--errors", "no")
    assert {row["fault"] for row in rows} == {"kill", "torn write", "machine lost"}
    assert all(row["faults"] > 0 for row in rows)
    assert [row["what"] for row in rows] == [[]] * len(rows)


@pytest.mark.slow
def test_thirty_kills_of_two_processes(tmp_path: Path) -> None:
    (row,) = faults(tmp_path, "kills", "--count", "30")
    assert (row["faults"], row["recovered"]) == (30, 30)


def test_the_table_is_of_the_committed_result() -> None:
    rows = [json.loads(line) for line in RESULT.read_text().splitlines()]
    assert all(row["faults"] == row["recovered"] + row["lost"] for row in rows)
    assert "\n".join(table(rows)) in (ROOT / "docs" / "scaling.md").read_text()


def test_what_differs_from_run_to_run_is_left_out_of_a_kind() -> None:
    names = {
        "/run/checkpoints/12/params/d/" + "0a" * 16: "/run/checkpoints/N/params/d/HASH",
        "/run/config.json.123.partial": "/run/config.json.N.partial",
        "/run/checkpoints/2/params/array_metadatas/process_0": "/run/checkpoints/N/params/"
        "array_metadatas/process_N",
        "/run/.lock." + "f" * 32 + ".new": "/run/.lock.HASH.new",
    }
    for path, want in names.items():
        assert Operation(1, "write", path, 0, 5).kind == f"write {want}"


def test_a_flag_of_another_kind_of_fault_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for what, flags in (("kills", ["--scenario", "shard"]), ("operations", ["--count", "3"])):
        with pytest.raises(SystemExit):
            main([what, *flags])
        assert f"{flags[0]}: belongs to" in capsys.readouterr().err
