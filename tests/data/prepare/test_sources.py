"""Reading text: every format gives the same documents, and bad input is counted or refused."""

from __future__ import annotations

import gzip
import json
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nested_jax.data import records as json_lines_module
from nested_jax.data.manifest import SourceSpec, load_manifest, make_manifest
from nested_jax.data.prepare import text_sources
from nested_jax.data.prepare.hf_source import download, unbroken
from nested_jax.data.prepare.text_sources import records
from nested_jax.data.records import Problems, Record
from nested_jax.data.streams import find_files

TEXTS = ["one\n\ttwo", "", "drei \u00e9 \u65e5", "  four\r\n ", "five"]


def read(dataset: Path | str, **fields: object) -> tuple[list[Record], Problems]:
    spec = SourceSpec(dataset=str(dataset), **fields)
    problems = Problems(spec)
    return list(records(spec, problems, lambda _: None)), problems


def texts(dataset: Path | str, **fields: object) -> list[str]:
    return [record.text for record in read(dataset, **fields)[0]]


def json_lines(rows: list[object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_json_lines_plain_and_compressed(tmp_path: Path) -> None:
    data = json_lines([{"id": i, "body": text} for i, text in enumerate(TEXTS)])
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(data))
    want = [text for text in TEXTS if text]
    for name in ("a.jsonl", "b.jsonl.gz"):
        assert texts(tmp_path / name, text_column="body") == want
    assert texts(tmp_path, text_column="body") == want * 2
    assert texts(f"{tmp_path}/*.gz", text_column="body") == want
    assert read(tmp_path, text_column="body")[1].empty == 2


def test_zstd_frames_and_truncation(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    frames = [zstandard.compress(json_lines([{"text": text}])) for text in TEXTS]
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(frames))
    assert texts(path) == [text for text in TEXTS if text]
    path.write_bytes(b"".join(frames)[:-3])
    with pytest.raises(ValueError, match=r"truncated or damaged zstd file.*does not end"):
        texts(path)
    path.write_bytes(b"not zstd at all")
    with pytest.raises(ValueError, match="truncated or damaged zstd file"):
        texts(path)


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"body": TEXTS, "n": list(range(5))}), path, row_group_size=2)
    assert texts(path, text_column="body") == [text for text in TEXTS if text]
    with pytest.raises(
        ValueError, match="text_column='text' is not there; the columns are body, n"
    ):
        texts(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="truncated or damaged Parquet"):
        texts(path, text_column="body")


def test_units_of_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\n\n \nthree\nfour")
    assert texts(path) == ["one", "two", " ", "three", "four"]
    assert texts(path, unit="paragraph") == ["one\ntwo", "three\nfour"]
    assert texts(path, unit="file") == ["one\ntwo\n\n \nthree\nfour"]


def test_named_splits_come_held_out_first(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation", "test"):
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines([{"text": name}]))
    got = read(tmp_path)[0]
    assert [r.split for r in got] == ["test", "valid", "train", "train"]
    assert [r.text for r in got][2:] == ["train-00000-of-00002", "train-00001-of-00002"]
    assert {r.split for r in read(tmp_path, split="validation")[0]} == {"valid"}
    (tmp_path / "solo").mkdir()
    (tmp_path / "solo/testament.txt").write_text("x\n")
    (tmp_path / "solo/test.txt").write_text("y\n")
    assert read(tmp_path / "solo")[0] == [Record("y", "test"), Record("x", None)]


def test_a_split_column_counts(tmp_path: Path) -> None:
    rows = [{"text": "a", "split": "valid"}, {"text": "b"}, {"text": "c", "split": "other"}]
    (tmp_path / "a.jsonl").write_bytes(json_lines(rows))
    assert [record.split for record in read(tmp_path / "a.jsonl")[0]] == ["valid", None, None]


def test_bad_records_are_counted_with_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines_module, "MAX_DOCUMENT_BYTES", 1000)
    lines = [json_lines([{"text": f"good {i}"}]) for i in range(30)]
    lines[3] = b'{"text": "half\n'
    lines[5] = b'{"text": "\xff\xfe"}\n'
    lines[7] = json_lines([{"text": "x" * 5000}])
    lines[9] = json_lines([{"text": 9}])
    lines[11] = b'{"text": "lone \\ud800 surrogate"}\n'
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(lines))
    got, problems = read(path, max_bad=0.5)
    assert [r.text for r in got] == [f"good {i}" for i in range(30) if i not in (3, 5, 7, 9, 11)]
    assert problems.as_dict() == {
        "read": 30,
        "empty": 0,
        "undecodable": 2,
        "broken_json": 1,
        "no_text": 1,
        "giant": 1,
        "unknown_split": 0,
        "first": {
            "broken_json": f"{path}:4",
            "undecodable": f"{path}:6",
            "giant": f"{path}:8",
            "no_text": f"{path}:10",
        },
    }


def test_bad_text_lines_and_paragraphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_sources, "MAX_DOCUMENT_BYTES", 100)
    path = tmp_path / "a.txt"
    path.write_bytes(b"ok\n\n" + b"y" * 300 + b"\nsame\n\n\xff\n\n" + b"z\n" * 80 + b"\nend")
    got, problems = read(path, unit="paragraph")
    assert [r.text for r in got] == ["ok", "end"]
    assert (problems.counts["giant"], problems.counts["undecodable"]) == (2, 1)
    _, problems = read(path, unit="file")
    assert problems.counts["giant"] == 1


def test_too_many_bad_records_stop_the_reading(tmp_path: Path) -> None:
    good, bad = json_lines([{"text": "good"}]), b"{broken\n"
    path = tmp_path / "a.jsonl"
    path.write_bytes(good + bad * 10)
    assert len(texts(path)) == 1  # ten are always tolerated
    path.write_bytes(good + bad * 11)
    with pytest.raises(
        ValueError,
        match=r"could not read 11 of 12 records \(91.7%\): 11 broken_json, first .*a.jsonl:2",
    ):
        texts(path)
    path.write_bytes(good * 1200 + bad * 11)
    assert len(texts(path)) == 1200
    with pytest.raises(ValueError, match="more than max_bad=0"):
        texts(path, max_bad=0.0)


@pytest.mark.parametrize("cut", [-1, -9, 60])
def test_truncated_gzip(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(
        gzip.compress(json_lines([{"text": f"text {i * i}"} for i in range(300)]))[:cut]
    )
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: truncated or damaged gzip"):
        texts(path)


def test_wrong_column_and_nothing_there(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_sources, "stdlib_root", lambda: library)
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines([{"body": "x", "id": 1}]))
    with pytest.raises(ValueError, match=r"text_column='text' is not there.* columns body, id"):
        texts(path)
    path.write_bytes(b"[1, 2]\n")
    with pytest.raises(ValueError, match="the record has int"):
        texts(path)
    for missing in ("nothing.jsonl", "*.parquet", "sub/**/x"):
        with pytest.raises(ValueError, match="no text there"):
            find_files(str(tmp_path / missing))
    with pytest.raises(ValueError, match="no segment 'poems'; it has library, prose, tables, te"):
        texts("stdlib:poems")
    assert len(texts("stdlib")) > len(texts("stdlib:prose")) == 13
    with pytest.raises(ValueError, match="dataset='': wants a file"):
        texts("")


def test_hugging_face_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'nested-jax\[hf\]'"):
        texts("hf:some/name")


def test_hugging_face_local_copy_and_split_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    datasets.DatasetDict({"validation": rows}).save_to_disk(tmp_path / "saved")
    spec = SourceSpec(dataset=f"hf:{tmp_path / 'saved'}")
    said: list[str] = []
    assert [r.text for r in records(spec, Problems(spec), said.append)] == ["a", "b"]
    assert said == [
        f"WARNING: hf:{tmp_path / 'saved'} has no split 'train' (it has validation); reading "
        "'validation' instead"
    ]
    (tmp_path / "files").mkdir()
    (tmp_path / "files/train.jsonl").write_bytes(json_lines([{"text": "c"}]))
    assert texts(f"hf:{tmp_path / 'files'}") == ["c"]


def test_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.py"
    path.write_text(
        "def get_manifest(arg=None):\n"
        "    return {'name': 'two', 'sources': [\n"
        "        {'name': 'web', 'key': 'RW', 'dataset': arg or 'x', 'limit': 5},\n"
        "        {'name': 'code', 'dataset': 'y', 'weight': 2.0}]}\n"
    )
    manifest = load_manifest(f"{path}:here")
    assert manifest.name == "two"
    assert manifest.sources[0] == SourceSpec(name="web", key="RW", dataset="here", limit=5)
    monkeypatch.setenv("RW_LIMIT", "7")
    monkeypatch.setenv("RW_LANG_THRESHOLD", "0.5")
    monkeypatch.setenv("CODE_DATASET", "z")
    web, code = load_manifest(str(path)).sources
    assert web == replace(manifest.sources[0], dataset="x", limit=7, lang_threshold=0.5)
    assert code.dataset == "z"
    monkeypatch.setenv("RW_LIMIT", "many")
    with pytest.raises(ValueError, match="RW_LIMIT='many': wants int"):
        load_manifest(str(path))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([{"name": "a", "weigth": 1.0}], "did you mean .*weight"),
        ([{"name": "a"}, {"name": "a"}], "wants different names"),
        ([], "wants at least one"),
        ([{"name": "a b"}], "without spaces"),
        ([{"name": "a", "limit": "5"}], "got str, wants int"),
        ([{"name": "a", "rules": "poems"}], "one of 'prose', 'code', 'none'"),
    ],
)
def test_bad_manifests(sources: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_manifest({"name": "m", "sources": sources}, "m.py")


def quiet(_: object) -> None:
    pass


class Stream:
    """A streamed data set that breaks at given rows, once each, as `datasets` hands them out."""

    def __init__(self, rows: int, breaks: list[int], error: Exception) -> None:
        self.rows, self.breaks, self.error, self.at = rows, list(breaks), error, 0

    def state_dict(self) -> int:
        return self.at

    def load_state_dict(self, state: int) -> None:
        self.at = state

    def __iter__(self) -> Iterator[int]:
        while self.at < self.rows:
            if self.at in self.breaks:
                self.breaks.remove(self.at)
                raise self.error
            self.at += 1
            yield self.at - 1


@pytest.mark.parametrize("breaks", [[], [0], [3, 3, 2500, 2999], [1000, 2000]])
def test_a_broken_stream_goes_on(breaks: list[int]) -> None:
    said: list[str] = []
    pauses: list[float] = []
    stream = Stream(3000, breaks, ConnectionResetError("reset"))
    assert list(unbroken(stream, "hf:x", said.append, pauses.append)) == list(range(3000))
    assert len(said) == len(breaks) == len(pauses)
    if breaks[:2] == [3, 3]:
        assert pauses == [1.0, 2.0, 1.0, 1.0]
        assert said[0] == "hf:x, row 3: broke (ConnectionResetError: reset); trying again in 1 s"


def test_a_stream_that_stays_broken() -> None:
    stream = Stream(9, [5] * 20, TimeoutError("slow"))
    with pytest.raises(ValueError, match=r"hf:x, row 5: broke 9 times in a row, last with Timeout"):
        list(unbroken(stream, "hf:x", quiet, quiet))
    with pytest.raises(KeyError):
        list(unbroken(Stream(9, [5], KeyError("column")), "hf:x", quiet, quiet))


def test_download_goes_on_and_is_read_as_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[dict[str, object]] = []

    def snapshot_download(name: str, **how: object) -> None:
        tries.append({"name": name, **how})
        if len(tries) < 3:
            raise ConnectionError("gone")
        folder = tmp_path / "raw/sample/10BT"
        folder.mkdir(parents=True, exist_ok=True)
        parquet.write_table(
            arrow.table({"text": ["a", "b"], "dump": ["x", "y"]}), folder / "0.parquet"
        )

    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    spec = load_manifest("configs/data/fineweb_edu.py").sources[0]
    local = download(spec, tmp_path / "raw", quiet, quiet)
    assert len(tries) == 3
    assert tries[0]["name"] == "HuggingFaceFW/fineweb-edu"
    assert tries[0]["allow_patterns"] == "sample/10BT/*.parquet"
    assert [r.text for r in records(local, Problems(local), quiet)] == ["a", "b"]
    with pytest.raises(ValueError, match="has no such files"):
        download(replace(spec, data_files="x/*.parquet"), tmp_path / "raw", quiet, quiet)
    with pytest.raises(ValueError, match="wants a data set of the Hub"):
        download(SourceSpec(dataset="folder"), tmp_path, quiet, quiet)
