"""Loss by position in the row, and what writing gains, from the files of runs."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import launch as launcher
from eval.proof import command as proof
from eval.proof.cells import Cell, Result, plan_cells, read_result
from eval.proof.plan import Budget
from eval.proof.positions import PARTS, Positions, measure, position_tables
from eval.proof.same_text import text_lines
from eval.proof.suites import SUITES, text
from nested_jax.config import load_config
from nested_jax.config.schema import to_dict
from nested_jax.data.held_out import valid_batches
from nested_jax.files import write_json
from nested_jax.models.lm import build_model
from nested_jax.outer_loss import loss_fn
from nested_jax.types import Batch

MODELS = ("hope_attention", "hope_attention, writes off")
WORDS = ("the cat sat on the mat and the dog ran to the hat ", "a bird sang. ", "no, no; yes! ")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Plain text with splits, enough for a few rows of 64 characters."""
    path = tmp_path / "text"
    path.mkdir()
    for split, count in (("train", 40), ("valid", 12), ("test", 2)):
        parts = itertools.islice(itertools.cycle(WORDS), count)
        (path / f"{split}.txt").write_text("".join(parts))
    return path


def test_parts_join_into_quarters_by_their_tokens() -> None:
    nats = [float(i) for i in range(PARTS)]
    tokens = [1.0] * 4 + [2.0, 0.0, 0.0, 0.0] + [0.0] * 4 + [1.0, 3.0, 0.0, 0.0]
    got = Positions(nats, tokens).means(4)
    np.testing.assert_allclose(got, [6 / 4, 22 / 2, np.nan, 54 / 4])
    assert len(Positions(nats, tokens).means()) == PARTS


def leave(cell: Cell, out: Path, bits: float, nats: list[float], **hashes: str) -> Result:
    workdir = cell.workdir(out)
    workdir.mkdir(parents=True)
    write_json(workdir / "config.json", to_dict(cell.load()))
    summary = {"step": 2, "valid_loss": bits, "valid_bits_per_byte": bits, "parameters": 9}
    write_json(workdir / "summary.json", {**summary, **hashes})
    record = {"step": 2, "nats": np.repeat(nats, PARTS // 4).tolist(), "tokens": [1.0] * PARTS}
    write_json(workdir / "positions.json", record)
    (workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    return read_result(cell, out)


def test_the_gain_is_paired_by_seed(tmp_path: Path) -> None:
    """Seeds differ by more than the gain; a seed that has run without writes only is left out."""
    budget = Budget(text("test"), MODELS, 2, 8, (3e-3,), (0, 1, 2))
    results = []
    for cell in plan_cells(SUITES["text"], budget):
        on, seed = cell.model == "hope_attention", cell.seed
        if not (on and seed == 2):
            gain = (0.25 + 0.5 * seed) * on
            loss = [seed + 3 - gain, seed + 3 - 2 * gain, 2.0, 2.0]
            results.append(leave(cell, tmp_path, 2.0 + 10 * seed - gain, loss))
    run = proof.Proof("text", "quick", SUITES["text"], budget, tmp_path, tmp_path / "r.md", "X")
    chosen = proof_choose(results)
    tables = position_tables(run, chosen)
    assert "| hope_attention | 0.5000 ± 0.3536 | 0.5000 ± 0.3536 | 1.0000 ± 0.7071 |" in tables
    assert tables.rstrip().endswith("| 0, 1 |")
    assert "| hope_attention, writes off | 12.0000 ± 10.0000 |" in tables


def cells_with(
    out: Path, hashes: dict[tuple[str, int], dict[str, str]]
) -> tuple[Any, list[Result]]:
    """Return a proof of two models and seeds, all on one text but for what `hashes` changes."""
    budget = Budget(text("test"), MODELS, 2, 8, (3e-3,), (0, 1))
    run = proof.Proof("text", "quick", SUITES["text"], budget, out, out / "r.md", "X")
    results = []
    for cell in plan_cells(SUITES["text"], budget):
        own = {"valid_text_sha256": "a" * 64, "train_order_sha256": str(cell.seed) * 64}
        own |= hashes.get((cell.model, cell.seed), {})
        known = {name: value for name, value in own.items() if value}
        results.append(leave(cell, out, 2.0, [2.0] * 4, **known))
    return run, results


WRITES, OFF = MODELS


def test_cells_of_one_text_stand_in_one_table(tmp_path: Path) -> None:
    run, results = cells_with(tmp_path, {})
    tables = position_tables(run, proof_choose(results))
    assert tables.count("2.0000 ± 0.0000") == 10
    assert text_lines(results) == (
        "- real text: 4 runs scored on the same held-out text (`valid_text_sha256` aaaaaaaaaaaa), "
        "trained in the same order within a seed"
    )


def test_a_model_that_was_scored_on_other_text_is_refused(tmp_path: Path) -> None:
    other = {"valid_text_sha256": "b" * 64}
    run, results = cells_with(tmp_path, {(OFF, 0): other, (OFF, 1): other})
    tables = position_tables(run, proof_choose(results))
    assert f"| {OFF} | other text |" in tables
    assert "gain from writing" not in tables
    said = text_lines(results)
    assert re.search(
        r"left out: .*writes_off/lr=0.003,seed=0: scored on other text than .*hope_attention/.*: "
        r"valid_text_sha256 b{12} for a{12}",
        said,
    )


def test_a_seed_that_was_trained_in_another_order_is_left_out(tmp_path: Path) -> None:
    run, results = cells_with(tmp_path, {(OFF, 1): {"train_order_sha256": "c" * 64}})
    tables = position_tables(run, proof_choose(results))
    assert tables.rstrip().endswith("| 0 |")  # the gain is of the seed that both have
    assert re.search(
        r"left out: .*writes_off/.*seed=1: trained on other rows, or in another order than "
        r".*train_order_sha256 c{12} for 1{12}",
        text_lines(results),
    )


def test_cells_from_before_the_hashes_are_named(tmp_path: Path) -> None:
    _, results = cells_with(tmp_path, {(WRITES, 1): {"valid_text_sha256": ""}})
    assert proof_choose(results)[0].results
    assert "held-out text not recorded: hope_attention, seed 1" in text_lines(results)
    assert "3 runs scored on the same" in text_lines(results)


def proof_choose(results: list[Result]) -> Any:
    from eval.proof.report import choose

    return choose(results)


@pytest.mark.parametrize("writes", ["exact", pytest.param("off", marks=pytest.mark.slow)])
def test_parts_add_up_to_the_held_out_loss(writes: str, folder: Path) -> None:
    """The loop of training scores the same rows; its loss is the parts' mean, and writes count."""
    overrides = {"data.source": str(folder), "data.cache_dir": str(folder.parent / "cache")}
    overrides["model.layers"] = 1
    cfg = load_config(f"configs/real_text.py:test,writes={writes},rows=4", overrides)
    model = build_model(cfg.model)
    params = jax.jit(model.init)(jax.random.key(0))
    got = measure(params, cfg)
    step = jax.jit(lambda p, b: loss_fn(model, p, b, cfg)[1])
    (batch,) = valid_batches(cfg.data, batch_size=4, align=cfg.align)
    want = step(params, Batch(**batch))
    assert sum(got.tokens) == float(want["tokens"])
    np.testing.assert_allclose(sum(got.nats) / sum(got.tokens), float(want["loss"]), rtol=1e-5)


@pytest.mark.slow
def test_the_suite_runs_on_a_folder_of_text(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = (f"data.cache_dir={tmp_path / 'cache'}",)
    budget = Budget(text("test,rows=4", *cache), MODELS, 2, 8, (3e-3,), (0,))
    monkeypatch.setitem(proof.SUITES, "text", SUITES["text"]._replace(budgets={"quick": budget}))

    def run(cell: Cell, out: Path, *_: Any) -> None:
        assert launcher.main(cell.command(cell.workdir(out))[1:]) == 0

    monkeypatch.setattr(proof, "run_cell", run)
    page = tmp_path / "docs" / "results.md"
    flags = ["--suite", "text", "--quick", "--jobs", "1", "--text", str(folder)]
    assert proof.COMMAND.run([*flags, "--out", str(tmp_path / "out"), "--report", str(page)]) == 0
    assert "| gain from writing | bits per byte |" in page.read_text()
    assert "real text: 2 runs scored on the same held-out text" in page.read_text()
    assert "--config.data.source=FOLDER" in page.read_text()
    assert str(folder) not in page.read_text()
    files = sorted((tmp_path / "out").rglob("positions.json"))
    assert [len(json.loads(file.read_text())["nats"]) for file in files] == [PARTS] * 2
    assert (tmp_path / "docs/plots/proof-text-quick-position.png").stat().st_size > 1000
