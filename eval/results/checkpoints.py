"""Every kept checkpoint of a run: ``python -m eval checkpoints --run runs/x --tasks hellaswag``.

A task is one of `python -m eval`, or a set of zeroshot (hellaswag, piqa, ...). Flags after ``--``
go to every task that has them. Each run gets RUN/eval/checkpoints (or --out-dir/NAME):

    step_N_eval/TASK_results.json   one result of a task, with step and tokens_seen
    checkpoint_results.json         the numbers of all steps

and the curves of all runs are drawn into one figure: ``--plot``, or curves.png in --out-dir, else
beside the results of the first run. A result that is there, of the same checkpoint and flags, is
not made again. So the command goes on where it was killed, and may be repeated while a training
goes on. A checkpoint that the training deletes meanwhile is left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.core.bundle import checkpoint_hash
from eval.core.cli import Command, evaluate, options_of, subject_of, tasks, write_out
from eval.core.flags import OUT, flag
from eval.core.partial import forget
from eval.core.plots import colors_of, figure, save
from eval.core.subject import Subject
from eval.results.suite import supported
from eval.tasks.zeroshot_files import SETS
from nested_jax.errors import require
from nested_jax.files import hold_folder
from nested_jax.train.checkpoint import find_checkpoint
from nested_jax.train.workdir import CHECKPOINTS, locate, saved_steps

AXES = {"tokens_seen": "tokens", "step": "steps"}
CURVES = "curves.png"
METRICS = ("acc_norm", "acc", "accuracy", "bits_per_byte")  # drawn by default, where there are such


class Run(NamedTuple):
    """A run, the steps that are scored, and where their results go."""

    name: str
    workdir: Path
    steps: list[int]
    folder: Path


def act(flags: argparse.Namespace) -> int:
    runs = [run_of(text, flags) for text in flags.run]
    names = [run.name for run in runs]
    require(len(set(names)) == len(names), "--run", names, "wants different names, NAME=RUN")
    chosen = chosen_tasks(flags.tasks, flags.rest)
    found = {run.name: score_run(run, chosen) for run in runs}
    print(draw_curves(found, flags, flags.plot or (flags.out_dir or runs[0].folder) / CURVES))
    write_out(flags.out, {"runs": found})
    return 0


def run_of(text: str, flags: argparse.Namespace) -> Run:
    """Return the run of ``[NAME=]RUN``, with the steps that ``--steps`` chooses.

    Raises:
      ValueError: no checkpoints there, or none of a step that is asked for.
    """
    name, equals, rest = text.partition("=")
    workdir, _ = locate(rest if equals else text)
    name = name if equals else workdir.name
    kept = saved_steps(workdir / CHECKPOINTS)
    require(bool(kept), "--run", text, f"has no checkpoints in {workdir / CHECKPOINTS}")
    folder = flags.out_dir / name if flags.out_dir else workdir / "eval" / "checkpoints"
    return Run(name, workdir, choose_steps(flags.steps, kept), folder)


def choose_steps(text: str, kept: Sequence[int]) -> list[int]:
    """Return the steps of ``all``, of ``last`` or of ``2000,10000``.

    Raises:
      ValueError: a step that is not kept, with those that are.
    """
    if text == "all":
        return list(kept)
    if text == "last":
        return [kept[-1]]
    parts = [part.strip() for part in text.split(",")]
    right = all(part.isdecimal() and int(part) in kept for part in parts)
    require(right, "--steps", text, f"wants all, last, or some of {', '.join(map(str, kept))}")
    return sorted({int(part) for part in parts})


def chosen_tasks(names: str, rest: Sequence[str]) -> dict[str, list[str]]:
    """Return the arguments of every task by its label, the task's name first.

    Raises:
      ValueError: an unknown task, or a flag that none of them has.
    """
    known = tasks()
    chosen: dict[str, list[str]] = {}
    for label in dict.fromkeys(part.strip() for part in names.split(",")):
        there = label in known or label in SETS
        require(there, "--tasks", label, f"wants some of {', '.join([*known, *SETS])}")
        chosen[label] = ["zeroshot", "--tasks", label] if label in SETS else [label]
    parsers = {label: known[task].parser() for label, (task, *_) in chosen.items()}
    for word in (word for word in rest if word.startswith("--")):
        used = any(supported(parser, [word]) for parser in parsers.values())
        require(used, "arguments after --", word, f"none of {', '.join(chosen)} has this flag")
    return {label: [*words, *supported(parsers[label], rest)] for label, words in chosen.items()}


def score_run(run: Run, chosen: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """Score what is not scored yet; write and return the numbers of every step."""
    rows: list[dict[str, Any]] = []
    began, made = time.perf_counter(), 0
    with hold_folder(run.folder):
        for number, step in enumerate(run.steps):
            before = made
            row, made_here = score_step(run, step, chosen)
            made += made_here
            if row is None:
                print(f"{run.name}, step {step}: deleted by the training meanwhile", flush=True)
                continue
            rows.append(row)
            write_out(run.folder / "checkpoint_results.json", {"run": run.name, "results": rows})
            each = (time.perf_counter() - began) / max(made, 1) * len(chosen)
            left = f"about {each * (len(run.steps) - number - 1):.0f} s left"
            print(
                f"{run.name}, step {step}: {left if made > before else 'done before'}", flush=True
            )
    return rows


def score_step(
    run: Run, step: int, chosen: Mapping[str, list[str]]
) -> tuple[dict[str, Any] | None, int]:
    """Return the numbers of a step, None if its checkpoint is gone, and how many were made now."""
    place = run.workdir / CHECKPOINTS / str(step)
    try:
        meta = find_checkpoint(place).meta
        digest = checkpoint_hash(place)
    except (OSError, ValueError):
        if place.is_dir():
            raise
        return None, 0
    row: dict[str, Any] = {"step": step, "tokens_seen": tokens_seen(meta), "tasks": {}}
    subject: Subject | None = None
    made = 0
    for label, (name, *words) in chosen.items():
        file = run.folder / f"step_{step}_eval" / f"{label}_results.json"
        flags = tasks()[name].parse(["--checkpoint", str(place), "--out", str(file), *words])
        result = finished(file, digest, flags)
        if result is None:
            try:
                subject = subject or subject_of(flags)
            except (OSError, ValueError):
                if place.is_dir():
                    raise
                return None, made
            about = {"step": step, "tokens_seen": row["tokens_seen"]}
            result = {**about, **evaluate(tasks()[name], subject, flags)}
            write_out(file, {**result, "items": []})
            forget(file)
            made += 1
        row["tasks"][label] = result["metrics"]
    return row, made


def tokens_seen(meta: Mapping[str, Any]) -> int | None:
    """Return the targets that a checkpoint was trained on, where it says so."""
    tokens = meta.get("meter", {}).get("totals", {}).get("tokens")
    return None if tokens is None else int(tokens)


def finished(file: Path, digest: str, flags: argparse.Namespace) -> dict[str, Any] | None:
    """Return the result in a file if it is of these parameters and of these flags."""
    try:
        result = json.loads(file.read_text("utf-8"))
        same = result["subject"]["checkpoint_sha256"] == digest
        options = json.loads(json.dumps(options_of(flags)))
        return result if same and result["options"] == options else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or none of ours: it is written


# --- curves --------------------------------------------------------------------------------------


def curves(
    found: Mapping[str, list[dict[str, Any]]], axis: str, metrics: str
) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Return the lines of every panel: ``{"hellaswag: acc": {run: (x, y)}}``.

    Raises:
      ValueError: no result has one of the metrics that are asked for.
    """
    wanted = METRICS if metrics == "auto" else tuple(m.strip() for m in metrics.split(","))
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    there: set[str] = set()
    for run, rows in found.items():
        for row in rows:
            for label, groups in row["tasks"].items():
                for group, numbers in groups.items():
                    plain = {k for k, v in numbers.items() if isinstance(v, (int, float))}
                    there |= plain
                    title = label if group == label else f"{label}, {group}"
                    for metric in (m for m in wanted if m in plain):
                        panel = panels.setdefault(f"{title}: {metric}", {})
                        at, values = panel.setdefault(run, ([], []))
                        at.append(row[axis] if row[axis] is not None else row["step"])
                        values.append(numbers[metric])
    require(bool(panels), "--metrics", metrics, f"wants some of {', '.join(sorted(there))}")
    return panels


def draw(
    found: Mapping[str, list[dict[str, Any]]], out: Path, axis: str, metrics: str = "auto"
) -> Path:
    """Draw a panel for each metric of each group, with one line per run; return the file."""
    panels = curves(found, axis, metrics)
    colors = colors_of(list(found))
    fig, axes = figure(len(panels), width=4.8)
    for (title, series), ax in zip(
        panels.items(), axes if len(panels) > 1 else [axes], strict=True
    ):
        for run, (at, values) in series.items():
            ax.plot(at, values, marker="o", markersize=4, color=colors[run], label=run)
        ax.set(title=title, xlabel=AXES[axis])
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.grid(alpha=0.3)
    (axes[0] if len(panels) > 1 else axes).legend()
    return save(fig, out)


def draw_curves(
    found: Mapping[str, list[dict[str, Any]]], flags: argparse.Namespace, out: Path
) -> str:
    """Draw the curves; return the file, or why there is none, if nobody asked for it by a flag.

    Raises:
      ValueError: matplotlib is not installed, or no result has such a metric, and a flag asks.
    """
    try:
        return str(draw(found, out, flags.x, flags.metrics))
    except ValueError as error:
        if flags.plot is not None or flags.metrics != "auto":
            raise
        return f"no curves: {error}"


FLAGS = (
    flag(
        "--run",
        None,
        "a workdir, or NAME=RUN; repeatable",
        nargs="+",
        action="extend",
        metavar="RUN",
        required=True,
    ),
    flag("--tasks", None, "tasks, or sets of zeroshot, with commas", required=True),
    flag("--steps", "all", "all that are kept, last, or steps with commas"),
    flag("--out-dir", None, "default: RUN/eval/checkpoints", makes="folder", type=Path),
    flag("--plot", None, "PNG, PDF or SVG; default: curves.png", makes="file", type=Path),
    flag("--metrics", "auto", "what is drawn; auto: accuracies and bits per byte"),
    flag("--x", "tokens_seen", "of the curves", choices=tuple(AXES)),
    OUT,
)
HELP = "tasks over every checkpoint of runs, resumable"
COMMAND = Command("checkpoints", HELP, __doc__, FLAGS, act, takes_rest=True)
