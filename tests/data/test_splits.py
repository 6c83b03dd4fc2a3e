"""One list of split names for every reader: held-out text is never trained on by its name."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from nested_jax.config import DataConfig
from nested_jax.data.__main__ import main
from nested_jax.data.manifest import SourceSpec
from nested_jax.data.pipeline import open_data
from nested_jax.data.prepare.engine import JudgeFile
from nested_jax.data.prepare.hf_source import choose_split
from nested_jax.data.prepare.text_sources import order_by_split
from nested_jax.data.records import Problems

VALID = ("valid", "validation", "val", "dev", "Validation", "dev-clean", "validation_matched")
TEST = ("test", "testing", "eval", "evaluation", "TEST", "held_out")
TRAIN = ("train", "training", "train_sft", "train[:90%]")
NAMES = {
    **dict.fromkeys(VALID, "valid"),
    **dict.fromkeys(TEST, "test"),
    **dict.fromkeys(TRAIN, "train"),
}


def rows(word: str, count: int = 12, **more: object) -> str:
    lines = [{"text": f"{word} number {i} of some words {i * i}", **more} for i in range(count)]
    return "".join(json.dumps(line) + "\n" for line in lines)


def filtered(dataset: object, out: Path, *flags: str) -> dict[str, set[str]]:
    """The first word of every text that `data filter` kept, by split; '' is by content."""
    command = ["filter", "--dataset", str(dataset), "--output-path", str(out), "--rules", "none"]
    assert main([*command, "--similarity", "0", *flags]) == 0
    found: dict[str, set[str]] = {}
    for line in out.read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row.get("split", ""), set()).add(row["text"].split()[0])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_a_row(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(rows("told", split=name))
    assert filtered(tmp_path / "a.jsonl", tmp_path / "out.jsonl") == {NAMES[name]: {"told"}}


def test_a_value_of_a_parquet_row(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": ["a one", "b two"], "split": ["dev", "training"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    got = filtered(tmp_path / "a.parquet", tmp_path / "out.jsonl")
    assert got == {"valid": {"a"}, "train": {"b"}}


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [
        ("train-00000.jsonl", "valid-00000.jsonl", "test-00000.jsonl"),
        ("train-00000-of-00010.jsonl", "validation-00000-of-00010.jsonl", "eval_0.jsonl"),
        ("c4-train.00000-of-01024.jsonl", "c4-validation.00000-of-00008.jsonl", "c4.test.jsonl"),
        ("train/part-0.jsonl", "dev/part-0.jsonl", "testing/part-0.jsonl"),
        ("x/training0.jsonl", "x/val0.jsonl", "y/test.jsonl"),
    ],
)
def test_names_of_files_and_folders(train: str, valid: str, test: str, tmp_path: Path) -> None:
    root = tmp_path / "test_of_a_corpus"  # what is above the source tells nothing
    for name, word in ((train, "learned"), (valid, "held"), (test, "asked")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(rows(word))
    want = {"train": {"learned"}, "valid": {"held"}, "test": {"asked"}}
    assert filtered(root, tmp_path / "out.jsonl") == want
    pattern = f"{root}/*/*.jsonl" if "/" in train else f"{root}/*.jsonl"
    assert filtered(pattern, tmp_path / "out.jsonl") == want


def test_held_out_names_count_without_a_train_file(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "valid.jsonl").write_text(rows("held"))
    (root / "part-0.jsonl").write_text(rows("free"))
    got = filtered(root, tmp_path / "out.jsonl")
    assert got == {"valid": {"held"}, "": {"free"}}
    assert filtered(root / "valid.jsonl", tmp_path / "out.jsonl") == {"valid": {"held"}}


def test_plain_text_of_shards(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "train-00000.txt").write_text("learned\n" * 50)
    (folder / "train-00001.txt.gz").write_bytes(gzip.compress(b"learned\n" * 50))
    (folder / "valid-00000-of-00001.txt").write_text("held\n" * 20)
    (folder / "eval_0.txt").write_text("asked\n" * 20)
    cfg = DataConfig(
        source=str(folder), cache_dir=str(tmp_path / "c"), vocab_size=512, tokenizer="char"
    )
    store = open_data(cfg)
    for split, word in (("train", "learned"), ("valid", "held"), ("test", "asked")):
        ids = [np.fromfile(store.root / s.file, store.dtype) for s in store.select(split)]
        assert set(store.tokenizer.decode(np.concatenate(ids)).split("\n")) == {word, ""}


def test_an_unknown_value_is_said_in_the_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(rows("plain") + rows("odd", 3, split="gold") + rows("num", 1, split=3))
    assert set(filtered(path, tmp_path / "out.jsonl")) == {""}
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert f"4 of 16 records name an unknown split, first 'gold' at {path}:13" in last


@pytest.mark.parametrize("name", ["train-dev.jsonl", "train/valid-0.jsonl"])
def test_a_name_of_two_splits_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c" / name).parent.mkdir(parents=True)
    (tmp_path / "c" / name).write_text(rows("x"))
    out = str(tmp_path / "out")
    assert main(["filter", "--dataset", str(tmp_path / "c"), "--output-path", out]) == 2
    assert f"{name!r}: stands for the splits train and valid" in capsys.readouterr().err


def test_the_split_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(rows("learned", split="train") + rows("held", split="dev") + rows("free"))
    out = tmp_path / "out.jsonl"
    assert filtered(path, out, "--split", "validation") == {"valid": {"held"}}
    command = ["filter", "--dataset", str(path), "--output-path", str(out), "--split"]
    assert main([*command, "test"]) == 2
    assert "split='test': no file and no record" in capsys.readouterr().err
    assert main([*command, "gold"]) == 2
    assert "split='gold': wants a name of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("known", "wanted", "fallback", "chosen"),
    [
        (["train", "validation", "test"], "valid", "", ("validation", "valid")),
        (["train", "dev"], "validation", "", ("dev", "valid")),
        (["train_sft", "test_sft"], "", "", ("train_sft", "train")),
        (["validation", "test"], "", "", ("validation", "valid")),  # loudly, and not trained on
        (["validation", "test"], "", "test", ("test", None)),  # asked for in place of train
        (["unsupervised"], "unsupervised", "", ("unsupervised", None)),
    ],
)
def test_splits_of_the_hub(
    known: list[str],
    wanted: str,
    fallback: str,
    chosen: tuple[str, str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FALLBACK_SPLIT", fallback)
    said: list[str] = []
    spec = SourceSpec(dataset="hf:some/name", split=wanted)
    assert choose_split(known, spec, said.append) == chosen
    assert len(said) == (not wanted and known[0] == "validation")


def test_the_engine_keeps_splits_and_problems(tmp_path: Path) -> None:
    (tmp_path / "c/valid").mkdir(parents=True)
    (tmp_path / "c/valid/part.jsonl").write_text(rows("held", 5) + "{broken\n")
    (tmp_path / "c/part.jsonl").write_text("{broken\n")  # of which nothing is left
    spec = SourceSpec(dataset=str(tmp_path / "c"), rules="none")
    judge = JudgeFile(spec, 100, np.empty(0, np.uint64))
    problems, kept = Problems(spec), []
    for number, (path, split) in enumerate(order_by_split(spec)):
        for row in judge({"file": number, "path": str(path), "split": split or ""}):
            problems.merge(pickle.loads(row["problems"]))
            kept += pickle.loads(row["texts"])
    assert [record.split for record in kept] == ["valid"] * 5
    first = f"first {tmp_path}/c/valid/part.jsonl:6"
    assert f"could not read 2 of 7 records (28.6%): 2 broken_json, {first}" in problems.summary()
