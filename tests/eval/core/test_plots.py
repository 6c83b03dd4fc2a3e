"""Plots: files that hold a picture, with the labels and the numbers that belong there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.core import plots
from eval.core.cli import Findings
from eval.proof.plots import panels
from eval.tasks import books, classification, continual, niah, recall, zeroshot

PNG = b"\x89PNG\r\n\x1a\n"
STAGES, NAMES = ["before", "one", "two"], ["one", "two"]
LOSSES = np.asarray([[5.0, 5.0], [3.0, 4.5], [4.0, 2.0]])
ZERO = {"acc": 0.5, "acc_stderr": 0.1, "chance": 0.25}
NEEDLES = [
    {"group": f"s1@{n}", "tokens": n, "depth": d, "correct": c}
    for n, d, c in ((256, 0.1, True), (256, 0.9, False), (512, 0.5, True))
]
MATRIX = {"stages": STAGES, "segments": NAMES, "loss": LOSSES.tolist()}
LESS = {"loss": (LOSSES - 1).tolist()}
BINS = {
    name: {"loss": a, "memorized": {"loss": b}}
    for name, a, b in (("all", 9, 9), ("0-64", 5.0, 5.0), ("64-128", 4.0, 3.0))
}
ACCURACIES = {"memory": {"matrix": [[0.5, None], [0.25, 1.0]]}}
RECALLS = {
    f"{n} tokens": {"accuracy": a, "chance": 0.1, "times": n / 64}
    for n, a in ((64, 1.0), (128, 0.5))
}

# What draws; how many files; title, x and y of the last; words of its legend; numbers in its cells.
DRAWN: dict[str, tuple[Callable[[Path], list[Path]], int, tuple[str, ...], set[str], set[str]]] = {
    "books": (
        lambda f: books.draw(f, Findings(BINS, [], {"writes": {}})),
        1,
        ("Loss by position", "token of the book", "nats per token"),
        {"baseline", "memorized"},
        set(),
    ),
    "continual": (
        lambda f: continual.draw(f, Findings({"matrix": MATRIX | {"memorized": LESS}}, [])),
        4,
        ("Held-out loss, learning while reading", "segment", "after stage"),
        set(),
        {"4", "2", "3.5", "3", "1"},
    ),
    "classification": (
        lambda f: classification.draw(f, Findings(ACCURACIES, [])),
        1,
        ("Accuracy, memory", "increment", "after"),
        set(),
        {"0.5", "0.25", "1"},
    ),
    "niah": (
        lambda f: niah.draw("niah", f, Findings({}, NEEDLES)),
        1,
        ("s1: answered exactly", "tokens", "depth"),
        set(),
        {"1", "0"},
    ),
    "zeroshot": (
        lambda f: zeroshot.draw(f, Findings({"piqa": {**ZERO, "memorized": ZERO}}, [])),
        1,
        ("Zero-shot", "", "accuracy"),
        {"baseline", "memorized", "chance"},
        set(),
    ),
    "recall": (
        lambda f: recall.draw(f, Findings(RECALLS, [])),
        1,
        ("Recall, trained on 64 tokens", "tokens", "accuracy"),
        {"all answers of a row", "chance"},
        set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_a_plot_says_what_it_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, count, labels, legend, cells = DRAWN[name]
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", keeping(figures, plots.save))
    paths = draw(tmp_path / "plots")
    assert len(paths) == count == len(set(paths))
    for path in paths:
        assert path.read_bytes().startswith(PNG)
        assert path.stat().st_size > 4000
    ax = figures[-1].axes[0]
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == labels
    shown = ax.get_legend()
    assert ({t.get_text() for t in shown.get_texts()} if shown else set()) == legend
    assert {text.get_text() for text in ax.texts} == cells


def keeping(figures: list[Any], save: Callable[..., Path]) -> Callable[..., Path]:
    def both(fig: Any, path: Path) -> Path:
        figures.append(fig)
        return save(fig, path)

    return both


def test_lines_hold_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", keeping(figures, plots.save))
    continual.draw(tmp_path, Findings({"matrix": MATRIX}, []))
    curves = {line.get_label(): line.get_ydata().tolist() for line in figures[0].axes[0].lines}
    assert curves == {"one": [5.0, 3.0, 4.0], "two": [5.0, 4.5, 2.0]}
    ticks = [t.get_text() for t in figures[1].axes[0].get_yticklabels()]
    assert ticks == STAGES


def test_names_have_colors_of_their_own_and_none_is_gray() -> None:
    colors = plots.colors_of([f"model {i}" for i in range(18)])
    assert len(set(colors.values())) == 18
    assert all(max(color) - min(color) > 0.1 for color in colors.values())
    assert plots.colors_of(["a", "b", "a"]) == plots.colors_of(["a", "b"])


def test_one_legend_for_all_panels_names_what_any_of_them_has() -> None:
    fig, (left, right) = plots.figure(2)
    left.plot([0, 1], label="both")
    right.plot([0, 1], label="both")
    right.plot([1, 0], label="right alone")
    plots.legend_beside(fig, [left, right])
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["both", "right alone"]


@pytest.mark.parametrize(("count", "want"), [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (7, (3, 3))])
def test_panels_fill_rows_and_leave_no_empty_axes(count: int, want: tuple[int, int]) -> None:
    fig, axes = panels([str(i) for i in range(count)])
    assert len(axes) == len(fig.axes) == count
    assert axes[0].get_subplotspec().get_gridspec().get_geometry() == want
