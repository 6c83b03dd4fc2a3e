"""Tasks that are run on the cells of a proof: their tables, records, and a whole tiny suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import launch as launcher
from eval.proof import command as proof
from eval.proof.cells import Cell, Result, plan_cells
from eval.proof.measures import first_gain, measure_tables, numbers
from eval.proof.plan import Budget
from eval.proof.records import record_of, result_of
from eval.proof.report import choose
from eval.proof.suites import SUITES
from eval.proof.text_suites import FAR, text

MODELS = ("hope_attention", "transformer, full attention")
GROUP = {"bits_per_byte": 2.0, "control_bits_per_byte": 2.5, "gain 0-8": 0.5, "gain 8-128": 1.5}


def group(gain: float, written: float, beyond: str = "") -> dict[str, Any]:
    return {**GROUP, "gain": gain, "beyond": beyond, "memorized": {**GROUP, "gain": written}}


def results(tmp_path: Path) -> list[Result]:
    """Two seeds: one model gains by writing, the other has nothing to write and less room."""
    budget = Budget(text("test"), MODELS, 2, 8, (3e-3,), (0, 1))
    found = []
    for cell in plan_cells(SUITES["text"], budget):
        wins = cell.model == MODELS[0]
        near = group(0.1, 3.0 + cell.seed) if wins else group(0.2, 0.2)
        tasks = {"repeat": {"run@128": near}}
        if wins:
            tasks["repeat"]["run@1024"] = group(0.0, 1.0, "attention")
        tasks["passkey"] = {"passkey@512": {"rank1": 0.1, "memorized": {"rank1": 0.5}}}
        begun = 200 if cell.seed else 100
        repeats = tuple(
            (t, {"repeat/128/written": 2.0 * wins * (t >= begun), "repeat/128/written_stderr": 0.1})
            for t in (100, 200)
        )
        summary = {"valid_loss": 1.0, "valid_bits_per_byte": 2.0, "step": 2, "parameters": 9}
        found.append(Result(cell, summary, (), "", tasks=tasks, repeats=repeats))
    return found


def test_tables_say_what_was_written_where_and_when(tmp_path: Path) -> None:
    tables = measure_tables(choose(results(tmp_path)))
    for line in (
        "| model | 128 tokens (run) | 1,024 tokens (run) | seeds |",
        "| hope_attention, writing while it reads | 3.50 ± 0.71 | 1.00 ± 0.00 | 0, 1 |",
        "| hope_attention, writes off | 0.10 ± 0.00 | 0.00 ± 0.00 | 0, 1 |",
        "| transformer, full attention | 0.20 ± 0.00 | - | 0, 1 |",
        "| hope_attention, writes off | 2.000 (2.500) | 2.000 (2.500) |",
        "| hope_attention, writes off | 0.50 ± 0.00 | 1.50 ± 0.00 |",
        "| hope_attention | 0.100 ± 0.000 / 0.500 ± 0.000 |",
        "| hope_attention | 200 |",  # the seed that begins last
        "| transformer, full attention | never |",
    ):
        assert line in tables
    assert "Beyond: 1,024: attention (hope_attention)." in tables


def test_a_gain_counts_where_it_is_no_accident(tmp_path: Path) -> None:
    run = results(tmp_path)[0]
    small = {"repeat/128/written": 0.2, "repeat/128/written_stderr": 0.1}
    assert first_gain(run._replace(repeats=((100, small),)), 128) is None
    assert first_gain(run._replace(repeats=((100, {**small, "repeat/128/written": 0.4}),)), 128)


def test_records_have_what_was_measured(tmp_path: Path) -> None:
    run = results(tmp_path)[0]
    run.summary["versions"] = {"python": "3", "jax": "1", "flax": "1"}
    record = json.loads(json.dumps(record_of(run)))
    back = result_of(record, run.cell)
    assert (back.tasks, back.repeats) == (run.tasks, run.repeats)
    listed = {
        "gain": 1.0,
        "by_token": [1.0],
        "gain_interval": (0, 1),
        "memorized": {"by_token": []},
    }
    assert numbers(listed) == {"gain": 1.0, "memorized": {}}


def test_suites_of_passages_are_whole() -> None:
    """Models are matched; ten points of training; every cell of a case has the same fields."""
    medium = SUITES["text"].budgets["medium"]
    cells = plan_cells(SUITES["text"], medium._replace(rates=(1e-3,), seeds=(0,)))
    assert [cell.model for cell in cells] == list(medium.models)
    for cell in cells:
        cfg = cell.load()
        assert cfg.train.eval_tasks == (f"repeat:{','.join(map(str, FAR))}",)
        assert cfg.train.steps // cfg.train.eval_every == 10
        assert cfg.train.steps * cfg.train.batch_size * cfg.data.seq_len == pytest.approx(
            3e7, rel=0.01
        )
        assert cfg.data.tokenizer == "sentencepiece"
    assert len(plan_cells(SUITES["repeat"], SUITES["repeat"].budgets["quick"])) == 30


def test_a_budget_that_a_suite_lacks_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ValueError, match="--suite='mad': wants a budget of it: quick, default, full"
    ):
        proof.COMMAND.run(["--suite", "mad", "--medium", "--list"])
    with pytest.raises(ValueError, match="wants one of --quick, --medium"):
        proof.COMMAND.run(["--suite", "text", "--medium", "--quick", "--list"])


@pytest.mark.slow
def test_a_tiny_medium_suite_runs_and_is_read_from_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells train, read passages at every evaluation, and are measured; nothing runs twice."""
    folder = tmp_path / "text"
    folder.mkdir()
    words = "the cat sat on the mat and the dog ran to the hat; a bird sang. "
    for split, count in (("train", 90), ("valid", 40)):
        (folder / f"{split}.txt").write_text("".join(words[i % 9 :] for i in range(count)))
    fields = (f"data.cache_dir={tmp_path / 'cache'}", "train.eval_tasks=('repeat:20',)")
    tasks = (("repeat", ("--memorize", "--distances", "20", "--passages", "2")),)
    case = text("test,rows=4", *fields, "train.eval_every=1", "model.max_len=512")
    budget = Budget(case, MODELS, 2, 8, (3e-3,), (0,), tasks)
    monkeypatch.setitem(proof.SUITES, "text", SUITES["text"]._replace(budgets={"medium": budget}))
    ran = []

    def run(cell: Cell, out: Path, *_: Any) -> None:
        ran.append(cell.model)
        assert launcher.main(cell.command(cell.workdir(out))[1:]) == 0

    monkeypatch.setattr(proof, "run_cell", run)
    page = tmp_path / "docs" / "text-medium.md"
    flags = ["--suite", "text", "--medium", "--jobs", "1", "--text", str(folder)]
    flags += ["--records", str(tmp_path / "records"), "--report", str(page)]
    assert proof.COMMAND.run([*flags, "--out", str(tmp_path / "out")]) == 0
    assert ran == list(MODELS)
    said = page.read_text()
    assert "| model | 20 tokens (run) | 20 tokens (random) | seeds |" in said
    assert "first costs less" in said
    assert len(list((tmp_path / "docs/plots").glob("proof-text-medium-repeat*.png"))) == 2
    assert proof.COMMAND.run([*flags, "--out", str(tmp_path / "elsewhere")]) == 0
    assert ran == list(MODELS)
    assert page.read_text() == said
