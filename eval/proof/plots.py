"""Plots of a proof: accuracy by length, by pairs and by state size, and learning curves."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.core.plots import colors_of, figure, legend_beside, save
from eval.proof.cells import Result, state_size
from eval.proof.measures import by_distance, by_tokens
from eval.proof.positions import by_position
from eval.proof.published import RECALL_BY_STATE
from nested_jax.data.synthetic.formal import Formal
from nested_jax.data.synthetic.recall import MQAR
from nested_jax.data.synthetic.rows import task_of
from nested_jax.data.synthetic.task import Task

Colors = Mapping[str, Any]  # of models
COLUMNS = 3  # of panels
LINES = ("-", "--", ":", "-.", (0, (1, 4)))  # of widths and cases


def draw(folder: Path, name: str, proof: Any, chosen: Sequence[Any]) -> list[Path]:
    """Draw what the runs of a proof have; return the files."""
    suite = proof.suite
    runs = [c for c in chosen if c.results]
    if not runs:
        return []
    colors = colors_of(list(suite.models))
    paths = []
    if any(run.curve for one in runs for run in one.results):
        paths += [learning_curves(folder / f"proof-{name}-curves.png", suite.title, runs, colors)]
    if suite.measure == "position":
        paths.append(by_position(folder / f"proof-{name}-position.png", proof, runs))
    if any("repeat" in (run.tasks or {}) for one in runs for run in one.results):
        path = folder / f"proof-{name}-repeat.png"
        paths.append(by_distance(path, suite.title, runs, list(suite.models)))
    if any(run.repeats for one in runs for run in one.results):
        path = folder / f"proof-{name}-repeat-tokens.png"
        paths.append(by_tokens(path, suite.title, runs, list(suite.models)))
    if suite.measure == "accuracy":
        tasks = {
            type(task_of(spec)) for c in runs for spec in c.results[0].cell.load().data.task.scored
        }
        if Formal in tasks:
            paths.append(by_length(folder / f"proof-{name}-length.png", runs, colors))
        if MQAR in tasks:
            paths.append(by_pairs(folder / f"proof-{name}-pairs.png", runs, colors))
            paths.append(by_state(folder / f"proof-{name}-state.png", runs, colors))
    return paths


def panels(names: Sequence[str]) -> tuple[Any, list[Any]]:
    """Return a figure and axes for each of `names`, `COLUMNS` per row."""
    columns = min(len(names), COLUMNS)
    fig, axes = figure(columns, rows=-(-len(names) // columns), width=4.4, height=3.6)
    used, empty = np.ravel(axes)[: len(names)], np.ravel(axes)[len(names) :]
    for ax in empty:
        ax.remove()
    return fig, list(used)


def by_case(runs: Sequence[Any]) -> dict[str, list[Any]]:
    cases: dict[str, list[Any]] = {}
    for run in runs:
        cases.setdefault(run.case, []).append(run)
    return cases


def accuracy(result: Result, spec: str) -> float:
    return 100 * result.summary["scores"][f"{spec}/accuracy"]


def learning_curves(path: Path, title: str, runs: Sequence[Any], colors: Colors) -> Path:
    """Training loss by step, the mean over seeds, one panel for each case that has curves."""
    cases = by_case([one for one in runs if any(run.curve for run in one.results)])
    fig, axes = panels(list(cases))
    for ax, (case, models) in zip(axes, cases.items(), strict=True):
        for one in models:
            curves = [run.curve for run in one.results if run.curve]
            points = list(zip(*curves, strict=False))
            steps = [point[0][0] for point in points]
            mean = [statistics.fmean(loss for _, loss in point) for point in points]
            ax.plot(steps, mean, color=colors[one.model], label=one.model)
        ax.set(title=case, xlabel="step", ylabel="training loss, nats")
        ax.set_yscale("log")
        ax.grid(alpha=0.3)
    fig.suptitle(title)
    legend_beside(fig, axes)
    return save(fig, path)


def by_length(path: Path, runs: Sequence[Any], colors: Colors) -> Path:
    """Strings that are right in every position, by their length."""
    cases = {
        case: models
        for case, models in by_case(runs).items()
        if isinstance(first_task(models[0]), Formal)
    }
    fig, axes = panels(list(cases))
    for ax, (case, models) in zip(axes, cases.items(), strict=True):
        for one in models:
            specs = one.results[0].cell.load().data.task.scored
            lengths = [task_of(spec).length for spec in specs]
            mean = [statistics.fmean(accuracy(run, spec) for run in one.results) for spec in specs]
            ax.plot(lengths, mean, marker="o", color=colors[one.model], label=one.model)
        ax.set(title=case, xlabel="strings up to this length", ylabel="right strings, %")
        ax.set_ylim(-3, 103)
        ax.grid(alpha=0.3)
    legend_beside(fig, axes)
    return save(fig, path)


def first_task(one: Any) -> Task | None:
    """Return the task of the trained distribution; None on real text."""
    scored = one.results[0].cell.load().data.task.scored
    return task_of(scored[0]) if scored else None


def recalls(runs: Sequence[Any]) -> list[Any]:
    return [one for one in runs if isinstance(first_task(one), MQAR)]


def recalled(one: Any) -> Iterator[tuple[MQAR, float]]:
    """Yield every test of a case of recall, with its accuracy in %, the mean over seeds."""
    for spec in one.results[0].cell.load().data.task.scored:
        task = task_of(spec)
        assert isinstance(task, MQAR)
        yield task, statistics.fmean(accuracy(run, spec) for run in one.results)


def by_pairs(path: Path, runs: Sequence[Any], colors: Colors) -> Path:
    """Recall by the number of pairs, a line for each model and width, or for a case of several."""
    fig, ax = figure(width=9.0, height=4.8)
    series: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for one in recalls(runs):
        cfg = one.results[0].cell.load()
        several = len(cfg.data.task.scored) > 1
        group = one.case if several else f"width {cfg.model.dim}"
        for task, mean in recalled(one):
            series.setdefault((one.model, group), []).append((task.pairs, mean))
    groups = list(dict.fromkeys(group for _, group in series))
    for (model, group), points in series.items():
        pairs, means = zip(*sorted(points), strict=True)
        style = LINES[groups.index(group) % len(LINES)]
        ax.plot(pairs, means, linestyle=style, marker="o", color=colors[model])
    for model in dict.fromkeys(model for model, _ in series):
        ax.plot([], [], color=colors[model], label=model)
    for index, group in enumerate(groups):
        ax.plot([], [], linestyle=LINES[index % len(LINES)], color="gray", label=group)
    ax.set_xscale("log", base=2)
    ticks = sorted({pairs for points in series.values() for pairs, _ in points})
    ax.set_xticks(ticks, [str(pairs) for pairs in ticks])
    ax.set(title="MQAR", xlabel="key-value pairs", ylabel="recall, %")
    ax.set_ylim(-3, 103)
    ax.grid(alpha=0.3)
    legend_beside(fig, [ax])
    return save(fig, path)


def by_state(path: Path, runs: Sequence[Any], colors: Colors) -> Path:
    """Recall by the size of what a sequence carries: a point for each case; dashed: published."""
    fig, ax = figure(width=9.0, height=4.8)
    markers: dict[int, str] = {}
    for one in recalls(runs):
        for task, mean in recalled(one):
            marker = markers.setdefault(task.tokens, "os^DvPX*"[len(markers) % 8])
            size = state_size(one.results[0].cell)
            ax.scatter(size, mean, color=colors[one.model], marker=marker)
    for model in dict.fromkeys(one.model for one in recalls(runs)):
        ax.scatter([], [], color=colors[model], label=model)
    for tokens, marker in markers.items():
        ax.scatter([], [], color="gray", marker=marker, label=f"{tokens} tokens")
    for label, points in RECALL_BY_STATE.items():
        ax.plot(*zip(*points, strict=True), "--", color="gray", lw=1)
        first = points[0]
        ax.annotate(label, first, (2, -3), textcoords="offset points", ha="left", va="top", size=7)
    ax.plot([], [], "--", color="gray", lw=1, label="published (Zoology)")
    ax.set_xscale("log")
    ax.set(title="MQAR", xlabel="numbers of state per sequence", ylabel="recall, %")
    ax.set_ylim(-3, 103)
    ax.grid(alpha=0.3)
    legend_beside(fig, [ax])
    return save(fig, path)
