"""The text that the byte-trigram baseline reads: no more than its room, no less either."""

from __future__ import annotations

from pathlib import Path

import pytest

from nested_jax.config import DataConfig
from nested_jax.data.pipeline import open_data
from nested_jax.train import heldout

DOCUMENTS = [f"document {i}: {'word ' * i}é\n" for i in range(1, 9)]


def text_read(folder: Path, texts: list[str]) -> bytes:
    """Return what is read of a train split with these documents, in the order of their names."""
    (folder / "train").mkdir(parents=True)
    for i, text in enumerate(texts):
        (folder / "train" / f"{i}.txt").write_text(text, "utf8")
    (folder / "valid.txt").write_text("held out\n")
    cfg = DataConfig(
        source=str(folder), cache_dir=str(folder.parent / "cache"), vocab_size=512, tokenizer="char"
    )
    return heldout.split_text(open_data(cfg), "train", ())


def test_a_text_that_fits_is_read_whole(tmp_path: Path) -> None:
    assert text_read(tmp_path / "text", DOCUMENTS) == "".join(DOCUMENTS).encode()


@pytest.mark.parametrize("room", [1, 20, 21, 22, 23, 100])
def test_the_document_that_does_not_fit_is_cut(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the first one: one long file is one document. The second ends in a letter of 2 bytes."""
    monkeypatch.setattr(heldout, "TRIGRAM_BYTES", room)
    whole = "".join(DOCUMENTS).encode()
    got = text_read(tmp_path / "text", DOCUMENTS)
    assert whole.startswith(got)
    assert room - 2 * len(DOCUMENTS) <= len(got) <= room  # the separators take room too
    assert text_read(tmp_path / "one", ["".join(DOCUMENTS)]) == whole[:room]


def test_a_run_on_one_long_document_ends_with_its_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended with "len(train)=0" after all of its steps."""
    monkeypatch.setattr(heldout, "TRIGRAM_BYTES", 400)
    (tmp_path / "train.txt").write_text("a b c d e f g h " * 100)
    (tmp_path / "valid.txt").write_text("a b c d e f g h " * 10)
    cfg = DataConfig(
        source=str(tmp_path), cache_dir=str(tmp_path / "cache"), vocab_size=512, tokenizer="char"
    )
    assert 0.0 < heldout.trigram_baseline(cfg) < 1.0
