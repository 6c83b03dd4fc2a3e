"""Odd input of every command: one line that names the file or the flag, and exit status 2."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_data import synthetic_source

from nested_jax.config import DataConfig
from nested_jax.data.__main__ import main
from nested_jax.data.pipeline import open_data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good.jsonl, a tokenizer, shards and a mixture."""
    root = tmp_path_factory.mktemp("made")
    rows = [{"text": synthetic_source(i)} for i in range(60)]
    (root / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "m.py").write_text(
        "def get_manifest(arg=None):\n    return {'name': 'm', 'sources': [{'name': 'corpus', "
        f"'dataset': {str(root / 'good.jsonl')!r}, 'rules': 'none'}}]}}\n"
    )
    good = ("--dataset", str(root / "good.jsonl"))
    for command in (
        ("tokenizer", *good, "--output-dir", f"{root}/tok", "--vocab-size", "400"),
        ("shard", *good, "--tokenizer-path", f"{root}/tok", "--output-dir", f"{root}/s/corpus"),
        ("mixture", f"{root}/m.py", "--shards", f"{root}/s", "--output", f"{root}/mixture.json"),
    ):
        assert main(list(command)) == 0
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working directory."""
    shutil.copytree(made, tmp_path / "p")
    monkeypatch.chdir(tmp_path / "p")
    return tmp_path / "p"


def failed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the error of a command that ends with status 2 and one line."""
    try:
        status: Any = main([str(a) for a in arguments])
    except SystemExit as stop:  # argparse prints the usage first
        status = stop.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert len(lines) == 1 or "usage: " in lines[0]
    return lines[-1]


def put(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.update({key: value})


def put_first(part: str, key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda data: data[part][0].update({key: value})


INDEX = {
    "shards=3: wants list": put("shards", 3),
    "shards[0]: is a JSON str; wants an object": put("shards", ["a"]),
    "shards=[]: wants at least one": put("shards", []),
    "shards[0].x=1: unknown field": put_first("shards", "x", 1),
    "shards[0]: lacks tokens": lambda data: data["shards"][0].pop("tokens"),
    "shards[0]: tokens='many': wants int": put_first("shards", "tokens", "many"),
    "shards[0]: split='gold': wants one of": put_first("shards", "split", "gold"),
    "shards[0]: file='../x.bin': wants NAME.bin": put_first("shards", "file", "../x.bin"),
    "shards[0]: file=7: wants str": put_first("shards", "file", 7),
    "dtype='float99': wants one of": put("dtype", "float99"),
    "dtype=16: wants str": put("dtype", 16),
    "tokenizer='t': wants dict": put("tokenizer", "t"),
    "tokenizer: lacks file, sha256": put("tokenizer", {}),
    "source=None: wants dict": put("source", None),
}
MIXTURE = {
    "sources=4: wants list": put("sources", 4),
    "sources[0]: weight='heavy': wants float": put_first("sources", "weight", "heavy"),
    "sources[0]: weight=nan: wants float": put_first("sources", "weight", float("nan")),
    "sources[0]: weight=-1: wants one above 0": put_first("sources", "weight", -1),
    "sources[0]: shards_dir=4: wants str": put_first("sources", "shards_dir", 4),
    "sources[1]: name='corpus': is there": lambda data: data["sources"].extend(data["sources"]),
    "tokenizer=None: wants dict": put("tokenizer", None),
    "tokenizer: lacks sha256": put("tokenizer", {}),
}


@pytest.mark.parametrize(
    ("file", "why"),
    [*(("s/corpus/index.json", why) for why in INDEX), *(("mixture.json", why) for why in MIXTURE)],
)
def test_json_of_wrong_types(
    file: str, why: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads((place / file).read_text())
    {**INDEX, **MIXTURE}[why](data)
    (place / file).write_text(json.dumps(data))
    source = place / (file if file == "mixture.json" else "s/corpus")
    assert f"{place / file}: {why}" in failed(capsys, "stats", source)


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"", ":1: is not JSON"), (b'{"format": 1,\n', ":2: is not JSON"),
     (b"[1]", ": is a JSON list"), (b'{"\xe9": 1}', ": is not UTF-8"),
     (b"[" * 100_000, ": is not JSON (nested too deeply)")],
    ids=["empty", "cut", "list", "latin", "deep"],
)  # fmt: skip
def test_json_that_is_none(
    data: bytes, why: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file, source in (("s/corpus/index.json", "s/corpus"), ("mixture.json", "mixture.json")):
        (place / file).write_bytes(data)
        assert f"{file}{why}" in failed(capsys, "stats", source)
    (place / "base.json").write_bytes(data)
    words = ("coverage", "--tokenizer-path", "tok", "--sample-file", "m.py")
    assert f"base.json{why}" in failed(capsys, *words, "--baseline", "base.json")


MANIFESTS = {
    "def get_manifest(:\n": "m.py:1: SyntaxError",
    "import nothing_there\n": "m.py:1: ModuleNotFoundError",
    "def get_manifest(arg=None):\n    raise KeyError('x')\n": "m.py:2: KeyError",
    "def get_manifest():\n    return 1\n": "m.py: TypeError",
    "get_manifest = 3\n": "defines get_manifest(arg=None)",
    "def get_manifest(arg=None):\n    return {'sources': [3]}\n": "sources[0]=3: wants {...}",
    "def get_manifest(arg=None):\n    return {'sources': [{'dataset': 'x'}], 'weights': 3}\n": (
        "weights=3: unknown field"
    ),
}


@pytest.mark.parametrize("text", MANIFESTS, ids=range(len(MANIFESTS)))
def test_manifests(text: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "m.py").write_text(text)
    why = failed(capsys, "filter", "--manifest", "m.py", "--output-path", "out")
    assert MANIFESTS[text] in why


GOOD = ("--dataset", "good.jsonl")
FILTER = ("filter", *GOOD, "--output-path")
SHARD = ("shard", *GOOD, "--tokenizer-path", "tok", "--output-dir", "new")
TRAIN = ("tokenizer", *GOOD, "--output-dir", "new", "--vocab-size", "400")
INJECT = ("inject", "--condition", "mul_tokens", "--input", "good.jsonl", "--output")
SAMPLE = ("sample", "--manifest", "m.py", "--out", "new", "--vocab-size", "400")
FLAGS = {
    (*FILTER, "good.jsonl"): "output='good.jsonl': is the source itself",
    (*FILTER, "tok"): "output='tok': is a folder",
    (*FILTER, "x", "--weight", "inf"): "weight=inf: wants a finite weight",
    (*FILTER, "x", "--eval-files", "empty.jsonl"): "eval_files='empty.jsonl': has no text",
    (*FILTER, "x", "--eval-files", "odd.jsonl"): "odd.jsonl:1: holds what is not UTF-8",
    (*SHARD, "--seq-len", "0"): "--seq-len: '0': wants 1 or more",
    (*SHARD, "--inject-seed", str(2**70)): "wants a number of 64 bits",
    (*TRAIN, "--character-coverage", "nan"): "character_coverage=nan: wants a share",
    (*TRAIN, "--max-bytes", "0"): "max_bytes=0: wants 1 or more",
    (*TRAIN, "--symbols", "<a>", "<a>"): "wants different ones",
    (*TRAIN, "--symbols", "<s>"): "symbols=['<s>']: are control tokens",
    (*TRAIN, "--vocab-size", str(2**40)): "wants at most",
    (*TRAIN, "--dataset", "empty.jsonl"): "empty.jsonl: no text to train on in 0 records",
    (*TRAIN, "--dataset", "broken.jsonl"): "could not read 3 of 3 records (100.0%): 3 broken_json",
    (*SHARD, "--dataset", "empty.jsonl"): "empty.jsonl: no document in 0 records",
    (*SHARD, "--tokenizer-path", "empty.jsonl"): "not a SentencePiece model (it is empty)",
    (*INJECT, "good.jsonl"): "output='good.jsonl': is the source itself",
    (*INJECT, "x", "--input", "empty.jsonl"): "input='empty.jsonl': has no record",
    (*INJECT, "x", "--input", "odd.jsonl"): "odd.jsonl:1: holds what is not UTF-8",
    ("coverage", "--tokenizer-path", "tok", "--sample-file", "m.py", "--max-lines", "-1"): (
        "max_lines=-1: wants 0 (all) or more"
    ),
    ("validate", "--manifest", "mixture.json", "--overlap-threshold", "nan"): "wants a share",
    ("stats", ""): "data.source='': wants",
    (*SAMPLE, "--overlap-threshold", "2"): "--overlap-threshold: '2': wants a share",
    (*SAMPLE, "--tokenizer-model", "gone"): "tokenizer 'gone': no such file",
}


@pytest.mark.parametrize("command", FLAGS, ids=range(len(FLAGS)))
def test_flags_and_sources(
    command: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "empty.jsonl").write_text("")
    (place / "odd.jsonl").write_text('{"text": "a", "more": "\\ud800"}\n')
    (place / "broken.jsonl").write_text("{x\n" * 3)
    before = (place / "good.jsonl").read_bytes()
    assert FLAGS[command] in failed(capsys, *command)
    assert (place / "good.jsonl").read_bytes() == before
    assert not (place / "x").exists()
    assert not list(place.glob("new/*.json"))


def test_a_users_own_files_stay_beside_shards(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "new").mkdir()
    (place / "new/thesis.doc").write_text("years of work")
    (place / "new/model.bin").write_text("more")
    assert main(list(SHARD)) == 0
    assert (place / "new/thesis.doc").read_text() == "years of work"
    assert (place / "new/model.bin").exists()
    assert main([*SHARD, "--force", "--block-chars", "1000"]) == 0
    assert (place / "new/thesis.doc").exists()


def test_progress_and_reports_that_are_cut_are_made_again(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "new/.progress").mkdir(parents=True)
    (place / "new/.progress/plan.json").write_text("{")
    assert main(list(SHARD)) == 0
    assert main([*SAMPLE[:4], "rec", *SAMPLE[5:]]) == 0
    (place / "rec/filtered/corpus.jsonl.report.json").write_text('{"plan"')
    assert main([*SAMPLE[:4], "rec", *SAMPLE[5:]]) == 0


def test_damaged_shards_are_written_again_by_force(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(SHARD)) == 0
    next((place / "new").glob("*train*.bin")).write_bytes(b"cut")
    assert "--force writes the shards again" in failed(capsys, *SHARD)
    assert main([*SHARD, "--force"]) == 0
    assert main(["validate", "--manifest", "new"]) == 0


def test_what_is_lost_is_in_the_last_line_of_every_command(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(place / "good.jsonl", "a") as file:
        file.write("{broken\n")
    want = f"could not read 1 of 61 records (1.6%): 1 broken_json, first {place}/good.jsonl:61"
    source = ("--dataset", f"{place}/good.jsonl", "--max-bad", "0.1")
    for command in (
        ("filter", *source, "--rules", "none", "--output-path", "kept.jsonl"),
        ("tokenizer", *source, "--output-dir", "t", "--vocab-size", "400"),
        ("shard", *source, "--tokenizer-path", "tok", "--output-dir", "new"),
    ):
        assert main(list(command)) == 0
        assert want in capsys.readouterr().out.strip().splitlines()[-1]
    (place / "m.py").write_text(
        "def get_manifest(arg=None):\n    return {'name': 'm', 'sources': [{'name': 'corpus', "
        f"'dataset': {str(place / 'good.jsonl')!r}, 'rules': 'none', 'max_bad': 0.1}}]}}\n"
    )
    for _ in range(2):  # the second time the filter is up to date
        assert main(list(SAMPLE)) == 0
        assert want in capsys.readouterr().out.strip().splitlines()[-1]


@pytest.mark.parametrize("tokenizer", ["sentencepiece", "char"])
@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"train.txt.gz": gzip.compress(b"words\n" * 9999)[:-9], "valid.txt": b"x\n"},
         "train.txt.gz: truncated or damaged gzip file, of which"),
        ({"train.txt.gz": b"", "valid.txt": b"x\n"}, "train.txt.gz: truncated or damaged gzip"),
        ({"train.txt": b"ok\ncaf\xe9\n", "valid.txt": b"x\n"}, "train.txt:2: is not UTF-8 text"),
        ({"train.txt": "words".encode("utf-16"), "valid.txt": b"x\n"}, "train.txt: text in UTF-16"),
        ({"train.txt": b"words\n", "valid.txt": b""}, "no text for the valid split in 2 files"),
        ({"train-dev.txt": b"words\n", "valid.txt": b"x"}, "'train-dev.txt': stands for"),
    ],
)  # fmt: skip
def test_plain_text(files: dict[str, bytes], why: str, tokenizer: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name, data in files.items():
        (tmp_path / "a" / name).write_bytes(data)
    cfg = DataConfig(source=str(tmp_path / "a"), cache_dir=str(tmp_path / "c"), tokenizer=tokenizer)
    with pytest.raises(ValueError, match=why):
        open_data(cfg)
    assert not (tmp_path / "c").exists()
