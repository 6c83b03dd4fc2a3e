"""Files from the Hub: rows are converted as the harness does, and what is missing is said."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from eval.__main__ import main
from eval.datasets import DataRoot
from eval.fetch import SOURCES, hellaswag, lettered
from eval.tasks import TASKS

LETTERS = {"choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}, "answerKey": "C"}
ROWS = {
    "piqa": {"goal": "Go?", "sol1": "a", "sol2": "b", "label": 1},
    "hellaswag": {
        "activity_label": "Roof", "ctx_a": "A man sits. [step]", "ctx_b": "he",
        "endings": ["runs [title] on.", "sits."], "label": "1",
    },
    "winogrande": {"sentence": "Al saw _ go.", "option1": "Bo", "option2": "Cy", "answer": "2"},
    "arc_easy": {"id": "x1", "question": "Why?", **LETTERS},
    "arc_challenge": {
        "id": "x2", "question": "Why?", "answerKey": "2",
        "choices": {"text": ["a", "b"], "label": ["1", "2"]},
    },
    "boolq": {"passage": "P.", "question": "is it", "answer": True},
    "siqa": {
        "context": "Al ran.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c",
        "label": "2",
    },
    "commonsenseqa": {"id": "x3", "question": "Why?", **LETTERS},
    "openbookqa": {"id": "x4", "question_stem": "It is", **LETTERS},
    "lambada": {"text": "He called for his dog"},
}  # fmt: skip
GOLD = {
    "piqa": ("Question: Go?\nAnswer:", " b"),
    "hellaswag": ("Roof: A man sits. He", " sits."),
    "winogrande": ("Al saw Cy", " go."),
    "arc_easy": ("Question: Why?\nAnswer:", " c"),
    "arc_challenge": ("Question: Why?\nAnswer:", " b"),
    "boolq": ("P.\nQuestion: is it?\nAnswer:", " yes"),
    "siqa": ("Q: Al ran. Why?\nA:", " b"),
    "commonsenseqa": ("Question: Why?\nAnswer:", " c"),
    "openbookqa": ("It is", " c"),
    "lambada": ("He called for his", " dog"),
}


@pytest.fixture
def hub(monkeypatch):
    """`datasets` with one row in every repository; says what was asked for."""
    asked = []

    def load_dataset(path, config, *, split):
        asked.append((path, config, split))
        names = [n for n, s in SOURCES.items() if (s.config, s.split) == (config, split)]
        return [ROWS[n] for n in names if path.endswith(SOURCES[n].repository)]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_every_task_comes_out_as_its_right_answer(hub, tmp_path):
    assert main(["fetch", "--data-root", str(tmp_path)]) == 0
    assert len(hub) == len(TASKS)
    for name, task in TASKS.items():
        (question,) = task.questions(DataRoot(tmp_path))
        assert question.pairs[question.gold] == GOLD[name], name
    assert main(["fetch", "--data-root", str(tmp_path)]) == 0
    assert len(hub) == len(TASKS)  # what is there is not fetched again


def test_local_copies_of_the_repositories(hub, tmp_path, capsys):
    words = ["fetch", "--data-root", str(tmp_path / "d"), "--copies", str(tmp_path), "--tasks"]
    assert main([*words, "piqa"]) == 2
    assert f"{tmp_path}/baber/piqa is missing" in capsys.readouterr().err
    (tmp_path / "baber/piqa").mkdir(parents=True)
    assert main([*words, "piqa"]) == 0
    assert hub == [(f"{tmp_path}/baber/piqa", None, "validation")]


def test_what_cannot_be_reached_is_said(monkeypatch, tmp_path, capsys):
    def load_dataset(path, config, *, split):
        raise ConnectionError("Couldn't reach 'Rowan/hellaswag' on the Hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    words = ["fetch", "--data-root", str(tmp_path), "--tasks", "hellaswag"]
    assert main(words) == 2
    said = capsys.readouterr().err
    for part in ("Rowan/hellaswag", "ConnectionError", "--copies", TASKS["hellaswag"].file):
        assert part in said
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert main(words) == 2
    assert "pip install 'nested-jax[hf]'" in capsys.readouterr().err
    assert main(["fetch", "--tasks", "pika"]) == 2
    assert not any(tmp_path.rglob("*.gz"))


def test_markup_is_taken_away():
    row = hellaswag(ROWS["hellaswag"])
    assert (row["choices"], row["gold"]) == (["runs. on.", "sits."], 1)
    assert lettered("question")(ROWS["arc_challenge"])["gold"] == 1
