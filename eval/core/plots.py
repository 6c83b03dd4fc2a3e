"""Plots with matplotlib (extra `eval`), drawn without a display and written as PNG or PDF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def figure(
    columns: int = 1, *, rows: int = 1, width: float = 6.4, height: float = 4.0
) -> tuple[Any, Any]:
    """Return a figure and its axes, each `width` x `height` inches.

    One, an array of `columns` side by side or of `rows` below one another, or [rows, columns].

    Raises:
      ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ValueError("plots want matplotlib: pip install 'nested-jax[eval]'") from error
    mpl.use("agg")
    from matplotlib import pyplot

    size = (width * columns, height * rows)
    return pyplot.subplots(rows, columns, figsize=size, layout="constrained")


def colors_of(names: Sequence[str]) -> dict[str, Any]:
    """Return a color for each name: those of tab20 but its grays, the strong ones first."""
    import matplotlib as mpl

    pairs = [pair for pair in range(10) if pair != 7]
    table = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
    colors = [table[2 * pair] for pair in pairs] + [table[2 * pair + 1] for pair in pairs]
    return {name: colors[i % len(colors)] for i, name in enumerate(dict.fromkeys(names))}


def legend_beside(fig: Any, axes: Sequence[Any]) -> None:
    """Put one legend for all axes to the right of them; a label that several have stands once."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    fig.legend(entries.values(), entries.keys(), loc="outside right upper", fontsize="small")


def save(fig: Any, path: str | Path) -> Path:
    """Write the figure; the file's ending chooses the format. Returns the path."""
    from matplotlib import pyplot

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=150)
    pyplot.close(fig)
    return path


def lines(
    path: str | Path,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
) -> Path:
    """Draw one line for each name of `series`, from its values (x, y)."""
    fig, ax = figure()
    for name, (at, value) in series.items():
        ax.plot(at, value, marker="." if len(at) < 64 else None, label=name)
    if log_x:
        ax.set_xscale("log", base=2)
    ax.set(title=title, xlabel=x, ylabel=y)
    ax.grid(alpha=0.3)
    if len(series) > 1:
        ax.legend()
    return save(fig, path)


def heat_map(
    path: str | Path,
    table: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    x: str,
    y: str,
    limits: tuple[float, float] | None = None,
) -> Path:
    """Draw a table as colors with its numbers written in; NaN cells stay empty.

    Args:
      path: file to write.
      table: float [rows, columns].
      rows: names down the side.
      columns: names along the bottom.
      limits: values of the ends of the color scale; None takes the table's own.
    """
    fig, ax = figure(width=max(4.0, 1.6 + 0.8 * len(columns)), height=1.6 + 0.5 * len(rows))
    low, high = limits or (float(np.nanmin(table)), float(np.nanmax(table)))
    image = ax.imshow(table, vmin=low, vmax=high, aspect="auto")
    fig.colorbar(image)
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            dark = value < (low + high) / 2
            color = "white" if dark else "black"
            ax.text(column, row, f"{value:.3g}", ha="center", va="center", color=color)
    ax.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    ax.set_yticks(range(len(rows)), rows)
    ax.set(title=title, xlabel=x, ylabel=y)
    return save(fig, path)


def bars(
    path: str | Path,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    y: str,
    errors: Mapping[str, Sequence[float]] | None = None,
) -> Path:
    """Draw groups of bars: one group a name, one bar in it for each of `series`."""
    fig, ax = figure(width=max(6.4, 1.2 * len(names)))
    width = 0.8 / len(series)
    for i, (label, values) in enumerate(series.items()):
        at = np.arange(len(names)) + (i - (len(series) - 1) / 2) * width
        spread = errors.get(label) if errors else None
        ax.bar(at, values, width, yerr=spread, label=label)
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
    ax.set(title=title, ylabel=y)
    ax.grid(axis="y", alpha=0.3)
    if len(series) > 1:
        ax.legend()
    return save(fig, path)
