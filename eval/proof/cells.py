"""One cell of a proof: a task, a model, a learning rate and a seed, run as an ordinary workdir.

A cell is ``python launch.py --config FILE:ARGUMENT --workdir DIR --config.FIELD=VALUE ...`` and
nothing else, so that each number can be made again by hand.
"""

from __future__ import annotations

import datetime
import itertools
import json
import re
import shlex
import threading
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax

from eval.core.process import drive, log_file
from eval.proof.plan import Budget, Case, Model, Suite
from nested_jax.config import Config, from_saved, load_config, parse_overrides
from nested_jax.config.schema import difference, to_dict
from nested_jax.errors import ROOT, require
from nested_jax.files import write_json
from nested_jax.models.flops import count_parameters
from nested_jax.models.lm import build_model

TOLERANCE = 0.02  # by which the parameters of two models of a case may differ


@dataclass(frozen=True)
class Cell:
    """What is run. `hidden` is the MLP width that brings the parameters to the suite's."""

    case: Case
    model: str
    config: str  # FILE:ARGUMENT
    overrides: tuple[str, ...]  # FIELD=VALUE
    rate: float
    seed: int
    hidden: int = 0
    folder: str = ""
    before: Cell | None = None  # the cell whose parameters this one begins with

    @property
    def fields(self) -> tuple[str, ...]:
        hidden = (f"model.mlp_hidden={self.hidden}",) if self.hidden else ()
        return self.overrides + hidden

    def load(self) -> Config:
        return load_cell(self.config, self.fields)

    def workdir(self, out: Path) -> Path:
        return out / self.folder

    def command(self, workdir: Path, before: str = "BEFORE") -> list[str]:
        """Return the arguments of python; `before` is the folder of the cell before this one."""
        begin = (f"train.init_from={before}",) if self.before else ()
        flags = [f"--config.{field}" for field in (*self.fields, *begin)]
        return ["launch.py", "--config", self.config, "--workdir", str(workdir), *flags]

    def command_in(self, out: Path) -> list[str]:
        before = str(self.before.workdir(out)) if self.before else ""
        return self.command(self.workdir(out), before)


class Result(NamedTuple):
    """What a cell left. `failed` says why there are no scores."""

    cell: Cell
    summary: dict[str, Any]  # of summary.json; {} if the run failed
    curve: tuple[tuple[int, float], ...]  # step and training loss, of metrics.jsonl
    failed: str
    dates: tuple[str, ...] = ()  # the day it ended, or the first and last that it may have
    positions: dict[str, Any] | None = None  # of positions.json, where that has been read
    tasks: dict[str, Any] | None = None  # numbers of the budget's tasks, see measures.py
    repeats: tuple[tuple[int, dict[str, float]], ...] = ()  # tokens, and passages read again
    known_from: str = ""  # the table that it was read from, where its files are lost


@lru_cache(maxsize=4096)
def load_cell(config: str, fields: tuple[str, ...]) -> Config:
    overrides = parse_overrides([f"--config.{field}" for field in fields])
    return load_config(str(ROOT / config), overrides)


def plan_cells(suite: Suite, budget: Budget) -> list[Cell]:
    """Return the cells of a suite, parameters matched: all of the first rate and seed come first.

    A cell comes after the one that it goes on from.

    Raises:
      ValueError: a model cannot be brought within 2 % of the reference, or a case goes on from one
        that has no such cell before it.
    """
    by_place: dict[tuple[int, int], list[Cell]] = {}
    made: dict[tuple[str, str, float, int], Cell] = {}
    for case in budget.cases:
        own = budget.of(case)
        reference = make_cell(case, suite.models[suite.reference], suite.reference, own)
        target = parameters(reference)
        for (place, rate), seed in itertools.product(enumerate(own.rates), own.seeds):
            for name in own.models:
                cell = make_cell(case, suite.models[name], name, own, rate, seed)
                before = made.get((case.after, name, rate, seed))
                want = f"wants a case before it with {name}, rate {rate:g} and seed {seed}"
                require(
                    before is not None or not case.after, f"{case.name}.after", case.after, want
                )
                matched = replace(cell, hidden=match_hidden(cell, target), before=before)
                made[case.name, name, rate, seed] = matched
                by_place.setdefault((place, seed), []).append(matched)
    return [cell for place in sorted(by_place) for cell in by_place[place]]


def make_cell(
    case: Case,
    model: Model,
    name: str,
    budget: Budget,
    rate: float = 1e-3,
    seed: int = 0,
) -> Cell:
    argument = (
        f"{case.argument},{model.argument},steps={budget.steps},batch={budget.batch},"
        f"lr={rate:g},seed={seed}"
    )
    folder = "/".join(re.sub(r"[^\w.=-]+", "_", part).strip("_") for part in (case.name, name))
    return Cell(
        case,
        name,
        f"{case.config}:{argument}",
        model.overrides + case.overrides,
        rate,
        seed,
        folder=f"{folder}/lr={rate:g},seed={seed}",
    )


# --- equal parameters ----------------------------------------------------------------------------


def parameters(cell: Cell) -> int:
    """Return the parameters of a cell's model; nothing is allocated."""
    return _parameters(replace(cell.load(), seed=0).model)


@lru_cache(maxsize=4096)
def _parameters(model: Any) -> int:
    return count_parameters(build_model(model).param_info())


def match_hidden(cell: Cell, target: int) -> int:
    """Return the MLP width with which the cell's model has `target` parameters, within 2 %.

    0 leaves the width as the config file has it, where that fits exactly. Parameters are linear in
    the width, so that two counts give the rest.
    """
    if parameters(cell) == target:
        return 0
    low, high = (parameters(replace(cell, hidden=width)) for width in (8, 16))
    width = max(1, round(8 + (target - low) * 8 / (high - low)))
    got = parameters(replace(cell, hidden=width))
    require(
        abs(got - target) <= TOLERANCE * target,
        f"{cell.case.name}, {cell.model}",
        got,
        f"wants {target} parameters within {TOLERANCE:.0%}; an MLP of width {width} comes nearest",
    )
    return width


# --- running -------------------------------------------------------------------------------------


def finished(cell: Cell, out: Path) -> bool:
    """Whether the cell has run to its end, or failed for good, with this very configuration.

    Raises:
      ValueError: the folder holds a finished run of another configuration.
    """
    record = read_record(cell, out)
    if record is None:
        return False
    summary = cell.workdir(out) / "summary.json"
    aligned = not summary.exists() or "valid_text_sha256" in summary.read_text()
    changed = difference_of(record, cell, aligned)
    require(
        not changed,
        "--out",
        str(cell.workdir(out)),
        f"holds a run of another configuration ({'; '.join(changed[:3])}); wants another folder",
    )
    return True


def read_record(cell: Cell, out: Path) -> dict[str, Any] | None:
    """Return the configuration of a finished or failed run."""
    workdir = cell.workdir(out)
    failure = failure_file(workdir)
    if failure.exists():
        return json.loads(failure.read_text())["config"]
    summary = workdir / "summary.json"
    if not summary.exists():
        return None
    record = json.loads((workdir / "config.json").read_text())
    done = json.loads(summary.read_text())["step"] == record["train"]["steps"]
    return record if done else None


def difference_of(record: dict[str, Any], cell: Cell, aligned: bool) -> list[str]:
    """Return what differs; of the run that it began with, the cell counts, not where it lies."""
    begun = record["train"]["init_from"]
    record = {**record, "train": {**record["train"], "init_from": ""}}
    changed = difference(from_saved(record, aligned), cell.load())
    before = cell.before.folder if cell.before else ""
    if not (begun.endswith(f"/{before}") if before else begun == ""):
        changed.append(f"config.train.init_from: {begun!r} -> {before!r}")
    return changed


def failure_file(workdir: Path) -> Path:
    return workdir.with_name(workdir.name + ".failed.json")


def run_cell(cell: Cell, out: Path, cores: tuple[int, ...], stop: threading.Event) -> None:
    """Run a cell in a process of its own on some cores, until it ends or `stop` is set.

    A run that fails (diverged, refused) is recorded, and is not tried again; so is one that would
    go on from a failed one. A cell that another driver runs in the same folder is left to it, and
    with it the cells that go on from there.

    Raises:
      KeyboardInterrupt: the run was stopped by a signal; it has saved and can go on.
      RuntimeError: it ended with a traceback.
    """
    if cell.before and not finished(cell.before, out):
        return
    workdir = cell.workdir(out)
    workdir.parent.mkdir(parents=True, exist_ok=True)
    if cell.before and read_result(cell.before, out).failed:
        record_failure(cell, out, 2, f"goes on from {cell.before.folder}, which failed")
        return
    command = cell.command_in(out)
    ended = drive(command, workdir, out / "compiled", cores, stop, lambda: finished(cell, out))
    if ended is None or not ended.status:
        return
    if not ended.last.startswith("launch.py: "):  # a defect, no result
        raise RuntimeError(f"{log_file(workdir)}: exit status {ended.status}: {ended.last}")
    record_failure(cell, out, ended.status, ended.last)


def config_in(cell: Cell, out: Path) -> dict[str, Any]:
    """Return the configuration that a run of the cell writes down."""
    config = to_dict(cell.load())
    config["train"]["init_from"] = str(cell.before.workdir(out)) if cell.before else ""
    return config


def record_failure(cell: Cell, out: Path, status: int, error: str) -> None:
    failure = {"status": status, "error": error, "config": config_in(cell, out)}
    write_json(failure_file(cell.workdir(out)), failure)


def read_result(cell: Cell, out: Path) -> Result:
    """Return what a finished cell left."""
    workdir = cell.workdir(out)
    failure = failure_file(workdir)
    if failure.exists():
        record = json.loads(failure.read_text())
        return Result(cell, {}, (), f"exit status {record['status']}: {record['error']}")
    file = workdir / "summary.json"
    ended = datetime.datetime.fromtimestamp(file.stat().st_mtime, datetime.UTC)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    curve = tuple((line["step"], line["loss"]) for line in lines if line.get("loss") is not None)
    repeats, tokens = [], 0
    for line in lines:
        tokens = line.get("tokens", tokens)
        found = {k: v for k, v in line.items() if k.startswith("repeat/") and v is not None}
        repeats += [(tokens, found)] if found else []
    dates = (ended.date().isoformat(),)
    return Result(cell, json.loads(file.read_text()), curve, "", dates, repeats=tuple(repeats))


def state_size(cell: Cell) -> int:
    """Return the numbers that one sequence of the longest training row carries in its mixers."""
    cfg = cell.load()
    model = build_model(cfg.model)

    def states() -> Any:
        state = model.init_state(model.init(jax.random.key(0)), 1, cfg.data.seq_len)
        return state.prefix, state.entry, state.now.suffix

    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(states)))


def shown(command: list[str]) -> str:
    return shlex.join(["python", *command])
