"""Show that memories learn: ``python -m eval proof --suite SUITE``.

A cell is an ordinary workdir of launch.py. A finished one is not run again, an interrupted one goes
on from its checkpoint; the tables are written from the files of the runs, after every cell. Several
drivers may share a folder.

Exit status: 0 done (failed cells are in the tables), 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import jax

from eval.core.cli import Command
from eval.core.flags import check_place, flag
from eval.core.process import run_many
from eval.proof.cells import (
    Cell,
    Result,
    failure_file,
    finished,
    parameters,
    plan_cells,
    read_result,
    run_cell,
)
from eval.proof.documented import Known, beside, numbers, read_documented
from eval.proof.measures import measure
from eval.proof.plan import Budget, Suite
from eval.proof.positions import positions
from eval.proof.records import add_records, read_lines, read_records
from eval.proof.report import score_of, write_report
from eval.proof.suites import SUITES
from eval.proof.text_suites import REAL_TEXT
from nested_jax.errors import ROOT, require

DEFAULT = ("formal", "mqar")  # suites
MOST_JOBS = 2  # by default
MODES = ("quick", "medium", "full")  # budgets beside the default
# Flags that choose cells, and the value of a cell that they name.
FILTERS: dict[str, Callable[[Cell], Any]] = {
    "model": lambda cell: cell.model,
    "case": lambda cell: cell.case.name,
    "rate": lambda cell: cell.rate,
    "seed": lambda cell: cell.seed,
}


@dataclass(frozen=True)
class Proof:
    """A suite at a budget, and where it runs."""

    name: str
    mode: str
    suite: Suite
    budget: Budget
    out: Path
    report: Path
    command: str
    records: Path | None = None  # FOLDER/SUITE-BUDGET.jsonl

    def write(self, cells: Sequence[Cell]) -> None:
        """Write the tables of the cells that are finished, here or by the records."""
        results = [self.read(cell) for cell in cells if finished(cell, self.out)]
        if self.records:
            results = add_records(self.records, cells, results)
        if results:
            write_report(self.report, f"{self.name} {self.mode}", self, results)

    def read(self, cell: Cell) -> Result:
        """Return what a cell that ran here left, whole."""
        result = read_result(cell, self.out)
        if self.suite.measure == "position" and not result.failed:
            result = result._replace(positions=positions(result, self.out)._asdict())
        if self.budget.tasks and not result.failed:
            result = result._replace(tasks=measure(cell, self.out, self.budget.tasks))
        return result

    def recorded(self, cells: Sequence[Cell]) -> dict[str, Result]:
        """Return what the records have of `cells`, by folder."""
        return read_records(self.records, cells) if self.records else {}


def act(flags: argparse.Namespace) -> int:
    modes = [f"--{mode}" for mode in MODES if getattr(flags, mode)]
    require(len(modes) < 2, modes[0] if modes else "", True, f"wants one of {', '.join(modes)}")
    # Counting parameters must not take the accelerator from the cells.
    jax.config.update("jax_platforms", "cpu")
    proofs = [proof_of(name, flags) for name in flags.suite or DEFAULT]
    planned = [(proof, plan_cells(proof.suite, proof.budget)) for proof in proofs]
    check_names(flags, [cell for _, cells in planned for cell in cells])
    signal.signal(signal.SIGTERM, interrupted)
    try:
        for proof, cells in planned:
            perform(proof, cells, flags)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    return 0


def perform(proof: Proof, planned: list[Cell], flags: argparse.Namespace) -> None:
    """List or run the cells of one suite that were asked for; the tables have all that are done."""
    cells = chosen(planned, flags)
    if flags.list:
        for cell in cells:
            print(f"{parameters(cell):>12,}  {' '.join(cell.command_in(proof.out))}")
        return
    if flags.tables:
        proof.write(planned)
    else:
        if flags.retry:
            for cell in cells:
                failure_file(cell.workdir(proof.out)).unlink(missing_ok=True)
        run_all(proof, cells, planned, flags.jobs or default_jobs(), retry=flags.retry)
    print(f"tables and plots: {proof.report}")


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def proof_of(name: str, flags: argparse.Namespace) -> Proof:
    suite, mode = SUITES[name], next((m for m in MODES if getattr(flags, m)), "default")
    want = f"wants a budget of it: {', '.join(suite.budgets)}"
    require(mode in suite.budgets, "--suite", name, want)
    budget = on_text(suite.budgets[mode], flags.text)
    report = flags.report or PAGES / f"{name}-{mode}.md"
    check_place("--report", report, "file")
    records = flags.records / f"{name}-{mode}.jsonl" if flags.records else None
    further = {line["seed"] for line in read_lines(records)} if records else set()
    seeds = tuple(sorted({*budget.seeds, *flags.seed, *further}))
    words = ["python -m eval proof --suite", name]
    words += [] if mode == "default" else [f"--{mode}"]
    words += [] if flags.text is None else ["--text FOLDER"]
    words += [] if seeds == budget.seeds else [f"--seed {seed}" for seed in seeds]
    return Proof(
        name,
        mode,
        suite,
        budget._replace(seeds=seeds),
        flags.out.absolute() / f"{name}-{mode}",
        report,
        " ".join(words),
        records,
    )


def on_text(budget: Budget, folder: Path | None) -> Budget:
    """Return the budget with its cells on real text reading from `folder`."""
    if folder is None:
        return budget
    want = "wants a folder of plain text, or the JSON of a mixture"
    require(folder.is_dir() or folder.suffix == ".json", "--text", str(folder), want)
    require(folder.exists(), "--text", str(folder), "is not there")
    source = f"data.source={folder.absolute()}"
    cases = (
        case._replace(overrides=(*case.overrides, source)) if case.config == REAL_TEXT else case
        for case in budget.cases
    )
    return budget._replace(cases=tuple(cases))


def check_names(flags: argparse.Namespace, cells: list[Cell]) -> None:
    """Raise for a model, task or rate that no suite has, with the known ones."""
    for word, value_of in FILTERS.items():
        known = list(dict.fromkeys(value_of(cell) for cell in cells))
        for name in getattr(flags, word):
            require(name in known, f"--{word}", name, f"wants one of {', '.join(map(str, known))}")


def chosen(cells: list[Cell], flags: argparse.Namespace) -> list[Cell]:
    """Return the cells that pass the filters, and those that they go on from."""
    wanted = set()
    for cell in cells:
        if all(
            not getattr(flags, word) or value_of(cell) in getattr(flags, word)
            for word, value_of in FILTERS.items()
        ):
            link: Cell | None = cell
            while link:
                wanted.add(link.folder)
                link = link.before
    return [cell for cell in cells if cell.folder in wanted]


def default_jobs() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    accelerator = os.environ.get("JAX_PLATFORMS", "") != "cpu" and Path("/dev/nvidia0").exists()
    return 1 if accelerator else min(MOST_JOBS, cores or 1)


def run_all(
    proof: Proof, cells: list[Cell], planned: list[Cell], jobs: int, *, retry: bool = False
) -> None:
    """Run what is not finished, `jobs` cells at a time, and keep the tables up to date."""
    recorded = proof.recorded(planned)
    if retry:
        recorded = {folder: each for folder, each in recorded.items() if not each.failed}
    waiting = unfinished(proof.out, cells, recorded)
    known = read_documented(proof.name, proof.mode)
    print(f"{len(cells)} cells, {len(cells) - len(waiting)} of them finished; {jobs} at a time")
    begun = time.monotonic()

    def done(count: int, folder: str, cell: Cell) -> None:
        left = timedelta(seconds=round((time.monotonic() - begun) / count * (len(waiting) - count)))
        place = f"[{count + len(cells) - len(waiting)}/{len(cells)}]"
        print(f"{place} {folder}  {outcome(cell, proof.out, known)}  ETA {left}", flush=True)
        proof.write(planned)

    def work(cell: Cell, cores: tuple[int, ...], stop: threading.Event) -> Cell:
        run_cell(cell, proof.out, cores, stop)
        return cell

    works = {cell.folder: partial(work, cell) for cell in waiting}
    after = {cell.folder: cell.before.folder for cell in waiting if cell.before}
    run_many(works, jobs, done, after)
    proof.write(planned)


def unfinished(out: Path, cells: list[Cell], recorded: Container[str]) -> list[Cell]:
    """Return the cells that must run, recorded ones too where another goes on from them."""
    here = {cell.folder for cell in cells if finished(cell, out)}
    wanted = {c.folder for c in cells if c.folder not in here and c.folder not in recorded}
    for cell in reversed(cells):  # a cell comes after the one that it goes on from
        if cell.folder in wanted and cell.before and cell.before.folder not in here:
            wanted.add(cell.before.folder)
    return [cell for cell in cells if cell.folder in wanted]


def outcome(cell: Cell, out: Path, known: Known | None = None) -> str:
    """Return what a cell left, and the documented range beside it; or why it left nothing."""
    if not finished(cell, out):
        first = cell.before
        if first and not finished(first, out):
            return f"not run: wants {first.folder} first, which another driver is running"
        return "left to the driver that is running it"
    result = read_result(cell, out)
    if result.failed:
        return f"FAILED: {result.failed}"
    percent = bool(score_of(result))
    said = " / ".join(f"{number:.{1 if percent else 4}f}" for number in numbers(result))
    unit = "%" if percent else "bits per byte"
    return f"{said} {unit}, {result.summary['seconds']:.0f} s; {beside(result, known or {})}"


RECORDS = (
    "finished cells as lines of JSON, DIR/SUITE-BUDGET.jsonl: those are not run again and stand in "
    "the tables; what runs here is added"
)
PAGES = ROOT / "docs" / "proof"
REPORT = "Markdown with tables; plots lie beside it; default docs/proof/SUITE-BUDGET.md"
FLAGS = (
    flag("--suite", None, "repeatable; default formal and mqar", action="append", choices=SUITES),
    flag("--quick", False, "a budget of minutes on two cores"),
    flag("--medium", False, "of text: days on two cores, 30 M tokens a run"),
    flag("--full", False, "the papers' settings, for a GPU"),
    flag(
        "--out",
        Path("runs/proof"),
        "cells run in DIR/SUITE-BUDGET",
        makes="folder",
        type=Path,
    ),
    flag("--jobs", 0, "cells at once (0: one per core, 2 at most; 1 on an accelerator)", least=0),
    flag("--model", [], "only this model, repeatable", action="append"),
    flag("--case", [], "only this case, repeatable", action="append"),
    flag("--rate", [], "only this learning rate, repeatable", action="append", type=float),
    flag("--seed", [], "only this or a further seed, repeatable", 0, action="append", type=int),
    flag("--text", None, "folder of plain text for real text (default: embedded)", type=Path),
    flag("--report", None, REPORT, makes="file", type=Path),
    flag("--records", None, RECORDS, makes="folder", type=Path, metavar="DIR"),
    flag("--retry", False, "run cells that failed once more"),
    flag("--list", False, "print the cells and their parameters, run nothing"),
    flag("--tables", False, "write the tables of what has run, run nothing"),
)
HELP = "synthetic proofs that memories remember"
COMMAND = Command("proof", HELP, __doc__, FLAGS, act)
