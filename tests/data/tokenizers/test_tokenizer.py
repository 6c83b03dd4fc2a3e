"""The tokenizer: nothing is lost, every byte is counted, training is deterministic."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_data import synthetic_source

from nested_jax.data.tokenizers.base import MAX_CHARS, PIECE_CHARS, split_text
from nested_jax.data.tokenizers.pieces import BOUNDARY, training_lines
from nested_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

HARD = [
    "",
    " ",
    "\n",
    "a\t\tb\n\n  c   \r\n ",
    "\u2581x\u2581\u2581 ",
    "日本 é \U0001f600\0",
    "<s></s><unk><pad> 12345 <0x41>",
    "\u2585\ufffd\u2028\x0b\x0c",
]


def alphabet() -> st.SearchStrategy[str]:
    anything = st.characters(exclude_categories=("Cs",))
    return st.text(st.one_of(anything, st.sampled_from(" \t\n\u2581ab19")), max_size=60)


@given(alphabet())
def test_round_trip_and_byte_count(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.piece_byte_lengths[ids].sum() == len(text.encode())


@pytest.mark.parametrize("text", HARD)
def test_hard_texts_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.piece_byte_lengths[ids].sum() == len(text.encode())


def test_batch_equals_single(tokenizer: Tokenizer) -> None:
    texts = [*HARD, synthetic_source(3)]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_every_digit_is_its_own_token(tokenizer: Tokenizer) -> None:
    often = [f"{synthetic_source(i)} in 1989 of 1989 from 1989\n" for i in range(60)]
    for trained in (tokenizer, train_tokenizer(often, 400)):
        ids = trained.encode("1989")
        assert [trained.piece(i) for i in ids] == ["1", "9", "8", "9"]


def test_digits_that_the_text_lacks_are_pieces_not_bytes() -> None:
    trained = train_tokenizer([synthetic_source(i) for i in range(60)] + ["no digits"], 400)
    without = train_tokenizer(["words and more words to read\n" * 50], 300)
    for each in (trained, without):
        assert [each.piece(i) for i in each.encode("70")] == ["7", "0"]


def test_specials_and_controls_cost_no_bytes(tokenizer: Tokenizer) -> None:
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert not tokenizer.piece_byte_lengths[:4].any()
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode("a b"), tokenizer.eos_id]) == "a b"


@pytest.mark.parametrize("separator", ["\n", " ", "   ", "\n    \t"])
def test_cuts_change_no_token(tokenizer: Tokenizer, separator: str) -> None:
    text = separator.join(synthetic_source(i).replace("\n", separator) for i in range(40))
    pieces = list(split_text(text, BOUNDARY))
    assert "".join(pieces) == text
    assert len(pieces) > 5
    assert max(map(len, pieces)) < PIECE_CHARS + 100
    assert tokenizer.encode(text) == tokenizer._processor.encode(text)


@given(st.text(alphabet="ab \n", max_size=60), st.integers(1, 9), st.integers(0, 5))
def test_split_text_loses_nothing_and_keeps_tokens(
    tokenizer: Tokenizer, text: str, target: int, more: int
) -> None:
    pieces = list(split_text(text, BOUNDARY, target, target + more))
    assert "".join(pieces) == text
    assert all(len(piece) <= target + more for piece in pieces)
    free = list(split_text(text, BOUNDARY, target))
    joined = [i for piece in free for i in tokenizer._processor.encode(piece)]
    assert joined == tokenizer._processor.encode(text)


def test_a_giant_word_is_cut(tokenizer: Tokenizer) -> None:
    text = "ab" * MAX_CHARS
    assert [len(piece) for piece in split_text(text, BOUNDARY)] == [MAX_CHARS, MAX_CHARS]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_training_is_deterministic_and_symbols_are_single_tokens() -> None:
    texts = [synthetic_source(i) for i in range(50)]
    first = train_tokenizer(texts, 400, symbols=["<mul_7_8>"])
    assert first.hash == train_tokenizer(texts, 400, symbols=["<mul_7_8>"]).hash
    ids = first.encode("a <mul_7_8>b")
    assert first.id_of("<mul_7_8>") in ids
    assert first.decode(ids) == "a <mul_7_8>b"
    assert first.piece_byte_lengths[first.id_of("<mul_7_8>")] == len("<mul_7_8>")


def test_training_text_is_bounded() -> None:
    lines = list(training_lines(["x" * 99 + "\n"] * 50 + ["\0\n", "\n"], max_bytes=1000))
    assert 1000 <= sum(map(len, lines)) <= 1100


def test_training_lines_are_cut_not_dropped() -> None:
    text = "é" * 30_000
    assert "".join(training_lines([text], max_bytes=1 << 20)) == text


@pytest.mark.parametrize(
    ("vocab_size", "texts", "message"),
    [(100, ["abc"], "at least 271"), (30_000, ["abc def"], "smaller vocabulary")],
)
def test_impossible_vocabulary(vocab_size: int, texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts, vocab_size)


def test_symbols_without_white_space() -> None:
    with pytest.raises(ValueError, match="without white space"):
        train_tokenizer([synthetic_source(0)], 400, symbols=["a b"])


def test_load(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)
    assert load_tokenizer(tmp_path).hash == tokenizer.hash
    assert load_tokenizer(tmp_path / "tokenizer.model").vocab_size == 400
    with pytest.raises(ValueError, match="no such file"):
        load_tokenizer(tmp_path / "absent.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path / "bad.model")
