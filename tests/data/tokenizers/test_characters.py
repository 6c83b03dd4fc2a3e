"""The vocabulary of characters: lossless on every text, exact about bytes and characters."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nested_jax.data.tokenizers.characters import (
    FIRST_CHARACTER,
    MAGIC,
    CharTokenizer,
    build_characters,
)
from nested_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer

TEXTS = ["the cat sat on the mat\n", "dümmer als 字\n"]
CHARACTERS = build_characters(TEXTS, 512)


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=40))
def test_every_text_survives_and_its_bytes_and_characters_are_counted(text: str) -> None:
    ids = CHARACTERS.encode(text)
    assert CHARACTERS.decode(ids) == text
    assert CHARACTERS.piece_byte_lengths[ids].sum() == len(text.encode())
    assert CHARACTERS.piece_char_lengths[ids].sum() == len(text)


def test_a_known_character_is_one_token_and_another_its_bytes() -> None:
    assert [CHARACTERS.piece(i) for i in CHARACTERS.encode("cü字")] == ["c", "ü", "字"]
    assert [CHARACTERS.piece(i) for i in CHARACTERS.encode("aéa")] == ["a", "<0xC3>", "<0xA9>", "a"]
    assert CHARACTERS.id_of("c") == CHARACTERS.encode("c")[0]
    assert CHARACTERS.id_of("é") == CHARACTERS.unk_id
    assert CHARACTERS.decode([2, *CHARACTERS.encode("a b"), 3]) == "a b"
    assert not CHARACTERS.piece_byte_lengths[:4].any()


def test_the_most_frequent_characters_get_the_room() -> None:
    few = build_characters(["aaabbbccd"], FIRST_CHARACTER + 2)
    assert few.characters == "ab"
    assert few.decode(few.encode("abcd")) == "abcd"
    assert few.vocab_size == FIRST_CHARACTER + 2
    assert build_characters(["aaabbbccd"], 512).characters == "abcd"


def test_arrays_are_the_lists() -> None:
    arrays = CHARACTERS.encode_arrays([*TEXTS, ""])
    assert [a.tolist() for a in arrays] == CHARACTERS.encode_batch([*TEXTS, ""])


def test_sentencepiece_counts_characters_too(tokenizer: Tokenizer) -> None:
    text = "value = [1, 2]  # 字\n"
    ids = tokenizer.encode(text)
    assert tokenizer.piece_char_lengths[ids].sum() == len(text)
    assert tokenizer.piece_byte_lengths[ids].sum() == len(text.encode())


def test_it_is_loaded_by_what_its_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(CHARACTERS.model)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, CharTokenizer)
    assert loaded.hash == CHARACTERS.hash == build_characters(TEXTS, 512).hash
    for damaged in (CHARACTERS.model[:-3], MAGIC + b' "aa"}', MAGIC + b" 3}"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"tokenizer\.model': not a"):
            load_tokenizer(path)


def test_a_vocabulary_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.vocab_size=260: wants at least 261 symbols"):
        build_characters(TEXTS, FIRST_CHARACTER)
