"""Plain text as data: which file goes into which split, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from nested_jax.config import DataConfig
from nested_jax.data.pipeline import open_data, prepare
from nested_jax.data.shards import TokenStore
from nested_jax.data.text.plain_text import read_texts

LINES = "".join(f"line {i} of a text, with its number {i * i}\n" for i in range(400))


def config(path: Path, cache: Path, **fields: str) -> DataConfig:
    return DataConfig(
        source=str(path), cache_dir=str(cache), vocab_size=512, tokenizer="char", **fields
    )


def write(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text, "utf8")
    return folder


def texts_of(store: TokenStore, split: str) -> str:
    import numpy as np

    ids = [np.fromfile(store.root / s.file, store.dtype) for s in store.select(split)]
    return store.tokenizer.decode(np.concatenate(ids))


def test_files_named_after_splits_compressed_or_not(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", train=LINES, test="tested\r\n")
    (folder / "valid.txt.gz").write_bytes(gzip.compress("only of valid: é\n".encode()))
    store = open_data(config(folder, tmp_path / "cache"))
    for split, want in (("train", LINES), ("valid", "only of valid: é\n"), ("test", "tested\r\n")):
        assert texts_of(store, split) == want
    assert "é" not in store.tokenizer.characters  # the vocabulary is the train split's


def test_folders_named_after_splits(tmp_path: Path) -> None:
    write(tmp_path / "train", a="one\n", b="two\n")
    write(tmp_path / "valid", c="three\n")
    texts = read_texts(tmp_path)
    assert [(t.split, t.text) for t in texts] == [
        ("train", "one\n"),
        ("train", "two\n"),
        ("valid", "three\n"),
    ]


def test_other_files_go_by_their_content(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", **{f"n{i}": f"text {i}\n" for i in range(200)})
    texts = read_texts(folder)
    count = {split: sum(t.split == split for t in texts) for split in ("train", "valid", "test")}
    assert count["train"] > 180
    assert min(count.values()) >= 1
    (folder / "n7.txt").rename(folder / "z.txt")
    assert sorted(read_texts(folder)) == sorted(texts)


def test_one_file_is_cut_at_line_ends(tmp_path: Path) -> None:
    file = write(tmp_path / "a", book=LINES) / "book.txt"
    texts = read_texts(file)
    assert [t.split for t in texts] == ["train", "valid", "test"]
    assert "".join(t.text for t in texts) == LINES
    assert all(t.text.endswith("\n") for t in texts)
    assert 0.88 < len(texts[0].text) / len(LINES) < 0.92


def test_it_is_built_once(tmp_path: Path) -> None:
    folder, said = write(tmp_path / "a", train=LINES, valid=LINES[:500]), []
    cfg = config(folder, tmp_path / "cache")
    info = prepare(cfg, said.append)
    assert any("2 texts" in line for line in said)
    assert info.tokens == {"text": {"train": len(LINES) + 1, "valid": 501, "test": 0}}
    said.clear()
    assert prepare(cfg, said.append).tokenizer_sha256 == info.tokenizer_sha256
    assert not said
    (folder / "valid.txt").write_text(LINES[:600], "utf8")
    assert prepare(cfg, said.append).tokens["text"]["valid"] == 601


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": "a\n", "other": "b\n"}, r"other.txt is not; wants all of them"),
        ({"train": "a\n"}, "no text for the valid split in 1 files"),
        ({"train": "a\n", "valid": " \n"}, "no text for the valid split in 2 files"),
    ],
)
def test_text_that_cannot_be_split(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_data(config(write(tmp_path / "a", **files), tmp_path / "cache"))


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", train="a\n", valid="b\n")
    (folder / "train.txt").write_bytes(b"ok\nsch\xf6n\n")
    with pytest.raises(ValueError, match=r"train.txt:2: is not UTF-8 text"):
        open_data(config(folder, tmp_path / "cache"))


def test_shards_of_another_kind_of_tokenizer(store: TokenStore) -> None:
    with pytest.raises(ValueError, match=r"data.tokenizer='char'.*written with 'sentencepiece'"):
        open_data(DataConfig(source=str(store.root), tokenizer="char"))
