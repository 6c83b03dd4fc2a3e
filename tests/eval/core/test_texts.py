"""Texts by name and by place: every form gives the documents that are there, and no others."""

from __future__ import annotations

import gzip
import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from small_root import write_root
from tiny import synthetic_text, tiny_config, write_data

from eval.core.datasets import DataRoot, changed_files, files_read
from eval.core.texts import TEXT_FLAGS, labelled, open_segments
from eval.core.texts import Reading as How
from nested_jax.data.manifest import Manifest, SourceSpec
from nested_jax.data.mixture import write_mixture
from nested_jax.files import file_sha256

DOCS = [f"document {i}\nof {i} lines\n" for i in range(40)]


def flags(**given: Any) -> Namespace:
    names = {each.name.strip("-").replace("-", "_"): each.default for each in TEXT_FLAGS}
    return Namespace(**{**names, **given})


def texts(segments: str, split: str, root: Path | None = None, cfg: Any = None, **more: Any) -> Any:
    found = open_segments(flags(segments=segments, **more), DataRoot(root), cfg, (split,))
    return {one.name: [text for _, text in one.read(split)] for one in found}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One corpus in every form."""
    folder = tmp_path_factory.mktemp("texts")
    for split, part in (("train", DOCS[:30]), ("test", DOCS[30:])):
        (folder / "plain" / split).mkdir(parents=True)
        for i, text in enumerate(part):
            (folder / "plain" / split / f"{i:02d}.txt").write_text(text)
    rows = [{"body": t, "split": "train" if i < 30 else "test"} for i, t in enumerate(DOCS)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    write_data(folder / "shards")
    spec = SourceSpec(name="mixed", dataset="x")
    write_mixture(Manifest("m", (spec,)), {"mixed": folder / "shards"}, folder / "mixture.json")
    entries = [
        {"name": "a", "path": "plain"},
        {"name": "b", "path": "rows.jsonl.gz", "text_key": "body"},
    ]
    (folder / "list.yaml").write_text(json.dumps({"segments": entries}))  # JSON is YAML
    (folder / "map.json").write_text(json.dumps({"segments": {"x": "plain", "y": "shards"}}))
    (folder / "alone.txt").write_text("".join(f"line {i}\n" for i in range(200)))
    return folder


def test_every_form_gives_the_same_documents(place: Path) -> None:
    for split, want in (("test", DOCS[30:]), ("train", DOCS[:30]), ("all", DOCS)):
        assert sorted(texts(f"{place}/plain", split)["plain"]) == sorted(want)
        assert texts(f"{place}/rows.jsonl.gz", split, text_key="body") == {"rows": want}
        found = texts(f"{place}/list.yaml", split)
        assert (sorted(found["a"]), found["b"]) == (sorted(want), want)
    by_line = texts(f"mine={place}/plain", "test", unit="line")["mine"]
    assert sorted(by_line) == sorted(
        line for text in DOCS[30:] for line in text.split("\n") if line
    )


def test_shards_and_mixtures_decode_to_their_text(place: Path) -> None:
    want = [synthetic_text(i) for i in range(60)]
    assert texts(f"{place}/shards", "valid") == {"shards": want[50:]}
    assert texts(f"{place}/mixture.json", "all") == {"mixed": want}
    assert texts(f"{place}/mixture.json:mixed", "train") == {"mixed": want[:50]}
    found = texts(f"{place}/map.json", "all")
    assert (len(found["x"]), found["y"]) == (40, want)
    cfg = tiny_config(place / "shards")
    assert texts("run", "valid", cfg=cfg) == {"code": want[50:]}
    assert texts("run:code", "valid", cfg=cfg) == {"code": want[50:]}


def test_what_was_read_is_known_by_its_hash(place: Path) -> None:
    """Of shards it is the index, which has the hashes of its files; a mixture has those of each."""
    for where in ("shards", "mixture.json"):
        with files_read() as read:
            texts(f"{place}/{where}", "all")
        index = str(place / "shards" / "index.json")
        assert read[index] == file_sha256(Path(index))
        assert changed_files(read) == []
        assert changed_files(read | {index: "0" * 64, "none": ""}) == [index, "none"]


def test_a_lone_file_is_cut_and_the_hash_of_contents_decides_elsewhere(place: Path) -> None:
    whole = (place / "alone.txt").read_text()
    parts = [texts(f"{place}/alone.txt", split)["alone"] for split in ("train", "valid", "test")]
    assert "".join(text for part in parts for text in part) == whole
    assert texts(f"{place}/alone.txt", "all")["alone"] == [whole]
    folder = place / "plain" / "train"
    more = {s: texts(f"{folder}", s, held_out=0.2)["train"] for s in ("train", "valid", "test")}
    assert sorted(t for part in more.values() for t in part) == sorted(DOCS[:30])
    assert min(map(len, more.values())) > 0


def test_corpora_come_from_the_data_root(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root")
    found = texts("all", "test", root)
    assert list(found)[:2] == ["wikitext2", "encyclopedic_wikipedia"]
    assert len(found) == 7
    assert texts("code,code", "test", root) == {"code": found["code"]}


def test_labelled_rows_are_read_with_their_splits(tmp_path: Path) -> None:
    rows = [
        {"q": f"ask {i}", "label": "ab"[i % 2], "split": "test" if i > 6 else "dev"}
        for i in range(9)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(labelled(f"{tmp_path}/mine.jsonl", How("q"), "label", "test"))
    assert found == [("ask 7", "b"), ("ask 8", "a")]


BAD = [
    ("poems", {}, "--segments='poems': wants all, or some of wikitext2"),
    ("", {}, "--segments='': wants all"),
    ("run", {}, "--segments='run': wants all"),
    ("PLACE/nosuch", {}, "wants all, or some of"),
    ("PLACE/empty.txt", {}, "empty.txt': no text in 1 file(s)"),
    ("PLACE/odd.jsonl", {}, "text_column='text' is not there; the record has columns body"),
    ("PLACE/odd.jsonl", {"text_key": "body"}, "odd.jsonl:2: 'body' is int, wants a string"),
    ("PLACE/split.jsonl", {}, "split.jsonl:1: split='later': wants a name of train, valid, test"),
    (
        "PLACE/plain/train",
        {"held_out": 0.0},
        "has no document of the split test; wants files, folders or rows",
    ),
    ("PLACE/shards", {}, "has no document of the split test"),
    ("PLACE/plain,PLACE/plain", {}, "two are called ['plain']; wants NAME=PLACE"),
    ("PLACE/bad.yaml", {}, "bad.yaml: is not YAML"),
    ("PLACE/key.yaml", {}, "key.yaml: segments[0].pth='x': known: name, path"),
    ("PLACE/none.yaml", {}, "segments[0]={'name': 'a', 'path': 'nosuch'}: no text at"),
    ("PLACE/mixture.json:code", {}, "wants all, or some of"),
    ("PLACE/plain", {"held_out": 0.5}, "--held-out=0.5: wants a share below 0.5"),
    ("stdlib:poems", {}, "--segments='stdlib:poems': has"),
]


@pytest.mark.parametrize(("segments", "more", "want"), BAD)
def test_what_cannot_be_is_named(
    segments: str, more: dict[str, Any], want: str, place: Path, tmp_path: Path
) -> None:
    (place / "empty.txt").write_text("\n")
    (place / "odd.jsonl").write_text('{"body": "a"}\n{"body": 3}\n')
    (place / "split.jsonl").write_text('{"text": "a", "split": "later"}\n')
    (place / "bad.yaml").write_text("segments: [\n")
    (place / "key.yaml").write_text('{"segments": [{"pth": "x"}]}')
    (place / "none.yaml").write_text('{"segments": [{"name": "a", "path": "nosuch"}]}')
    with pytest.raises(ValueError, match=re.escape(want)):
        texts(segments.replace("PLACE", str(place)), "test", **more)
