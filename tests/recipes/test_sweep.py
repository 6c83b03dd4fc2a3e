"""Sweeps: the grid, what is run and read, and what the table says of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import environment, tiny_config, write_config, write_data

from nested_jax.config.schema import to_dict
from nested_jax.files import write_json
from recipes import sweep, variants

LOSS = {("a=1", 0): 3.0, ("a=1", 1): 3.25, ("a=2", 0): 2.5, ("a=2", 1): 2.625, ("a=3", 0): 2.5,
        ("a=3", 1): 2.75}  # fmt: skip


def ended(workdir: Path, loss: float, config: dict[str, Any]) -> None:
    workdir.mkdir(parents=True)
    summary = {"valid_loss": loss, "valid_bits_per_byte": loss / 2, "tokens": 80, "seconds": 9.0}
    write_json(workdir / "summary.json", {**summary, "writes": {"level0": 3, "level1": 1}})
    write_json(workdir / "config.json", config)
    (workdir / "metrics.jsonl").write_text('{"step": 1, "step_s": 0.5}\n')


def test_a_grid_has_every_combination_once() -> None:
    grid = sweep.combinations(["teach.scale=0.1,0.2", "model.cms.periods=(8,16),(8,32)"])
    assert list(grid)[:2] == ["scale=0.1, periods=(8,16)", "scale=0.1, periods=(8,32)"]
    assert grid["scale=0.2, periods=(8,32)"] == (
        "--config.teach.scale=0.2", "--config.model.cms.periods=(8,32)",
    )  # fmt: skip
    assert len(grid) == 4


def test_a_sweep_goes_on_and_marks_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data")
    config = write_config(tmp_path, data)
    ran: list[tuple[str, int]] = []

    def run(comparison: Any, variant: str, seed: int, workdir: Path, *_: Any) -> None:
        ran.append((variant, seed))
        rate = float(comparison.variants[variant][0].partition("=")[2])
        changed = {"optim.learning_rate": rate, "seed": seed}
        key = {0.1: "a=1", 0.2: "a=2", 0.3: "a=3"}[rate], seed
        ended(workdir, LOSS[key], to_dict(tiny_config(data, changed)))

    monkeypatch.setattr(variants, "run", run)
    words = ["--config", str(config), "--over", "optim.learning_rate=0.1,0.2,0.3", "--seeds", "2"]
    out = tmp_path / "sweep"
    assert sweep.main([*words, "--out", str(out)]) == 0
    assert ran[:2] == [("learning_rate=0.1", 0), ("learning_rate=0.2", 0)]
    assert len(ran) == 6
    text = capsys.readouterr().out
    lines = {line.split(" | ")[0]: line for line in text.splitlines()}
    assert "| **learning_rate=0.2**" in lines  # 2.5, 2.625
    assert "| learning_rate=0.3 ≈" in lines  # differs by 0 and 0.125
    assert "| learning_rate=0.1 ≈" in lines  # by 0.5 and 0.625: two seeds leave 0.5625 ± 0.794
    assert "2.5625 ± 0.0884" in lines["| **learning_rate=0.2**"]
    found = json.loads((out / "sweep.json").read_text())
    assert found["best"] == "learning_rate=0.2"
    low, high = found["settings"][1]["interval"]
    assert (low + high) / 2 == 2.5625
    assert high - low == pytest.approx(2 * 12.7062 * 0.0625, rel=1e-4)
    assert text.strip() in (out / "sweep.md").read_text()
    assert sweep.main([*words, "--out", str(out)]) == 0
    assert len(ran) == 6
    assert sweep.main([*words, "--out", str(out), "--", "--config.train.steps=9"]) == 2
    assert re.search(r"another configuration \(config.train.steps: 12", capsys.readouterr().err)


BAD = [
    ("--over teach.scal=1,2", "teach.scal"),
    ("--over teach.scale=1,x", "teach.scale"),
    ("--over teach.scale", "--over='teach.scale': wants FIELD=A,B"),
    ("--over seed=1,2 --over seed=3", "each field once"),
    ("--over seed=1,1", "gives one combination twice"),
    ("--over seed=1,2 --seeds 0", "--seeds=0: wants 1 or more"),
    ("--over seed=1,2 --task nosuch", "--task='nosuch': wants one of babi"),
    ("--over nosuch.field=1,2", "nosuch"),
]


@pytest.mark.parametrize(("words", "want"), BAD)
def test_what_cannot_be_is_named_before_anything_runs(
    words: str, want: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, tmp_path / "data")
    assert sweep.main(["--config", str(config), *words.split(), "--out", f"{tmp_path}/o"]) == 2
    assert want in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_a_real_sweep_with_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment(1).items():
        monkeypatch.setenv(name, value)
    config = write_config(tmp_path, write_data(tmp_path / "data"), {"train.steps": 4})
    words = ["--config", str(config), "--over", "optim.learning_rate=0.001,0.01", "--seeds", "1"]
    words += ["--task", f"perplexity --segments {tmp_path}/data --split valid"]
    assert sweep.main([*words, "--out", str(tmp_path / "sweep")]) == 0
    text = capsys.readouterr().out
    assert "perplexity bits_per_byte" in text
    assert "one seed" in text
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    losses = [row["values"]["perplexity bits_per_byte"][0] for row in found["settings"]]
    assert len(set(losses)) == 2
