"""The proof driver: equal parameters, cells that run once, tables that say what files say."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main as eval_main
from eval.proof import command as proof
from eval.proof.cells import (
    Cell,
    Result,
    config_in,
    failure_file,
    finished,
    load_cell,
    log_file,
    parameters,
    plan_cells,
    read_record,
    read_result,
    record_failure,
    run_cell,
    state_size,
)
from eval.proof.plan import Budget, Case
from eval.proof.plots import recalled
from eval.proof.report import choose, update_section
from eval.proof.suites import SUITES, languages, mqar
from nested_jax.config.schema import to_dict
from nested_jax.data.synthetic.rows import task_of
from nested_jax.files import try_flock, write_json

TINY = Budget(languages("Parity"), ("transformer", "hope frozen"), 2, 8, (3e-3,), (0,))


@pytest.fixture
def tiny_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = TINY._replace(cases=(TINY.cases[0]._replace(overrides=("data.valid_rows=4",)),))
    monkeypatch.setitem(
        proof.SUITES, "formal", SUITES["formal"]._replace(budgets={"quick": budget})
    )


@pytest.mark.parametrize(
    ("suite", "mode"),
    [
        ("formal", "quick"),
        ("counting", "quick"),
        ("text", "quick"),
        pytest.param("mqar", "quick", marks=pytest.mark.slow),
        pytest.param("mad", "quick", marks=pytest.mark.slow),
        pytest.param("ablation", "quick", marks=pytest.mark.slow),
        pytest.param("formal", "default", marks=pytest.mark.slow),
        pytest.param("ablation", "default", marks=pytest.mark.slow),
    ],
)
def test_parameters_of_a_case_differ_by_2_percent_at_most(suite: str, mode: str) -> None:
    cells = plan_cells(SUITES[suite], SUITES[suite].budgets[mode])
    budget = SUITES[suite].budgets[mode]
    assert len({cell.folder for cell in cells}) == len(cells) == budget.runs
    for case in budget.cases:
        counts = [parameters(cell) for cell in cells if cell.case == case]
        assert max(counts) <= 1.02 * min(counts)


def test_all_models_see_the_same_rows_in_the_same_order() -> None:
    cells = plan_cells(SUITES["formal"], SUITES["formal"].budgets["quick"])
    first = cells[0].load()
    for cell in cells:
        cfg = cell.load()
        if (cell.case, cell.rate) == (cells[0].case, cells[0].rate):
            assert cfg.data.task == first.data.task
            assert (cfg.seed, cfg.train.batch_size) == (first.seed, first.train.batch_size)
            assert cfg.optim == first.optim


def test_a_model_that_cannot_be_matched_is_refused() -> None:
    case = Case("Parity", "configs/synthetic.py", "parity,lstm_hidden=400")
    budget = TINY._replace(cases=(case,), models=("lstm",))
    with pytest.raises(ValueError, match=r"Parity, lstm=\d+: wants \d+ parameters within 2%"):
        plan_cells(SUITES["formal"], budget)


def pretend(ran: list[str]) -> Any:
    """Stands for `run_cell`: the files that a run would leave, without the run."""

    def run(cell: Cell, out: Path, cores: tuple[int, ...], stop: threading.Event) -> None:
        ran.append(cell.model)
        leave(cell, out, (0.5, 0.25, 0.0))

    return run


def test_finished_cells_are_not_run_again(
    tiny_suite: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(proof, "run_cell", pretend(ran))
    page = tmp_path / "results.md"
    page.write_text("# Results\n\nBefore.\n")
    arguments = ["--suite", "formal", "--quick", "--jobs", "1"]
    arguments += ["--out", str(tmp_path / "out"), "--report", str(page)]
    assert proof.COMMAND.run(arguments) == 0
    assert ran == ["transformer", "hope frozen"]
    text = page.read_text()
    assert proof.COMMAND.run(arguments) == 0
    assert ran == ["transformer", "hope frozen"]
    assert page.read_text() == text
    assert text.startswith("# Results\n\nBefore.\n\n<!-- proof formal quick")
    (tmp_path / "out/formal-quick/Parity/hope_frozen/lr=0.003,seed=0/summary.json").unlink()
    assert proof.COMMAND.run([*arguments, "--tables"]) == 0
    assert ran == ["transformer", "hope frozen"]
    assert "| hope frozen |" in text
    assert "| hope frozen |" not in page.read_text()
    assert proof.COMMAND.run(arguments) == 0
    assert ran[2:] == ["hope frozen"]
    for plot in ("curves", "length"):
        assert (tmp_path / f"plots/proof-formal-quick-{plot}.png").stat().st_size > 1000
        assert f"plots/proof-formal-quick-{plot}.png" in text
    summary = read_cells(tmp_path / "out", proof.SUITES["formal"].budgets["quick"])[0].summary
    assert f"| Parity | transformer | {summary['parameters']:,} | 0.003 | 2 | 8 | 0 |" in text


def read_cells(out: Path, budget: Budget) -> list[Result]:
    cells = plan_cells(proof.SUITES["formal"], budget)
    return [read_result(cell, out / "formal-quick") for cell in cells]


def test_a_folder_of_another_budget_is_refused(tmp_path: Path) -> None:
    (cell, *_) = plan_cells(SUITES["formal"], TINY)
    leave(cell, tmp_path, (1.0, 0.5, 0.0))
    assert finished(cell, tmp_path)
    summary = cell.workdir(tmp_path) / "summary.json"
    whole = summary.read_text()
    summary.write_text(whole.replace('"step": 2', '"step": 1'))
    assert not finished(cell, tmp_path)  # a run whose steps were raised goes on
    summary.write_text(whole)
    config = cell.config.replace("steps=2", "steps=3")
    with pytest.raises(ValueError, match=r"train.steps: 2 -> 3.*wants another folder"):
        finished(replace(cell, config=config), tmp_path)


def test_a_refused_run_is_recorded_and_one_of_another_driver_left_to_it(tmp_path: Path) -> None:
    (cell, *_) = plan_cells(SUITES["formal"], TINY)
    bad = replace(cell, overrides=("data.seq_len=49",))
    log = log_file(bad.workdir(tmp_path))
    log.parent.mkdir(parents=True)
    with open(log, "ab") as other:
        assert try_flock(other)
        run_cell(bad, tmp_path, (), threading.Event())
        assert proof.outcome(bad, tmp_path) == "left to the driver that is running it"
    run_cell(bad, tmp_path, (), threading.Event())
    assert finished(bad, tmp_path)
    result = read_result(bad, tmp_path)
    assert result.failed.startswith("exit status 2: launch.py: error: data.seq_len=49: wants 50")
    assert failure_file(bad.workdir(tmp_path)).exists()


@pytest.mark.slow
def test_a_cell_runs_in_a_process_of_its_own_and_stops_when_told(tmp_path: Path) -> None:
    (cell, *_) = plan_cells(SUITES["formal"], TINY)
    stop = threading.Event()
    stop.set()
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, tmp_path, (), stop)
    assert not finished(cell, tmp_path)
    run_cell(cell, tmp_path, (), threading.Event())
    assert finished(cell, tmp_path)
    assert read_result(cell, tmp_path).summary["step"] == 2


def test_a_case_may_have_steps_rows_and_rates_of_its_own() -> None:
    """The same for all its models; the first rate of every case comes before the second of any."""
    own = languages("(aa)*", steps=5, batch=4, rates=(1e-2, 1e-3))
    budget = TINY._replace(cases=TINY.cases + own)
    cells = plan_cells(SUITES["formal"], budget)
    assert len(cells) == budget.runs == 6
    seen = [(c.case.name, c.rate, c.load().train.steps, c.load().train.batch_size) for c in cells]
    parity, aa = ("Parity", 3e-3, 2, 8), ("(aa)*", 1e-2, 5, 4)
    assert seen == [parity, parity, aa, aa, *[("(aa)*", 1e-3, 5, 4)] * 2]
    assert {cell.load().optim.learning_rate for cell in cells[4:]} == {1e-3}


CURRICULUM = TINY._replace(
    cases=TINY.cases + languages("(aa)*", after="Parity", steps=3), models=("transformer", "lstm")
)


def test_a_case_goes_on_from_the_cells_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same model, rate and seed; they run first, asked for or not."""
    monkeypatch.setitem(
        proof.SUITES, "formal", SUITES["formal"]._replace(budgets={"quick": CURRICULUM})
    )
    ran: list[str] = []

    def run(cell: Cell, out: Path, cores: tuple[int, ...], stop: threading.Event) -> None:
        if cell.before:
            assert finished(cell.before, out)
        time.sleep(0.2 if cell.before is None else 0.0)  # its turn comes while the first runs
        ran.append(f"{cell.case.name} {cell.model}")
        leave(cell, out, (0.5, 0.25, 0.0))

    monkeypatch.setattr(proof, "run_cell", run)
    arguments = ["--suite", "formal", "--quick", "--out", str(tmp_path / "out")]
    arguments += ["--report", str(tmp_path / "r.md"), "--jobs", "2", "--case", "(aa)*"]
    assert proof.COMMAND.run([*arguments, "--model", "lstm", "--list"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    folder = tmp_path / "out/formal-quick/Parity/lstm/lr=0.003,seed=0"
    assert "init_from" not in first
    assert second.endswith(f"--config.train.init_from={folder}")
    assert proof.COMMAND.run([*arguments, "--model", "lstm"]) == 0
    assert ran == ["Parity lstm", "(aa)* lstm"]
    assert proof.COMMAND.run(arguments) == 0
    assert ran[2:] == ["Parity transformer", "(aa)* transformer"]
    assert "- (aa)*: 3 steps after those of Parity, all models alike" in (
        (tmp_path / "r.md").read_text()
    )


def test_a_cell_does_not_begin_with_a_run_that_is_not_there(tmp_path: Path) -> None:
    """Another driver may be at the first run; where that failed, this one cannot be run either."""
    (first, _, cell, _) = plan_cells(SUITES["formal"], CURRICULUM)
    assert cell.before == first
    run_cell(cell, tmp_path, (), threading.Event())
    assert not cell.workdir(tmp_path).exists()
    assert proof.outcome(cell, tmp_path).startswith(f"not run: wants {first.folder} first")
    first.workdir(tmp_path).parent.mkdir(parents=True)
    record_failure(first, tmp_path, 3, "diverged")
    run_cell(cell, tmp_path, (), threading.Event())
    failed = f"exit status 2: goes on from {first.folder}, which failed"
    assert read_result(cell, tmp_path).failed == failed
    assert finished(cell, tmp_path)
    with pytest.raises(ValueError, match=r"train.init_from: '.*' -> ''"):
        finished(replace(cell, before=None), tmp_path)


def test_a_cell_goes_on_from_its_own_model_rate_and_seed() -> None:
    budget = CURRICULUM._replace(rates=(1e-3, 3e-3), seeds=(0, 1))
    later = [cell for cell in plan_cells(SUITES["formal"], budget) if cell.before]
    assert len(later) == 8
    for cell in later:
        assert cell.before is not None
        assert cell.before.case == budget.cases[0]
        own = (cell.model, cell.rate, cell.seed)
        assert (cell.before.model, cell.before.rate, cell.before.seed) == own
    budget = CURRICULUM._replace(cases=CURRICULUM.cases[::-1])
    with pytest.raises(ValueError, match=r"\(aa\)\*.after='Parity': wants a case before it with"):
        plan_cells(SUITES["formal"], budget)


SHORT, LONG = (8, 1), (16, 2)  # tokens, pairs
RECALL = TINY._replace(
    cases=mqar(32, (64, 128), (SHORT, LONG), further=3, longer=(5, 7)), models=("gated_deltanet",)
)


def test_recall_goes_from_short_rows_to_long_ones_width_by_width() -> None:
    short, long, longer, longest, *wide = plan_cells(SUITES["mqar"], RECALL)
    befores = (short.before, long.before, longer.before, longest.before)
    assert befores == (None, short, long, longer)
    assert wide[0].before is None
    assert [cell.load().train.steps for cell in (short, long, longer, longest)] == [2, 3, 5, 7]
    assert [cell.load().model.heads for cell in (short, *wide)] == [1, 2, 2, 2, 2]
    rows = [cell.load().data.task for cell in (long, longer, longest)]
    tasks = [[task_of(spec) for spec in each.scored] for each in rows]
    sizes = [[(task.tokens, task.pairs) for task in each] for each in tasks]
    assert sizes == [
        [LONG],
        [LONG, SHORT],
        [LONG, SHORT],
    ]  # the rate is chosen on what is trained on
    assert len({each.train for each in rows}) == 1
    assert all(case.after == "" for case in mqar(32, (64,), (SHORT, LONG)))


@pytest.mark.slow
def test_plots_of_recall_have_every_test_of_a_case(tmp_path: Path) -> None:
    cells = plan_cells(SUITES["mqar"], RECALL)
    results = [leave(c, tmp_path, (0.5, 0.75)[: len(c.load().data.task.scored)]) for c in cells]
    chosen = {one.case: one for one in choose(results)}
    longer = recalled(chosen[f"{LONG} width 64, longer 2"])
    assert [(task.pairs, mean) for task, mean in longer] == [(2, 50.0), (1, 75.0)]
    assert [mean for _, mean in recalled(chosen[f"{SHORT} width 128"])] == [50.0]
    run = proof.Proof("mqar", "default", SUITES["mqar"], RECALL, tmp_path, tmp_path / "r.md", "")
    run.write(cells)
    page = (tmp_path / "r.md").read_text()
    width = " | 50.0 | 50.0 | 50.0 / 75.0 | 50.0 / 75.0"
    assert f"| gated_deltanet{width}{width} |" in page
    assert "- (16, 2) width 64, longer 2: 7 steps after those of (16, 2) width 64, longer," in page
    assert {p.name.rsplit("-")[-1] for p in (tmp_path / "plots").iterdir()} == {
        "curves.png",
        "pairs.png",
        "state.png",
    }


@pytest.mark.slow
def test_a_cell_begins_with_the_run_before_it_wherever_that_lies(tmp_path: Path) -> None:
    """What a run takes from there: tests/train/test_trainer.py."""
    first, cell = plan_cells(SUITES["formal"], CURRICULUM._replace(models=("transformer",)))
    out = tmp_path / "out"
    for one in (first, cell):
        run_cell(one, out, (), threading.Event())
    record = read_record(cell, out)
    assert record is not None
    assert record["train"]["init_from"] == str(first.workdir(out))
    assert "exit" not in proof.outcome(cell, out)
    out.rename(tmp_path / "moved")
    assert finished(cell, tmp_path / "moved")


def test_filters_choose_cells_and_text_goes_to_the_cells_on_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["--suite", "text", "--quick", "--list", "--text", str(tmp_path)]
    text += ["--model", "hope_attention"]
    assert proof.COMMAND.run([*text, "--seed", "1", "--seed", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line, seed in zip(lines, (1, 2), strict=True):
        assert f"seed={seed}" in line
        assert f"--config.data.source={tmp_path}" in line
    assert "--text FOLDER" in proof.proof_of("text", proof.COMMAND.parse(text)).command
    formal = proof.on_text(SUITES["formal"].budgets["quick"], tmp_path)
    assert formal == SUITES["formal"].budgets["quick"]


# --- tables from files ---------------------------------------------------------------------------


def leave(cell: Cell, out: Path, bins: tuple[float, ...], loss: float = 0.5) -> Result:
    """Write what a finished run of the cell would have left, with these accuracies."""
    workdir = cell.workdir(out)
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", config_in(cell, out))
    names = [f"{name}/accuracy" for name in cell.load().data.task.scored]
    summary = {
        "step": cell.load().train.steps,
        "valid_loss": loss,
        "parameters": parameters(cell),
        "seconds": 12.3,
        "versions": {"python": "3.11", "jax": "0.10", "flax": "0.12"},
        "device": "1 x toy",
        "git_commit": "0123456789abcdef",
        "scores": dict(zip(names, bins, strict=True)),
    }
    write_json(workdir / "summary.json", summary)
    (workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    return read_result(cell, out)


def test_tables_hold_mean_and_spread_at_the_best_rate_of_bin_0(tmp_path: Path) -> None:
    """Bin 1 has no say in the choice, and a rate that failed is named, not dropped."""
    budget = TINY._replace(rates=(1e-3, 3e-3, 1e-2), seeds=(0, 1))
    cells = plan_cells(SUITES["formal"], budget)
    results = []
    bins = {1e-3: (0.5, 1.0, 1.0), 3e-3: (0.9, 0.2, 0.0)}
    for cell in cells:
        if cell.rate in bins:
            head, *tail = bins[cell.rate]
            results.append(leave(cell, tmp_path, (head - 0.1 * cell.seed, *tail)))
        else:
            file = failure_file(cell.workdir(tmp_path))
            file.parent.mkdir(parents=True, exist_ok=True)
            failure = {"status": 3, "error": "diverged | nan", "config": to_dict(cell.load())}
            write_json(file, failure)
            results.append(read_result(cell, tmp_path))
    one = choose(results)[0]
    assert one.rate == 3e-3
    page = tmp_path / "docs" / "results.md"
    suite = SUITES["formal"]._replace(budgets={"quick": budget})
    run = proof.Proof("formal", "quick", suite, budget, tmp_path, page, "COMMAND")
    run.write(cells)
    text = page.read_text()
    assert "| transformer | 85.0 ± 7.1 / 20.0 ± 0.0 / 0.0 ± 0.0 |" in text
    assert "| Parity | transformer | 31,520 | 0.003 | 2 | 8 | 0, 1 | 0.5000 ± 0.0000 | 12 |" in text
    assert "- Parity/transformer/lr=0.01,seed=1: exit status 3: diverged / nan" in text
    assert "| DeltaNet | 98.2/10.1 | 0/0 |" in text
    assert "`COMMAND`" in text
    assert "commit 012345678" in text


def test_models_stand_in_the_order_of_the_suite(tmp_path: Path) -> None:
    """Whatever ran first: the first case here has the last model alone."""
    budget = TINY._replace(cases=languages("Parity", "(aa)*"))
    cells = [c for c in plan_cells(SUITES["formal"], budget) if c.folder[:6] != "Parity"]
    cells = [c for c in plan_cells(SUITES["formal"], TINY) if c.model == "hope frozen"] + cells
    for cell in cells:
        leave(cell, tmp_path, (0.5, 0.5, 0.5))
    page = tmp_path / "r.md"
    proof.Proof("formal", "quick", SUITES["formal"], budget, tmp_path, page, "").write(cells)
    text = page.read_text()
    assert "| accuracy % | Parity | (aa)* |" in text
    rows = [line for line in text.splitlines() if line.endswith("50.0 / 50.0 / 50.0 |")]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| transformer", "not run"],
        ["| hope frozen", "50.0 / 50.0 / 50.0"],
    ]


def test_ties_go_to_the_lower_loss(tmp_path: Path) -> None:
    budget = TINY._replace(rates=(1e-3, 3e-3, 1e-2), models=("transformer",))
    losses = {1e-3: 0.3, 3e-3: 0.1, 1e-2: 0.2}
    cells = plan_cells(SUITES["formal"], budget)
    results = [leave(cell, tmp_path, (1.0, 0.0, 0.0), losses[cell.rate]) for cell in cells]
    assert choose(results)[0].rate == 3e-3


def test_a_rate_with_fewer_seeds_is_not_chosen(tmp_path: Path) -> None:
    budget = TINY._replace(rates=(1e-3, 3e-3), models=("transformer",), seeds=(0, 1))
    cells = plan_cells(SUITES["formal"], budget)
    results = [
        leave(cell, tmp_path, (1.0 if cell.rate == 3e-3 else 0.5, 0.0, 0.0)) for cell in cells
    ]
    assert choose(results)[0].rate == 3e-3
    fewer = [r for r in results if (r.cell.rate, r.cell.seed) != (3e-3, 1)]
    (one,) = choose(fewer)
    assert (one.rate, len(one.results)) == (1e-3, 2)


def test_a_section_is_replaced_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    update_section(page, "proof a", "one")
    update_section(page, "proof b", "two")
    page.write_text(page.read_text() + "\nby hand\n")
    update_section(page, "proof a", "three")
    text = page.read_text()
    assert text.startswith("# Results\n")
    assert [text.count(x) for x in ("one", "two", "three", "by hand")] == [0, 1, 1, 1]
    assert text.index("three") < text.index("two") < text.index("by hand")


def test_state_size_counts_what_a_sequence_carries() -> None:
    cells = plan_cells(SUITES["formal"], TINY._replace(models=("transformer", "gated_deltanet")))
    assert state_size(cells[0]) == 2 * 2 * 50 * 32  # layers, keys and values, tokens, width
    tails, memory = 3 * 3 * 32, 2 * 16 * 16
    assert tails + memory <= state_size(cells[1]) / 2 <= tails + 3 * memory + 2


# --- bad arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        (["--suite", "nix"], "invalid choice: 'nix'"),
        (["--suite", "formal", "--model", "hop"], "--model='hop': wants one of transformer"),
        (["--suite", "formal", "--case", "Party"], "--case='Party': wants one of Parity"),
        (["--suite", "formal", "--jobs", "-1"], "--jobs=-1: wants 0"),
        (["--suite", "formal", "--rate", "0.5"], "--rate=0.5: wants one of 0.003"),
        (["--suite", "formal", "--seed", "-7"], "--seed=-7: wants 0 or more"),
        (["--suite", "text", "--text", "no/where"], "--text='no/where': wants a folder"),
    ],
)
def test_bad_arguments_name_the_known_ones(
    arguments: list[str], want: str, tiny_suite: None, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: Any = eval_main(["proof", *arguments, "--quick"])
    except SystemExit as exit_:
        status = exit_.code
    assert status == 2
    assert want in capsys.readouterr().err


def test_cells_load_as_their_command_says() -> None:
    (cell, *_) = plan_cells(SUITES["formal"], TINY)
    assert load_cell(cell.config, cell.fields) == cell.load()
    assert cell.command(Path("runs/x"))[:4] == ["launch.py", "--config", cell.config, "--workdir"]
    assert f"--config.model.mlp_hidden={cell.hidden}" in cell.command(Path("runs/x"))
