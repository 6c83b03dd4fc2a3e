"""Results beside each other: those of other items are marked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from eval.results import curves

ONE, TWO = "a" * 64, "b" * 64


def result(file: Path, task: str, items: str | None, order: str | None = ONE) -> str:
    about = {"name": file.stem, "step": 1, "block": "hope", "parameters": 9}
    about |= {"train_order_sha256": order} if order else {}
    found = {"task": task, "subject": about, "metrics": {}, "seconds": 1.0, "device": "toy"}
    file.write_text(json.dumps({**found, "items_sha256": items} if items else found))
    return str(file)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (("recall", ONE), ""),
        (("niah", TWO), ""),  # another task has other items
        (("recall", TWO), "**Not comparable**: recall: {two}: asked other items than {one}"),
        (("recall", None), "recall: the items are not recorded in {two}"),
    ],
)
def test_results_of_other_items_are_marked(
    second: tuple[str, str | None],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = result(tmp_path / "one.json", "recall", ONE)
    two = result(tmp_path / "two.json", *second)
    assert main(["summary", one, two]) == 0
    said = capsys.readouterr().out
    assert message.format(one=one, two=two) in said
    assert ("Not comparable" in said or "not recorded" in said) == bool(message)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (ONE, ""),
        (TWO, "recall: {two}: trained on other rows, or in another order than {one}: "),
        (None, "recall: order of training not recorded: {two}"),
    ],
)
def test_results_of_models_of_another_training_order_are_marked(
    order: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = result(tmp_path / "one.json", "recall", ONE)
    two = result(tmp_path / "two.json", "recall", ONE, order)
    assert main(["summary", one, two]) == 0
    said = capsys.readouterr().out
    assert message.format(one=one, two=two) in said
    assert ("order" in said) == bool(message)


def scored(file: Path, hits: list[bool], step: int = 1, **more: object) -> None:
    items = [
        {"id": str(i), "group": "g", "asked": f"{i}?", "correct": x} for i, x in enumerate(hits)
    ]
    about = {"name": file.parent.name, "step": step, "block": "hope", "parameters": 9}
    metrics = {"g": {"acc": sum(hits) / len(hits)}}
    found = {"task": "t", "subject": about | {"tokenizer_sha256": "x"}, "metrics": metrics}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(found | {"seconds": 1.0, "device": "toy", "items": items} | more))


def test_folders_of_results_are_summarized_compared_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, last in (("one", [True, True]), ("two", [True, False])):
        scored(tmp_path / name / "t-1.json", [False, False], 5)
        scored(tmp_path / name / "t-2.json", last, 10)
        os.utime(tmp_path / name / "t-1.json", (1, 1))
    places = [str(tmp_path / name) for name in ("one", "two")]
    assert main(["summary", *places]) == 0
    assert capsys.readouterr().out.count("## t: ") == 4
    assert main(["compare", "--results", *places, "--out", str(tmp_path / "c.json")]) == 0
    (pair,) = json.loads((tmp_path / "c.json").read_text())["tasks"]["t"]["pairs"]
    assert (pair["a"], pair["b"], pair["groups"]["g"]["difference"]) == ("one@10", "two@10", -0.5)
    figures: list[Any] = []
    save = curves.save
    monkeypatch.setattr(curves, "save", lambda fig, out: figures.append(fig) or save(fig, out))
    assert main(["curves", *places, "--x", "step", "--out", str(tmp_path / "a.png")]) == 0
    (panel,) = (ax for ax in figures[0].axes if ax.get_title() == "t g: acc")
    drawn = [list(line.get_ydata()) for line in panel.lines if len(line.get_ydata())]
    assert drawn == [[0.0, 1.0], [0.0, 0.5]]
    capsys.readouterr()
    assert main(["curves", *places, "--out", str(tmp_path / "a.png")]) == 2
    assert "--x='tokens': one is a folder of results alone" in capsys.readouterr().err
    scored(tmp_path / "two" / "t-2.json", [True], 10, task="other")
    os.utime(tmp_path / "two" / "t-1.json", (9e9, 9e9))
    (tmp_path / "two" / "t-1.json").unlink()
    assert main(["compare", "--results", *places]) == 2
    assert "no task in common" in capsys.readouterr().err
    result(tmp_path / "two" / "t-2.json", "t", None)
    assert main(["compare", "--results", *places]) == 2
    assert "t-2.json': has no items" in capsys.readouterr().err
