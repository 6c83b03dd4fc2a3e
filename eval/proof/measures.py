"""What is measured on a cell after it has run: tasks of eval/tasks, kept beside it and in records.

A suite names tasks and their flags. They run on the cell's last checkpoint, into its folder
``eval``, as `python -m eval suite` runs them: what is there is not done again. What a passage is
worth while a cell trains (``train.eval_tasks=("repeat:...",)``) is read from its metrics.jsonl.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.core.plots import colors_of, figure, legend_beside, save
from eval.core.report import mean_spread, table
from eval.proof.cells import Cell, Result
from eval.results.suite import run_suite, task_flags
from nested_jax.files import write_json

REPEAT = "repeat"
MAIN = ("gain", "rank1", "accuracy", "loss")  # of a group; the first that it has is in the table
FIELDS = ("gain", "bits_per_byte", "control_bits_per_byte")
SURE = 3.0  # standard errors above which a gain is no accident
Chosen = Any  # report.Chosen


def measure(cell: Cell, out: Path, tasks: Sequence[tuple[str, tuple[str, ...]]]) -> dict[str, Any]:
    """Run the tasks on a finished cell; return the numbers of each by group, kept in tasks.json."""
    workdir = cell.workdir(out)
    file, asked = workdir / "tasks.json", [[name, list(words)] for name, words in tasks]
    if file.exists():
        kept = json.loads(file.read_text())
        if kept["asked"] == asked:
            return kept["found"]
    flags = {name: list(words) for name, words in tasks}
    results = run_suite(task_flags(flags, workdir, ()), workdir / "eval")
    found = {r["task"]: {g: numbers(of) for g, of in r["metrics"].items()} for r in results}
    write_json(file, {"asked": asked, "found": found})
    return found


def numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group with its numbers and words; lists, as intervals and curves, are left out."""
    found: dict[str, Any] = {}
    for name, value in group.items():
        if name == "memorized":
            found[name] = numbers(value)
        elif isinstance(value, (int, float, str)):
            found[name] = value
    return found


# --- tables --------------------------------------------------------------------------------------


def measure_tables(chosen: Sequence[Chosen]) -> str:
    """Return the tables of what was measured after the runs, and while they trained."""
    ran = [one for one in chosen if any(run.tasks for run in one.results)]
    parts = [repeat_tables(ran), others_table(ran), onset_table(chosen)]
    return "\n\n".join(part for part in parts if part)


def groups_of(ran: Sequence[Chosen], task: str) -> list[str]:
    """Return the groups of a task, by their text and then by distance or length."""
    all_ = [g for one in ran for run in one.results for g in (run.tasks or {}).get(task, {})]
    texts = list(dict.fromkeys(group.partition("@")[0] for group in all_))
    return sorted(
        set(all_), key=lambda group: (texts.index(group.partition("@")[0]), number_of(group))
    )


def number_of(group: str) -> int:
    """Return the distance or the length in the name of a group."""
    number = group.partition("@")[2]
    return int(number) if number.isdigit() else 0


def values(one: Chosen, task: str, group: str, field: str, written: bool = False) -> list[float]:
    """Return a number of a group for every seed that has it, without or with writes."""
    found = [(run.tasks or {}).get(task, {}).get(group, {}) for run in one.results]
    parts = [each.get("memorized", {}) if written else each for each in found]
    return [part[field] for part in parts if field in part]


def readings(ran: Sequence[Chosen]) -> list[tuple[str, Chosen, bool]]:
    """Return (name, model, written) of every row: a model that has nothing to write has one."""
    rows = []
    for one in ran:
        gains = [
            [values(one, REPEAT, g, "gain", written) for g in groups_of([one], REPEAT)]
            for written in (True, False)
        ]
        if gains[0] != gains[1]:
            rows.append((f"{one.model}, writing while it reads", one, True))
            rows.append((f"{one.model}, writes off", one, False))
        else:
            rows.append((one.model, one, False))
    return rows


def repeat_tables(ran: Sequence[Chosen]) -> str:
    """Return what a passage costs less for having been read: per token, per byte, by place."""
    groups = groups_of(ran, REPEAT)
    if not groups:
        return ""
    heads = [f"{number_of(group):,} tokens ({group.partition('@')[0]})" for group in groups]
    gains, bytes_, parts = [], [], []
    middle = next((group for group in groups if number_of(group) == 1024), groups[0])
    for name, one, written in readings(ran):
        of = [[values(one, REPEAT, g, f, written) for f in FIELDS] for g in groups]
        seeds = ", ".join(str(run.cell.seed) for run in one.results if run.tasks)
        gains.append([name, *(mean_spread(x[0], 1.0, 2) if x[0] else "-" for x in of), seeds])
        means = [[statistics.fmean(x) for x in each[1:] if x] for each in of]
        bytes_.append([name, *(f"{m[0]:.3f} ({m[1]:.3f})" if m else "-" for m in means)])
        places = [values(one, REPEAT, middle, place, written) for place in places_of(ran, middle)]
        parts.append([name, *(mean_spread(x, 1.0, 2) if x else "-" for x in places)])
    marks = {group: beyond(ran, group) for group in groups}
    said = "; ".join(f"{number_of(g):,}: {mark}" for g, mark in marks.items() if mark)
    return "\n\n".join(
        [
            "Bits per token that a passage costs less than in the control, for having been read "
            f"so many tokens ago. A dash: more than the model holds. Beyond: {said or 'nothing'}.",
            table(["model", *heads, "seeds"], gains),
            "Bits per byte of the second reading, and of the control in brackets:",
            table(["model", *heads], bytes_),
            f"The gain by tokens of the passage, at {number_of(middle):,} tokens:",
            table(["model", *places_of(ran, middle)], parts),
        ]
    )


def places_of(ran: Sequence[Chosen], group: str) -> list[str]:
    found = [run.tasks[REPEAT][group] for one in ran for run in one.results
             if run.tasks and group in run.tasks.get(REPEAT, {})]  # fmt: skip
    return [name for name in found[0] if name.startswith("gain ")] if found else []


def beyond(ran: Sequence[Chosen], group: str) -> str:
    """Return what a distance is beyond, with the models where not all agree."""
    marks: dict[str, list[str]] = {}
    for one in ran:
        for found in {str(x) for x in values(one, REPEAT, group, "beyond")} - {""}:
            marks.setdefault(found, []).append(one.model)
    return ", ".join(f"{mark} ({', '.join(names)})" for mark, names in marks.items())


def others_table(ran: Sequence[Chosen]) -> str:
    """Return the main number of every group of the other tasks, without / with writes."""
    tasks = {t for one in ran for run in one.results for t in run.tasks or {}} - {REPEAT}
    columns = [(task, group) for task in sorted(tasks) for group in groups_of(ran, task)]
    if not columns:
        return ""
    rows = []
    for one in ran:
        row = [one.model]
        for task, group in columns:
            found = [(run.tasks or {}).get(task, {}).get(group, {}) for run in one.results]
            field = next((f for f in MAIN if any(f in each for each in found)), "")
            both = [values(one, task, group, field, written) for written in (False, True)]
            row.append(" / ".join(mean_spread(x, 1.0, 3) for x in both if x) or "-")
        rows.append(row)
    header = ["without / with writes", *(f"{task} {group}" for task, group in columns)]
    return table(header, rows)


def onset_table(chosen: Sequence[Chosen]) -> str:
    """Return the tokens after which each model first gained, at each distance, in every seed."""
    distances = sorted({d for one in chosen for run in one.results for d in measured(run)})
    if not distances:
        return ""
    rows = []
    for one in chosen:
        row = [one.model]
        for distance in distances:
            begun = [first_gain(run, distance) for run in one.results if run.repeats]
            known = [tokens for tokens in begun if tokens is not None]
            row.append(f"{max(known):,}" if known and len(known) == len(begun) else "never")
        rows.append(row)
    intro = (
        "Tokens of training after which a passage that was read so many tokens ago first costs "
        f"less, by more than {SURE:g} standard errors and in every seed:"
    )
    return f"{intro}\n\n{table(['model', *(f'{d:,} tokens' for d in distances)], rows)}"


def measured(run: Result) -> list[int]:
    names = (name.split("/") for _, found in run.repeats for name in found)
    return [int(parts[1]) for parts in names if parts[2] == "written"]


def first_gain(run: Result, distance: int) -> int | None:
    for tokens, found in run.repeats:
        gain = found.get(f"{REPEAT}/{distance}/written", 0.0)
        if gain > SURE * found.get(f"{REPEAT}/{distance}/written_stderr", 0.0):
            return int(tokens)
    return None


# --- plots ---------------------------------------------------------------------------------------


def by_distance(path: Path, title: str, runs: Sequence[Chosen], models: Sequence[str]) -> Path:
    """Draw the gain by distance, the mean over seeds with its deviation; dashed: writes off."""
    ran = [one for one in runs if any(run.tasks for run in one.results)]
    groups, colors = groups_of(ran, REPEAT), colors_of(models)
    fig, ax = figure(width=8.0, height=4.4)
    for name, one, written in readings(ran):
        found = {number_of(g): values(one, REPEAT, g, "gain", written) for g in groups}
        found = {distance: x for distance, x in found.items() if x}
        mean = [statistics.fmean(x) for x in found.values()]
        spread = [statistics.stdev(x) if len(x) > 1 else 0.0 for x in found.values()]
        style = "--" if name.endswith("writes off") else "-"
        how = {"color": colors[one.model], "linestyle": style, "label": name}
        ax.errorbar(list(found), mean, spread, marker="o", capsize=3, **how)
    ax.set_xscale("log", base=2)
    ax.set(title=title, xlabel="tokens between the readings", ylabel="bits per token saved")
    ax.grid(alpha=0.3)
    legend_beside(fig, [ax])
    return save(fig, path)


def by_tokens(path: Path, title: str, runs: Sequence[Chosen], models: Sequence[str]) -> Path:
    """Draw the gain while training by tokens read, a panel for each distance."""
    distances = sorted({d for one in runs for run in one.results for d in measured(run)})
    fig, axes = figure(len(distances), width=4.4, height=3.6)
    colors = colors_of(models)
    for distance, ax in zip(distances, np.ravel(axes), strict=True):
        for one in runs:
            for i, run in enumerate(run for run in one.results if run.repeats):
                points = [(t, f[f"{REPEAT}/{distance}/written"]) for t, f in run.repeats]
                label = {"label": one.model} if i == 0 else {}
                ax.plot(*zip(*points, strict=True), color=colors[one.model], marker=".", **label)
        ax.set(title=f"{distance:,} tokens ago", xlabel="tokens of training")
        ax.grid(alpha=0.3)
    np.ravel(axes)[0].set_ylabel("bits per token saved")
    fig.suptitle(title)
    legend_beside(fig, list(np.ravel(axes)))
    return save(fig, path)
