"""Results beside each other: those of other items are marked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.__main__ import main

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
