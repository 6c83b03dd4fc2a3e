"""The tables and plots of a proof, written from the files of its runs between two markers."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.core.report import mean_spread, table
from eval.proof.cells import Cell, Result, parameters, shown
from eval.proof.measures import measure_tables
from eval.proof.plan import Budget
from eval.proof.plots import draw
from eval.proof.positions import position_tables
from eval.proof.published import Published
from eval.proof.same_text import other_text, text_lines
from nested_jax.data.synthetic.formal import Formal
from nested_jax.data.synthetic.rows import task_of
from nested_jax.data.synthetic.task import Task


class Chosen(NamedTuple):
    """The runs of one model on one case, at the learning rate that was best for it."""

    case: str
    model: str
    results: list[Result]  # one per seed
    failed: list[Result]  # at any rate
    refused: Sequence[Result] = ()  # of other text than those of the case

    @property
    def missing(self) -> str:
        """What stands in the place of scores that are not there."""
        return "other text" if self.refused else "failed"

    @property
    def rate(self) -> float:
        return self.results[0].cell.rate


def score_of(result: Result) -> dict[str, float]:
    """Return the accuracy of every spec that a cell was scored on, in their order."""
    cfg = result.cell.load()
    names = cfg.data.task.scored if cfg.data.is_synthetic else ()
    return {name: result.summary["scores"][f"{name}/accuracy"] for name in names}


def choose(results: Sequence[Result]) -> list[Chosen]:
    """Take, for every case and model, the learning rate that is best on the first test.

    The first test has the lengths that were trained on: longer ones have no say in the choice.
    Ties go to the lower loss. A rate with fewer seeds than another one is not compared with it.
    Runs of other text than those of their case are refused.
    """
    refused = other_text(results)
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.cell.case.name, result.cell.model), []).append(result)
    chosen = []
    for (case, model), runs in groups.items():
        rates: dict[float, list[Result]] = {}
        for run in runs:
            if not run.failed and run.cell.folder not in refused:
                rates.setdefault(run.cell.rate, []).append(run)
        most = max(map(len, rates.values()), default=0)
        best = max((r for r in rates.values() if len(r) == most), key=quality, default=[])
        failed = [run for run in runs if run.failed]
        other = [run for run in runs if run.cell.folder in refused]
        chosen.append(Chosen(case, model, best, failed, other))
    return chosen


def quality(runs: list[Result]) -> tuple[float, float]:
    first = [next(iter(score_of(run).values()), 0.0) for run in runs]
    loss = statistics.fmean(run.summary["valid_loss"] for run in runs)
    return statistics.fmean(first), -loss


# --- tables --------------------------------------------------------------------------------------


def accuracies(chosen: Sequence[Chosen], known: Iterable[str]) -> str:
    """Return models down, as they are `known`, cases across: accuracy %, bits per byte of text."""
    cases = list(dict.fromkeys(c.case for c in chosen))
    models = [name for name in known if any(c.model == name for c in chosen)]
    at = {(c.case, c.model): c for c in chosen}

    def entry(case: str, model: str) -> str:
        if (case, model) not in at:
            return "not run"
        one = at[case, model]
        if not one.results:
            return one.missing
        tests = list(zip(*(score_of(run).values() for run in one.results), strict=True))
        if not tests:
            bits = [run.summary["valid_bits_per_byte"] for run in one.results]
            return f"{mean_spread(bits, 1.0, 4)} bits"
        return " / ".join(mean_spread(values) for values in tests)

    rows = [[model, *(entry(case, model) for case in cases)] for model in models]
    tests = table(["column", "tests, in the order of the entries", "chance %"], tests_of(chosen))
    return f"{table(['accuracy %', *cases], rows)}\n\n{tests}"


def tests_of(chosen: Sequence[Chosen]) -> list[list[str]]:
    rows = {}
    for one in chosen:
        for run in one.results[:1]:
            tasks = [task_of(spec) for spec in score_of(run)]
            chance = " / ".join(f"{100 * task.chance:.2g}" for task in tasks)
            asked = "; ".join(map(describe, tasks)) or "held-out text, bits per byte"
            rows[one.case] = [one.case, asked, chance]
    return list(rows.values())


def describe(task: Task) -> str:
    """Return what is particular to a test: the lengths of a language, or the spec."""
    if isinstance(task, Formal):
        return f"lengths {task.min_length}-{task.max_length}"
    values = ", ".join(f"{name}={value}" for name, value in vars(task).items())
    return f"{type(task).__name__}({values})"


def details(chosen: Sequence[Chosen]) -> str:
    rows = []
    for one in chosen:
        for run in one.results[:1]:
            cfg = run.cell.load()
            seconds = [r.summary["seconds"] for r in one.results]
            rows.append(
                [
                    one.case,
                    one.model,
                    f"{run.summary['parameters']:,}",
                    f"{one.rate:g}",
                    str(run.summary["step"]),
                    str(cfg.train.batch_size),
                    ", ".join(str(r.cell.seed) for r in one.results),
                    mean_spread([r.summary["valid_loss"] for r in one.results], 1.0, 4),
                    f"{statistics.fmean(seconds):.0f}",
                    run.summary["device"],
                ]
            )
    header = "case model parameters rate steps rows seeds loss seconds device".split()  # noqa: SIM905
    return table(header, rows)


def failures(chosen: Sequence[Chosen]) -> str:
    lines = [
        f"- {run.cell.folder}: {run.failed.replace('|', '/')}"
        for one in chosen
        for run in one.failed
    ]
    return "\n".join(["Runs that failed:", "", *lines]) if lines else "No run failed."


def published(tables: Published | None) -> str:
    if tables is None:
        return ""
    differences = "\n".join(f"- {text}" for text in tables.differences)
    return (
        f"Published: {tables.source}\n\n{table(tables.header, tables.rows)}\n\n"
        f"How that differs from the runs here:\n\n{differences}\n"
    )


def notes(proof: Any, chosen: Sequence[Chosen]) -> str:
    ran = {c.model for c in chosen}
    lines = [
        f"- {name}: {model.note}"
        for name, model in proof.suite.models.items()
        if model.note and name in ran
    ]
    cases = dict.fromkeys(run.cell.case for c in chosen for run in c.results)
    lines += [
        f"- {case.name}: {case.steps} steps after those of {case.after}, all models alike"
        for case in cases
        if case.after
    ]
    return "\n".join(lines)


# --- the page ------------------------------------------------------------------------------------


def write_report(report: Path, name: str, proof: Any, results: Sequence[Result]) -> None:
    """Write the section of a proof into `report`, in the place of what it wrote there before."""
    chosen = [c for c in choose(results) if c.results or c.failed or c.refused]
    plots = draw(report.parent / "plots", name.replace(" ", "-"), proof, chosen)
    update_section(report, f"proof {name}", section(name, proof, chosen, results, plots))


def section(
    name: str,
    proof: Any,
    chosen: Sequence[Chosen],
    results: Sequence[Result],
    plots: Sequence[Path],
) -> str:
    done = [run for run in results if not run.failed]
    counts = [run.summary["parameters"] for run in done]
    span = ""
    if counts:
        by_case: dict[str, list[int]] = {}
        for run in done:
            by_case.setdefault(run.cell.case.name, []).append(run.summary["parameters"])
        widest = max(max(c) / min(c) for c in by_case.values()) - 1
        span = f" Parameters within a case differ by {100 * widest:.1f} % at most."
    parts = [
        f"## {proof.suite.title} (`{name}`)",
        f"`{proof.command}`, {dates(done)}; {environment(done)}. "
        f"{extent(proof.budget, results)}; mean ± sample standard "
        f"deviation over seeds.{span}",
        body(proof, chosen),
        notes(proof, chosen),
        text_lines(results),
        rounded_runs(done),
        *(f"![{path.stem}](plots/{path.name})" for path in plots),
        published(proof.suite.published),
        failures(chosen),
        f"<details><summary>Every column's run</summary>\n\n{details(chosen)}\n\n"
        f"One cell, to make again:\n\n```\n{example(results)}\n```\n\n</details>",
    ]
    return "\n\n".join(part for part in parts if part)


def body(proof: Any, chosen: Sequence[Chosen]) -> str:
    if proof.suite.measure == "accuracy":
        return accuracies(chosen, proof.suite.models)
    if proof.suite.measure == "repeat":
        return f"{measure_tables(chosen)}\n\n{held_out_table(chosen)}"
    return "\n\n".join(x for x in (position_tables(proof, chosen), measure_tables(chosen)) if x)


def held_out_table(chosen: Sequence[Chosen]) -> str:
    rows = []
    for one in chosen:
        bits = [run.summary["valid_bits_per_byte"] for run in one.results]
        rows.append([one.model, mean_spread(bits, 1.0, 4) if bits else one.missing, str(len(bits))])
    return table(["model", "held-out text, bits per byte", "seeds"], rows)


def dates(done: Sequence[Result]) -> str:
    days = sorted(day for run in done for day in run.dates)
    return " to ".join(dict.fromkeys(days[:1] + days[-1:]))


def environment(done: Sequence[Result]) -> str:
    if not done:
        return "no run finished"
    versions = done[-1].summary["versions"]
    commits = {
        short(commit)
        for run in done
        for commit in (run.summary["git_commit"] or "unknown").split(", ")
    }
    named = ", ".join(f"{p} {versions[p]}" for p in ("python", "jax", "flax"))
    return f"{done[-1].summary['device']}, {named}, commit {', '.join(sorted(commits))}"


def rounded_runs(done: Sequence[Result]) -> str:
    """Return which runs are known from an earlier table only."""
    counts: dict[str, int] = {}
    for run in done:
        if run.known_from:
            counts[run.known_from] = counts.get(run.known_from, 0) + 1
    return "\n".join(
        f"{count} of the runs are known from {source} only: no more exact, and without a curve."
        for source, count in counts.items()
    )


def extent(budget: Budget, results: Sequence[Result]) -> str:
    """Return how much of the budget has run, with what, and how long it took."""
    rates = ", ".join(f"{rate:g}" for rate in sorted({run.cell.rate for run in results}))
    seeds = ", ".join(str(seed) for seed in sorted({run.cell.seed for run in results}))
    steps = sorted({run.cell.load().train.steps for run in results})
    minutes = sum(run.summary.get("seconds", 0.0) for run in results) / 60
    return (
        f"{len(results)} of {budget.runs} runs, of {' or '.join(map(str, steps))} steps each, "
        f"learning rates {rates} (the best on the first test counts), seeds {seeds}; "
        f"{minutes:.0f} minutes of runs in all, one core each where there are no accelerators"
    )


def short(commit: str) -> str:
    """Return a commit's first digits, with the "+" of a tree that had changes."""
    return commit.rstrip("+")[:9] + ("+" if commit.endswith("+") else "")


def example(results: Sequence[Result]) -> str:
    cell: Cell = results[-1].cell
    command = re.sub(r"(data\.source=)\S+", r"\1FOLDER", shown(cell.command(Path("runs/again"))))
    return f"{command}    # {parameters(cell):,} parameters"


def update_section(file: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of `name`, or append it with markers."""
    begin, end = f"<!-- {name}: written by python -m eval proof -->", f"<!-- {name}: end -->"
    page = file.read_text(encoding="utf-8") if file.exists() else "# Results\n"
    block = f"{begin}\n{text}\n{end}"
    if begin in page:
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = before + block + after
    else:
        page = f"{page.rstrip()}\n\n{block}\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")
