"""The driver of comparisons: what it runs, skips and reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from nested_jax.config import load_config, parse_overrides
from recipes import variants

PAIR = compare.Comparison("configs/char_lstm.py", {"on, at once": (), "off": ("--config.x=0",)})


@pytest.fixture(autouse=True)
def pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compare.COMPARISONS, "pair", PAIR)


def finished(workdir: Path, loss: float, step_s: float, **hashes: str) -> None:
    workdir.mkdir(parents=True)
    summary = {"valid_loss": loss, "valid_bits_per_byte": loss / 2, "tokens": 5000, **hashes}
    (workdir / "summary.json").write_text(json.dumps(summary))
    lines = [{"step": i, "step_s": t} for i, t in ((1, 9.0), (2, step_s), (3, step_s))]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 3, "valid_loss": loss}])
    (workdir / "metrics.jsonl").write_text(text)


def test_finished_runs_are_kept_and_the_rest_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run(_: object, variant: str, seed: int, workdir: Path, extra: list[str], *how: Any) -> None:
        ran.append((variant, seed, extra))
        finished(workdir, 3.0 + seed, 0.5)

    monkeypatch.setattr(variants, "run", run)
    finished(tmp_path / "pair" / "on_at_once-0", 2.0, 0.25)
    compare.main(["pair", "--root", str(tmp_path), "--seeds", "0", "1", "--", "--config.a=1"])
    more = ["--config.a=1"]
    assert ran == [("off", 0, more), ("on, at once", 1, more), ("off", 1, more)]
    rows = capsys.readouterr().out.splitlines()
    assert rows[2] == "| on, at once | 2 | 5,000 | 3.0000 ± 1.4142 | 1.5000 ± 0.7071 |  | 1.00 |"
    # Pairs of one seed: 3 - 2 and 4 - 4; 0.5 / 0.25 and 0.5 / 0.5.
    assert rows[3] == (
        "| off | 2 | 5,000 | 3.5000 ± 0.7071 | 1.7500 ± 0.3536 | 0.5000 ± 0.7071 | 1.50 |"
    )


def test_runs_of_another_text_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        same = {"valid_text_sha256": "a" * 64, "train_order_sha256": f"{seed}" * 64}
        finished(tmp_path / "pair" / f"on_at_once-{seed}", 2.0, 0.25, **same)
        other = {"train_order_sha256": "c" * 64} if seed else {}
        finished(tmp_path / "pair" / f"off-{seed}", 3.0, 0.25, **(same | other))
    compare.main(["pair", "--root", str(tmp_path), "--table", "--seeds", "0", "1"])
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "Not comparable" in line]
    assert (
        "off, seed 1: trained on other rows, or in another order than on, at once, seed 1" in said
    )


def test_a_table_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path / "pair" / "off-2", 2.0, 0.25)
    compare.main(["pair", "--root", str(tmp_path), "--table"])
    assert capsys.readouterr().out.splitlines()[2].startswith("| off | 1 | 5,000 | 2.0000 |")


@pytest.mark.parametrize("name", tuple(compare.COMPARISONS))
def test_every_variant_is_a_valid_experiment(name: str) -> None:
    comparison = compare.COMPARISONS[name]
    root = Path(compare.ROOT)
    configs = []
    for changes in comparison.variants.values():
        overrides = parse_overrides(list(changes))
        configs.append(load_config(str(root / comparison.config), overrides))
    assert len(set(map(repr, configs))) == len(configs)
