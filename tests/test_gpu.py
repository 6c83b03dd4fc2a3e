"""benchmarks/gpu.py: its checks on a GPU, and its code on any machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from quick_compile import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu

ON_GPU = pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="wants an NVIDIA GPU")


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize("name", gpu.CHECKS)
def test_on_a_gpu(name: str) -> None:
    """At pilot size, in a process of its own: the tests themselves run on the CPU."""
    command = [sys.executable, gpu.__file__, "--one", name]
    environ = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    ended = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_the_table_is_printed_last_and_what_failed_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = gpu.measure("transformer", 64, True)
    assert line["rows"] == 4
    assert line["tokens_per_s"] == pytest.approx(256 / line["step_s"])
    assert line["plan_bytes"] > 0

    def run(name: str, quick: bool, left_s: float) -> dict[str, Any]:
        assert quick
        assert 0 < left_s <= gpu.LIMIT_S
        if name in gpu.CHECKS:
            return {"check": name, "found": "fine"}
        return {"name": name, "failed": "out of memory"} if "hope@" in name else line

    out = tmp_path / "gpu.jsonl"
    assert gpu.main(["--quick", "--out", str(out)], run) == 1
    found = [json.loads(text) for text in out.read_text().splitlines()]
    assert len(found) == len(gpu.names(True))
    assert all(x["versions"]["jax"] for x in found)
    text = capsys.readouterr().out
    assert "hope@64: out of memory" in text
    assert text.rstrip().splitlines()[-1] == gpu.row(line)
    assert gpu.main(["--quick"], lambda *_: {"name": "x", "failed": "out of time"}) == 0


def test_curves_that_are_apart_are_no_pass() -> None:
    assert "2.0e-03 apart" in gpu.compare([1.0, 1.0], [1.0, 1.002], 5e-3)
    for wrong in ([1.0, 1.1], [1.0, float("nan")]):
        with pytest.raises(SystemExit, match="apart, at most"):
            gpu.compare([1.0, 1.0], wrong, 5e-3)


@pytest.mark.slow
def test_the_quick_command_runs_here(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    command = [sys.executable, gpu.__file__, "--quick", "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = [json.loads(text) for text in out.read_text().splitlines()]
    assert [x for x in found if "failed" in x] == []
    assert {x["model"] for x in found if "model" in x} == set(gpu.MODELS)
