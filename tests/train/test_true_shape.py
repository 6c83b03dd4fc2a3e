"""The recipe of GPT-2 124M at its true shape: two steps, and the folder of what they made."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tiny import ROOT, launch, write_data

from nested_jax.hub import export


@pytest.mark.slow
def test_two_steps_of_124m_and_their_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 layers, width 768, rows of 1,024, 50,349 symbols; the batch alone is smaller."""
    pytest.importorskip("safetensors")
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    small = ["train.batch_size=1", "train.steps=2", "train.log_every=1", "data.valid_rows=1"]
    flags = [f"--config.{field}" for field in (*small, "data.tokenizer=sentencepiece")]
    spec = f"{ROOT / 'configs/gpt2.py'}:124m_10b,source={data}"
    process = launch(Path(spec), run, *flags)
    out, errors = process.communicate(timeout=900)
    assert process.returncode == 0, out + errors
    summary = json.loads((run / "summary.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] == pytest.approx(math.log(50_349), abs=0.5)  # the start is nearly uniform
    assert summary["parameters"] == 124_510_464
    command = ["--checkpoint", str(run), "--layout", "gpt2", "--out", str(tmp_path / "out")]
    assert export.main([*command, "--check"]) == 0, capsys.readouterr().out
