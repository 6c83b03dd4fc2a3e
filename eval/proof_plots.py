"""Plots of a proof: accuracy by length, by pairs and by state size, and learning curves."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.plots import figure, save
from eval.proof_cells import Result, state_size
from eval.proof_published import RECALL_BY_STATE
from eval.proof_text import by_position
from nested_jax.data.formal import Formal
from nested_jax.data.recall import MQAR
from nested_jax.data.synthetic import task_of
from nested_jax.data.synthetic_task import Task


def draw(folder: Path, name: str, proof: Any, chosen: Sequence[Any]) -> list[Path]:
    """Draw what the runs of a proof have; return the files."""
    suite = proof.suite
    runs = [c for c in chosen if c.results]
    if not runs:
        return []
    paths = [learning_curves(folder / f"proof-{name}-curves.png", suite.title, runs)]
    if suite.measure == "position":
        paths.append(by_position(folder / f"proof-{name}-position.png", proof, runs))
    if suite.measure == "accuracy":
        tasks = {
            type(task_of(spec)) for c in runs for spec in c.results[0].cell.load().data.task.scored
        }
        if Formal in tasks:
            paths.append(by_length(folder / f"proof-{name}-length.png", runs))
        if MQAR in tasks:
            paths.append(by_pairs(folder / f"proof-{name}-pairs.png", runs))
            paths.append(by_state(folder / f"proof-{name}-state.png", runs))
    return paths


def panels(names: Sequence[str]) -> tuple[Any, list[Any]]:
    fig, axes = figure(len(names), width=4.4, height=3.6)
    return fig, [axes] if len(names) == 1 else list(axes)


def by_case(runs: Sequence[Any]) -> dict[str, list[Any]]:
    cases: dict[str, list[Any]] = {}
    for run in runs:
        cases.setdefault(run.case, []).append(run)
    return cases


def accuracy(result: Result, spec: str) -> float:
    return 100 * result.summary["scores"][f"{spec}/accuracy"]


def learning_curves(path: Path, title: str, runs: Sequence[Any]) -> Path:
    """Training loss by step, the mean over seeds, a panel a case."""
    cases = by_case(runs)
    fig, axes = panels(list(cases))
    for ax, (case, models) in zip(axes, cases.items(), strict=True):
        for one in models:
            curves = [run.curve for run in one.results if run.curve]
            points = list(zip(*curves, strict=False))
            steps = [point[0][0] for point in points]
            mean = [statistics.fmean(loss for _, loss in point) for point in points]
            ax.plot(steps, mean, label=one.model if points else f"{one.model} (no curve)")
        ax.set(title=case, xlabel="step", ylabel="training loss, nats")
        ax.set_yscale("log")
        ax.grid(alpha=0.3)
    fig.suptitle(title)
    axes[0].legend(fontsize="small")
    return save(fig, path)


def by_length(path: Path, runs: Sequence[Any]) -> Path:
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
            ax.plot(lengths, mean, marker="o", label=one.model)
        ax.set(title=case, xlabel="strings up to this length", ylabel="right strings, %")
        ax.set_ylim(-3, 103)
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
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


def by_pairs(path: Path, runs: Sequence[Any]) -> Path:
    """Recall by the number of pairs, a line for each model and width, or for a case of several."""
    fig, ax = figure()
    series: dict[str, list[tuple[int, float]]] = {}
    for one in recalls(runs):
        cfg = one.results[0].cell.load()
        several = len(cfg.data.task.scored) > 1
        label = f"{one.model}, {one.case if several else f'width {cfg.model.dim}'}"
        for task, mean in recalled(one):
            series.setdefault(label, []).append((task.pairs, mean))
    for index, (label, points) in enumerate(series.items()):
        pairs, means = zip(*sorted(points), strict=True)
        line = ("-", "--", ":")[index // 10 % 3]  # colours come back after ten
        ax.plot(pairs, means, line, marker="o", label=label)
    ax.set_xscale("log", base=2)
    ticks = sorted({pairs for points in series.values() for pairs, _ in points})
    ax.set_xticks(ticks, [str(pairs) for pairs in ticks])
    ax.set(title="MQAR", xlabel="key-value pairs", ylabel="recall, %")
    ax.set_ylim(-3, 103)
    ax.grid(alpha=0.3)
    ax.legend(fontsize="x-small")
    return save(fig, path)


def by_state(path: Path, runs: Sequence[Any]) -> Path:
    """Recall by the size of what a sequence carries: a point a case, published readings dashed."""
    fig, ax = figure()
    colors: dict[str, str] = {}
    markers: dict[int, str] = {}
    for one in recalls(runs):
        color = colors.setdefault(one.model, f"C{len(colors)}")
        for task, mean in recalled(one):
            marker = markers.setdefault(task.tokens, "os^DvPX*"[len(markers) % 8])
            ax.scatter(state_size(one.results[0].cell), mean, color=color, marker=marker)
    for label, color in colors.items():
        ax.scatter([], [], color=color, label=label)
    for tokens, marker in markers.items():
        ax.scatter([], [], color="gray", marker=marker, label=f"{tokens} tokens")
    for label, points in RECALL_BY_STATE.items():
        ax.plot(*zip(*points, strict=True), "--", color="gray", lw=1)
        first = points[0]
        ax.annotate(label, first, (2, -3), textcoords="offset points", ha="left", va="top", size=7)
    ax.plot([], [], "--", color="gray", lw=1, label="published (Zoology)")
    ax.set_xscale("log")
    ax.set(title="MQAR", xlabel="numbers of state a sequence", ylabel="recall, %")
    ax.set_ylim(-3, 103)
    ax.grid(alpha=0.3)
    ax.legend(fontsize="x-small")
    return save(fig, path)
