"""What was there before is set aside and said; what decides a result is compared, not its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_data import synthetic_source

from nested_jax.data.__main__ import main


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "good.jsonl", range(60))
    (tmp_path / "m.py").write_text(
        "def get_manifest(arg=None):\n    return {'name': 'm', 'sources': [{'name': 'corpus', "
        "'dataset': 'good.jsonl', 'rules': 'none'}]}\n"
    )
    return tmp_path


def write(path: Path, numbers: range) -> None:
    rows = [{"text": synthetic_source(i) + "# 2 * 3\n"} for i in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


FILTER = ("filter", "--dataset", "good.jsonl", "--rules", "none", "--output-path", "out")
TRAIN = ("tokenizer", "--dataset", "good.jsonl", "--output-dir", ".", "--vocab-size")
INJECT = ("inject", "--input", "good.jsonl", "--output", "out", "--condition")


@pytest.mark.parametrize(
    ("file", "first", "second"),
    [
        ("out", FILTER, (*FILTER, "--limit", "5")),
        ("tokenizer.model", (*TRAIN, "400"), (*TRAIN, "390")),
        ("out", (*INJECT, "mul_tokens"), (*INJECT, "baseline")),
        ("out", None, FILTER),
    ],
)
def test_another_result_is_set_aside(
    file: str,
    first: tuple[str, ...] | None,
    second: tuple[str, ...],
    place: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if first:
        assert main(list(first)) == 0
        assert main(list(first)) == 0  # the same again is no other
        assert not list(place.glob(f"{file}.2*.*"))
    else:
        (place / file).write_text("a user's own notes")
    before = (place / file).read_bytes()
    capsys.readouterr()
    assert main(list(second)) == 0
    (aside,) = place.glob(f"{file}.2*.*")
    assert aside.read_bytes() == before != (place / file).read_bytes()
    said = capsys.readouterr().out
    assert f"{file} was there with other contents; they are in {aside.name} now" in said


def test_a_result_that_fails_leaves_the_old_one(place: Path) -> None:
    assert main(list(FILTER)) == 0
    before = (place / "out").read_bytes()
    assert main([*FILTER, "--max-chars", "1"]) == 2
    assert (place / "out").read_bytes() == before


def test_a_recipe_makes_again_what_is_of_other_text_or_settings(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ["sample", "--manifest", "m.py", "--out", "r", "--vocab-size", "400"]

    def said(*more: str) -> str:
        assert main([*recipe, *more]) == 0
        return capsys.readouterr().out

    said()
    assert "keeping" in said()
    assert "is of other text or settings" in said("--symbols", "<a>")
    assert "keeping" in said("--symbols", "<a>")
    write(place / "good.jsonl", range(7, 67))
    again = said("--symbols", "<a>")
    assert "settings or source changed, filtering again" in again
    assert "is of other text or settings" in again


def test_evaluation_files_that_change_are_read_again(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = " ".join(f"w{i}" for i in range(20))
    (place / "eval.jsonl").write_text(json.dumps({"q": "nothing of it"}) + "\n")
    with open(place / "good.jsonl", "a") as file:
        file.write(json.dumps({"text": words}) + "\n")
    recipe = ["sample", "--manifest", "m.py", "--out", "r", "--vocab-size", "400"]
    recipe += ["--eval-files", "eval.jsonl"]
    assert main(recipe) == 0
    assert words in (place / "r/filtered/corpus.jsonl").read_text()
    (place / "eval.jsonl").write_text(json.dumps({"q": words}) + "\n")
    assert main(recipe) == 0
    assert words not in (place / "r/filtered/corpus.jsonl").read_text()


def test_a_file_that_moves_to_another_split_makes_other_shards(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "c/train").mkdir(parents=True)
    (place / "c/valid").mkdir()
    write(place / "c/train/a.jsonl", range(30))
    write(place / "c/train/b.jsonl", range(30, 60))
    assert main([*TRAIN, "400"]) == 0
    shard = ["shard", "--dataset", "c", "--tokenizer-path", ".", "--output-dir", "s"]
    assert main(shard) == 0
    (place / "c/train/b.jsonl").rename(place / "c/valid/b.jsonl")
    assert main(shard) == 2
    assert "holds shards of other settings or of another source" in capsys.readouterr().err


def test_a_copy_replaces_no_other_shards(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fsspec")
    assert main([*TRAIN, "400"]) == 0
    shard = ["shard", "--dataset", "good.jsonl", "--tokenizer-path", ".", "--output-dir"]
    assert main([*shard, "a"]) == 0
    assert main([*shard, "b", "--held-out", "0.2"]) == 0
    before = (place / "b/index.json").read_bytes()
    assert main(["copy", "a", "b"]) == 2
    assert "target='b': holds other shards" in capsys.readouterr().err
    assert (place / "b/index.json").read_bytes() == before
    assert main(["copy", "a", "c"]) == main(["copy", "a", "c"]) == main(["stats", "c"]) == 0
