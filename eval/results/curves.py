"""Learning curves of runs: ``python -m eval curves RUN... --out curves.png``.

Panels: loss, perplexity, auxiliary loss, bits per byte, and what each of train.eval_tasks has found
at its checkpoints (dotted: chance, or without writes), each where a run has it. Solid lines are
training values, dashed ones with dots held-out. Held-out losses of different texts are refused;
runs that were not trained on the same rows in the same order are named below the plot. Exit status:
0 done, 2 bad input.

A RUN may also be a folder of results of tasks: a panel for each group of each task, and a line for
each model, over the steps of its checkpoints.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eval.core.cli import Command
from eval.core.flags import flag
from eval.core.plots import figure, save
from eval.core.same_text import (
    TRAIN_ORDER,
    VALID_TEXT,
    Named,
    not_recorded,
    odd_ones,
    require_same,
)
from eval.results.summary import read_result, result_files
from nested_jax.data.records import checked_row, json_rows
from nested_jax.errors import require
from nested_jax.losses import perplexity

METRICS = "metrics.jsonl"
ENDINGS = (".png", ".pdf", ".svg")
MEASURES = ("acc", "accuracy", "gain", "loss")  # of a group; the first that it has is drawn
IN_TRAINING = ("accuracy", "loss", "bits_per_byte")  # of TASK/GROUP/MEASURE in metrics.jsonl
COLUMNS = 5  # panels side by side
AXES = {"tokens": "tokens", "step": "steps", "seconds": "seconds of training"}


class Panel(NamedTuple):
    """One plot: what it is called, and the fields that it draws."""

    title: str
    train: str  # field of a training line; "" draws none
    valid: str  # field of an evaluation
    log_y: bool = False
    chance: str = ""  # field of what guessing gives


PANELS = (
    Panel("loss (nats per token)", "loss", "valid_loss"),
    Panel("perplexity", "ppl", "valid_ppl", log_y=True),
    Panel("auxiliary loss", "aux_loss", ""),
    Panel("held-out bits per byte", "", "valid_bits_per_byte"),
)


NUMBERS = ("step_s", *(field for p in PANELS for field in (p.train, p.valid) if field))


class Run(NamedTuple):
    """A run's log: every line with its place on each axis."""

    name: str
    lines: list[dict[str, Any]]

    def series(self, axis: str, field: str, smooth: int = 1) -> tuple[list[float], list[float]]:
        """Return places and values of the lines that have a finite `field`, means of `smooth`."""
        found = [line for line in self.lines if line.get(field) is not None] if field else []
        parts = [found[i : i + smooth] for i in range(0, len(found), smooth)]
        at = [float(part[-1][axis]) for part in parts]
        return at, [sum(line[field] for line in part) / len(part) for part in parts]


def act(flags: argparse.Namespace) -> int:
    ending = f"wants a name that ends with {' or '.join(ENDINGS)}"
    require(flags.out.suffix in ENDINGS, "--out", str(flags.out), ending)
    runs = [run for text in flags.runs for run in read_runs(text)]
    names = [run.name for run in runs]
    check_text(runs)
    if len(set(names)) < len(names):
        raise ValueError(f"RUN: names {names} are not all different; wants NAME=RUN")
    print(draw(runs, flags.out, flags.x, flags.smooth))
    for remark in remarks(runs):
        print(f"note: {remark}")
    return 0


def read_runs(text: str) -> list[Run]:
    """Read the log of ``[NAME=]RUN``, or the models of a folder of results."""
    name, equals, rest = text.partition("=")
    folder = Path(rest if equals else text)
    no_log = folder.is_dir() and not (folder / METRICS).is_file() and any(folder.glob("*.json"))
    if not no_log:
        return [read_run(text)]
    log = read_run(str(folder.parent)).lines if (folder.parent / METRICS).is_file() else []
    models: dict[str, dict[int, dict[str, Any]]] = {}
    for file in result_files([folder]):
        result = read_result(file)
        about = result["subject"]
        steps = models.setdefault(name if equals else about["name"], {})
        at = [line for line in log if line["step"] <= about["step"]]
        place = {axis: at[-1][axis] for axis in ("tokens", "seconds")} if at else {}
        line = steps.setdefault(about["step"], {"step": about["step"], **place})
        for group, numbers in result["metrics"].items():
            measure = next((m for m in MEASURES if isinstance(numbers.get(m), (int, float))), "")
            if measure:
                line[f"{result['task']} {group}: {measure}"] = numbers[measure]
    return [Run(name, [lines[step] for step in sorted(lines)]) for name, lines in models.items()]


def read_run(text: str) -> Run:
    """Read the log of ``[NAME=]RUN``.

    Raises:
      ValueError: no log there, one that is damaged, or without training lines.
    """
    name, equals, rest = text.partition("=")
    path = Path(rest if equals else text)
    folder = path.parent if path.name == METRICS else path
    file = folder / METRICS
    if not file.is_file():
        raise ValueError(f"RUN={text!r}: no {file}; wants a workdir of launch.py")
    lines: list[dict[str, Any]] = []
    tokens = seconds = 0.0
    step = 0
    for where, line in json_rows(file):
        line = checked_row(line, where)
        checked_row(line, where, **({"step": int, "tokens": int} if "step_s" in line else {}))
        for field, value in line.items():
            number = value is None or isinstance(value, (int, float)) or field not in NUMBERS
            require(number, f"{where}: {field}", value, "wants a number")
        if "step_s" in line:
            seconds += line["step_s"] * (line["step"] - step)
            tokens, step = line["tokens"], line["step"]
        elif line.get("valid_loss") is not None:
            line.setdefault("valid_ppl", perplexity(line["valid_loss"]))
        lines.append({**line, "tokens": tokens, "seconds": seconds})
    if not step:
        raise ValueError(f"{file}: has no training lines")
    return Run(name if equals else folder.name, lines)


def check_text(runs: Sequence[Run]) -> None:
    """Raise where held-out losses of one plot are of different texts.

    Raises:
      ValueError: an evaluation of other text than the others, within a run or of another run.
    """
    require_same("RUN", [each for run in runs for each in evaluations(run, VALID_TEXT)], VALID_TEXT)


def evaluations(run: Run, field: str) -> list[Named]:
    """Return the first evaluation of a run for each value of a hash."""
    scored = [line for line in run.lines if line.get("valid_loss") is not None]
    first = {line.get(field): line for line in reversed(scored)}
    several = len(first) > 1
    return [
        Named(f"{run.name} from step {line['step']}" if several else run.name, line)
        for line in sorted(first.values(), key=lambda line: line["step"])
    ]


def remarks(runs: Sequence[Run]) -> list[str]:
    """Return what a reader of the curves must know of their text."""
    if len(runs) < 2:
        return []
    scored = [each for run in runs for each in evaluations(run, VALID_TEXT)]
    unknown = not_recorded(scored, VALID_TEXT)
    found = [f"held-out text not recorded: {', '.join(unknown)}"] if unknown else []
    ordered = [each for run in runs for each in evaluations(run, TRAIN_ORDER)]
    return found + [f"{name}: {why}" for name, why in odd_ones(ordered, TRAIN_ORDER).items()]


def task_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return a panel for every task that some run was scored on while it trained."""
    fields = dict.fromkeys(field for run in runs for line in run.lines for field in line)
    names = [field.removesuffix("/acc") for field in fields if field.endswith("/acc")]
    panels = [Panel(f"{n}: accuracy", "", f"{n}/acc", chance=f"{n}/chance") for n in names]
    panels += [
        Panel(f"{n}: bits per token, written", "", f"{n}/written", chance=f"{n}/gain")
        for n in (f.removesuffix("/written") for f in fields if f.endswith("/written"))
    ]
    names = [field.removesuffix("/acc_norm") for field in fields if field.endswith("/acc_norm")]
    panels += [Panel(f"{n}: acc_norm", "", f"{n}/acc_norm") for n in names]
    inside = [field for field in fields if field.count("/") == 2 and field.endswith(IN_TRAINING)]
    panels += [Panel(field.replace("/", " "), "", field) for field in inside]
    ends = tuple(f": {measure}" for measure in MEASURES)
    return panels + [Panel(field, "", field) for field in fields if field.endswith(ends)]


def draw(runs: Sequence[Run], out: Path, axis: str, smooth: int) -> Path:
    """Draw every panel for which some run has values; return the file.

    Raises:
      ValueError: a run that has no place on the axis.
    """
    for run in runs:
        known = all(axis in line for line in run.lines)
        require(known, "--x", axis, f"{run.name} is a folder of results alone; wants step")
    panels = [
        panel
        for panel in (*PANELS, *task_panels(runs))
        if any(run.series(axis, f)[0] for run in runs for f in (panel.train, panel.valid))
    ]
    columns = min(len(panels), COLUMNS)
    fig, found = figure(columns, rows=-(-len(panels) // columns), width=4.8)
    axes = list(np.ravel(found))
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for panel, ax in zip(panels, axes, strict=False):
        for number, run in enumerate(runs):
            color = f"C{number % 10}"
            ax.plot(*run.series(axis, panel.train, smooth), color=color, label=run.name)
            held_out = run.series(axis, panel.valid)
            ax.plot(*held_out, color=color, linestyle="--", marker="o", markersize=4)
            if not panel.train:
                ax.lines[-1].set_label(run.name)
                ax.lines[-2].set_label(None)
            if panel.chance:
                ax.plot(*run.series(axis, panel.chance), color=color, linestyle=":")
        if panel.log_y:
            ax.set_yscale("log")
        else:
            ax.ticklabel_format(axis="y", useOffset=False)
        ax.set(title=panel.title, xlabel=AXES[axis])
        ax.grid(alpha=0.3, which="both")
    if len(runs) > 1:
        axes[0].legend()
    said = remarks(runs)
    if said:
        fig.text(0.01, 0.005, "\n".join(said), fontsize="x-small", va="bottom")
    return save(fig, out)


FLAGS = (
    flag(
        "runs",
        None,
        "a workdir, its metrics.jsonl, a folder of results, or NAME=RUN",
        nargs="+",
        metavar="RUN",
    ),
    flag("--out", None, "PNG, PDF or SVG (by its ending)", makes="file", type=Path, required=True),
    flag("--x", "tokens", "seconds: of training steps", choices=tuple(AXES)),
    flag("--smooth", 1, "mean over so many log lines", least=1),
)
HELP = "learning curves from metrics.jsonl"
COMMAND = Command("curves", HELP, __doc__, FLAGS, act)
