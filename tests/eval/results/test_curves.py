"""Learning curves: what is read from a log, and that a picture of it is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from eval.results import curves


def log(folder: Path, *lines: dict[str, Any]) -> Path:
    folder.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def lines(aux: bool = True) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for step in (10, 20, 30, 40):
        line = {"step": step, "tokens": 100 * step, "loss": 4 - step / 20, "ppl": 9.0}
        out.append(line | {"step_s": 0.5} | ({"aux_loss": 0.06} if aux else {}))
        if step % 20 == 0:
            scored = {"step": step, "valid_loss": 3 - step / 40, "valid_bits_per_byte": 2.0}
            out.append(scored | {"valid_text_sha256": "a" * 64, "train_order_sha256": "b" * 64})
    return out


def of_text(**hashes: str | None) -> list[dict[str, Any]]:
    """Return a log whose evaluations have these hashes; None is a log from before there were."""
    return [
        {name: x for name, x in (line | hashes).items() if x} if "valid_loss" in line else line
        for line in lines()
    ]


def test_series_of_a_log(tmp_path: Path) -> None:
    run = curves.read_run(f"mine={log(tmp_path / 'a', *lines())}")
    assert run.name == "mine"
    assert run.series("tokens", "loss") == ([1000, 2000, 3000, 4000], [3.5, 3.0, 2.5, 2.0])
    assert run.series("seconds", "loss", 2) == ([10.0, 20.0], [3.25, 2.25])
    assert run.series("step", "valid_loss") == ([20, 40], [2.5, 2.0])
    assert run.series("tokens", "valid_bits_per_byte")[0] == [2000, 4000]
    assert run.series("step", "valid_ppl")[1] == pytest.approx([12.1825, 7.3891], rel=1e-4)
    assert run.series("step", "") == ([], [])


def test_values_that_were_not_finite_are_left_out(tmp_path: Path) -> None:
    first, *rest = lines()
    run = curves.read_run(str(log(tmp_path / "a", {**first, "loss": None}, *rest)))
    assert run.series("step", "loss")[0] == [20, 30, 40]
    assert curves.read_run(str(tmp_path / "a" / "metrics.jsonl")).name == "a"


def test_a_picture_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = log(tmp_path / "one", *lines()), log(tmp_path / "two", *lines(aux=False))
    out = tmp_path / "plots" / "curves.png"
    assert main(["curves", str(one), str(two), "--out", str(out), "--smooth", "2"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"valid_text_sha256": "c" * 64},
            r"RUN='two': scored on other text than one: .*cccc.*aaaa",
        ),
        ({"valid_text_sha256": None}, "note: held-out text not recorded: two"),
        (
            {"train_order_sha256": "d" * 64},
            "note: two: trained on other rows, or in another order than one: .*dddd.*bbbb",
        ),
    ],
)
def test_runs_of_another_text_are_refused_or_named(
    other: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(log(tmp_path / "one", *lines())), str(log(tmp_path / "two", *of_text(**other)))]
    refused = message.startswith("RUN=")
    status = main(["curves", *runs, "--out", str(tmp_path / "c.png")])
    said = capsys.readouterr()
    assert status == (2 if refused else 0)
    assert re.search(message, said.err if refused else said.out)
    assert (tmp_path / "c.png").exists() == (not refused)


def test_a_run_whose_text_was_changed_under_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = lines(), of_text(valid_text_sha256="c" * 64)
    run = log(tmp_path / "one", *before[: len(before) // 2], *after[len(after) // 2 :])
    assert main(["curves", str(run), "--out", str(tmp_path / "c.png")]) == 2
    assert re.search(
        "one from step 40'?: scored on other text than one from", capsys.readouterr().err
    )


def test_panels_without_values_are_not_drawn(tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[int] = []

    def counted(columns: int = 1, **size: float) -> Any:
        seen.append(columns)
        return figure(columns, **size)

    figure = curves.figure
    monkeypatch.setattr(curves, "figure", counted)
    for name, aux in (("with", True), ("without", False)):
        run = curves.read_run(str(log(tmp_path / name, *lines(aux))))
        curves.draw([run], tmp_path / f"{name}.png", "step", 1)
    assert seen == [4, 3]


def test_tasks_scored_while_training_have_panels(tmp_path: Path, monkeypatch: Any) -> None:
    figures: list[Any] = []
    save = curves.save
    monkeypatch.setattr(curves, "save", lambda fig, out: figures.append(fig) or save(fig, out))
    scored = {"piqa/acc": 0.5, "piqa/chance": 0.25}
    some = [{**line, **(scored if "valid_loss" in line else {})} for line in lines()]
    runs = [log(tmp_path / "scored", *some), log(tmp_path / "not", *lines())]
    curves.draw([curves.read_run(str(run)) for run in runs], tmp_path / "a.png", "step", 1)
    *_, panel = figures[0].axes
    assert len(figures[0].axes) == 5
    assert panel.get_title() == "piqa: accuracy"
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in panel.lines]
    assert ([20.0, 40.0], [0.5, 0.5]) in drawn
    assert ([20.0, 40.0], [0.25, 0.25]) in drawn


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere"], "wants a workdir of launch.py"),
        (["a", "a"], r"are not all different; wants NAME=RUN"),
        (["a", "--smooth", "0"], "--smooth=0: wants 1 or more"),
        (["empty"], "has no training lines"),
        (["bad"], r"metrics.jsonl:1: is not JSON"),
    ],
)
def test_bad_input(
    tmp_path: Path,
    monkeypatch: Any,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    log(tmp_path / "a", *lines())
    log(tmp_path / "empty")
    log(tmp_path / "bad")
    (tmp_path / "bad" / "metrics.jsonl").write_text('{"st')
    assert main(["curves", *flags, "--out", "x.png"]) == 2
    assert message.replace("\\", "") in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
