"""Files from the Hub: rows are converted as the harness does, and what is missing is said."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.__main__ import main
from eval.core.datasets import DataRoot
from eval.core.texts import documents
from eval.tasks.fetch import SOURCES, hellaswag, lettered
from eval.tasks.zeroshot_files import SETS

LETTERS = {"choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}, "answerKey": "C"}
ROWS = {
    "piqa": {"goal": "Go?", "sol1": "a", "sol2": "b", "label": 1},
    "hellaswag": {
        "activity_label": "Roof", "ctx": "A man sits. [step] he",
        "ctx_a": "A man sits. [step]", "ctx_b": "he",
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


def stand_in(load_dataset):
    """Return what is used of `datasets`."""
    exceptions = SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))
    return SimpleNamespace(load_dataset=load_dataset, exceptions=exceptions)


@pytest.fixture
def hub(monkeypatch):
    """`datasets` with one row in every repository; says what was asked for."""
    asked = []

    def load_dataset(path, config, *, split):
        asked.append((path, config, split))
        names = [n for n, s in SOURCES.items() if (s.config, s.split) == (config, split)]
        return [ROWS[n] for n in names if path.endswith(SOURCES[n].repository)]

    monkeypatch.setitem(sys.modules, "datasets", stand_in(load_dataset))
    return asked


def test_every_task_comes_out_as_its_right_answer(hub, tmp_path):
    assert main(["fetch", "--data-root", str(tmp_path)]) == 0
    assert len(hub) == len(SETS)
    read_back(tmp_path)
    files = {file: file.read_bytes() for file in tmp_path.rglob("*.gz")}
    assert {content[4:8] for content in files.values()} == {bytes(4)}  # gzip's time of writing
    assert main(["fetch", "--data-root", str(tmp_path)]) == 0
    assert len(hub) == len(SETS)  # what is there is not fetched again
    next(iter(files)).unlink()
    assert main(["fetch", "--data-root", str(tmp_path)]) == 0
    assert len(hub) == len(SETS) + 1
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == files


def read_back(root):
    """The right answers, as the tasks read them from the files."""
    for name, task in SETS.items():
        (question,) = task.questions(DataRoot(root))
        assert question.pairs[question.gold] == GOLD[name], name


@pytest.mark.parametrize(
    ("change", "said"),
    [({"answerKey": "D"}, "ValueError: 'D' is not in list"), ({"choices": None}, "'choices'")],
)
def test_rows_of_another_form_are_named(monkeypatch, tmp_path, capsys, change, said):
    row = {k: v for k, v in (ROWS["arc_easy"] | change).items() if v is not None}
    monkeypatch.setitem(sys.modules, "datasets", stand_in(lambda *_, **__: [row]))
    assert main(["fetch", "--data-root", str(tmp_path), "--tasks", "arc_easy"]) == 2
    error = capsys.readouterr().err
    for part in ("row 0 of allenai/ai2_arc", said, "columns are id, question"):
        assert part in error
    assert not list(tmp_path.rglob("*"))


WRITE_COPIES = """
import json, pathlib, sys
import datasets

for name, (folder, config, split, row) in json.load(open(sys.argv[1])).items():
    file = pathlib.Path(folder, config or "data", f"{split}-00000-of-00001.parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list([row]).to_parquet(file)
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="wants the extra hf")
def test_the_real_package_reads_copies_of_the_repositories(tmp_path):
    """In processes of their own: `datasets` starts threads, and reads its settings once."""
    copies, root = tmp_path / "copies", tmp_path / "data"
    wanted = {
        name: (str(copies / s.repository), s.config, s.split, ROWS[name])
        for name, s in SOURCES.items()
    }
    for repository in {s.repository for s in SOURCES.values()}:
        lines = [
            f"- config_name: {s.config or 'default'}\n  data_files:\n  - split: {s.split}\n"
            f"    path: {s.config or 'data'}/{s.split}-*\n"
            for s in SOURCES.values()
            if s.repository == repository
        ]
        (copies / repository).mkdir(parents=True)
        (copies / repository / "README.md").write_text(f"---\nconfigs:\n{''.join(lines)}---\n")
    (tmp_path / "wanted.json").write_text(json.dumps(wanted))
    homes = itertools.count()

    def run(*words):
        # With a cache of its own each: `datasets` takes from its cache what it cannot reach.
        environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / f"{next(homes)}")}
        command = [sys.executable, *map(str, words)]
        where = Path(__file__).resolve().parents[3]
        return subprocess.run(
            command, cwd=where, env=environ, capture_output=True, text=True, check=False
        )

    assert run("-c", WRITE_COPIES, tmp_path / "wanted.json").returncode == 0
    fetch = ("-m", "eval", "fetch", "--data-root", root)
    done = run(*fetch, "--copies", copies)
    assert done.returncode == 0, done.stderr
    read_back(root)
    file = root / SETS["boolq"].file
    file.unlink()
    (parquet,) = (copies / SOURCES["boolq"].repository).rglob("*.parquet")
    parquet.write_bytes(parquet.read_bytes()[:-9])
    for words, said in (((), "cannot be loaded from the Hub"), (("--copies", copies), "as a copy")):
        failed = run(*fetch, "--tasks", "boolq", *words)
        assert failed.returncode == 2, failed.stderr
        assert said.replace("the Hub", "the Hugging Face Hub") in failed.stderr
        assert "google/boolq" in failed.stderr
        assert "Traceback" not in failed.stderr
    assert not file.exists()


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

    monkeypatch.setitem(sys.modules, "datasets", stand_in(load_dataset))
    words = ["fetch", "--data-root", str(tmp_path), "--tasks", "hellaswag"]
    assert main(words) == 2
    said = capsys.readouterr().err
    for part in ("Rowan/hellaswag", "ConnectionError", "--copies", SETS["hellaswag"].file):
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


def test_texts_are_fetched_by_name(monkeypatch, tmp_path):
    asked = []

    def load_dataset(path, config, *, split, **how):
        asked.append((path, config, split, how))
        lines = ["", " = A = \n", "", " text of a \n", "", " = B = \n", "", " more \n"]
        return [
            {"text": text} for text in (lines if config else [f"{split} {i}" for i in range(9)])
        ]

    monkeypatch.setitem(sys.modules, "datasets", stand_in(load_dataset))
    words = ["fetch", "--data-root", str(tmp_path), "--tasks", "wikitext2,pg19", "--books", "3"]
    assert main(words) == 0
    root = DataRoot(tmp_path)
    first, second = (text for _, text in documents(root, "wikitext2", "valid"))
    assert "text of a" in first
    assert second == " = B = \n \n more \n"
    books = [text for _, text in documents(root, "pg19", "train")]
    assert books == ["train 0", "train 1", "train 2"]
    assert len(list(documents(root, "pg19", "test"))) == 9
    assert [(s, how) for p, _, s, how in asked if p == "emozilla/pg19"] == [
        ("train", {"streaming": True}), ("validation", {}), ("test", {}),
    ]  # fmt: skip
    assert main(words) == 0
    assert len(asked) == 6  # what is there is not fetched again
    monkeypatch.setitem(sys.modules, "datasets", stand_in(lambda *_, **__: [{"body": "a"}]))
    assert main([*words[:4], "wikitext103"]) == 2
