"""A vocabulary of characters, built from a text: every token is one character.

Characters that did not get a token are written as their UTF-8 bytes, so that any text survives a
round trip. Ids: 0 to 3 are control tokens, then the 256 bytes, then the characters, the most
frequent first.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from nested_jax.data.tokenizers.base import CONTROL, EOS_ID, Tokenizer
from nested_jax.errors import require

MAGIC = b'{"characters":'  # begins the file of such a tokenizer
FIRST_BYTE = EOS_ID + 1
FIRST_CHARACTER = FIRST_BYTE + 256
UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()


class CharTokenizer(Tokenizer):
    """Text to characters; ``decode(encode(text)) == text`` for every text.

    Args:
      model: the bytes of ``tokenizer.model``, JSON with the characters as one string.
    Raises:
      RuntimeError: bytes that are not that.
    """

    kind = "char"

    def __init__(self, model: bytes) -> None:
        try:
            characters = json.loads(model)["characters"]
        except (ValueError, KeyError) as error:
            raise RuntimeError(f"not the JSON of a vocabulary of characters: {error}") from error
        if not isinstance(characters, str) or len(set(characters)) < len(characters):
            raise RuntimeError("the characters are not a string of different characters")
        if any(0xD800 <= ord(character) < 0xE000 for character in characters):
            raise RuntimeError("a character is a lone surrogate, which UTF-8 lacks")
        self.model = model
        self.hash = hashlib.sha256(model).hexdigest()
        self.characters = characters
        self.vocab_size = FIRST_CHARACTER + len(characters)
        self._bytes = [b""] * FIRST_BYTE + [bytes([b]) for b in range(256)]
        self._bytes += [character.encode() for character in characters]
        self._ids = {character: FIRST_CHARACTER + i for i, character in enumerate(characters)}

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of every text."""
        return [self._encode(text).tolist() for text in texts]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return what `encode_batch` does, as int32 [tokens] each."""
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = self._table[points]
        unknown = np.flatnonzero(ids < 0)
        if not len(unknown):
            return ids
        parts: list[np.ndarray] = []
        done = 0
        for place in unknown.tolist():
            fallback = FIRST_BYTE + np.frombuffer(text[place].encode(), np.uint8).astype(np.int32)
            parts += [ids[done:place], fallback]
            done = place + 1
        return np.concatenate([*parts, ids[done:]])

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """int32 [code points]: the token of every character, -1 without one."""
        table = np.full(0x110000, -1, np.int32)
        table[[ord(character) for character in self.characters]] = np.arange(
            FIRST_CHARACTER, self.vocab_size
        )
        return table

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of `ids`; control tokens decode to nothing.

        What the vocabulary lacks (a model may have more symbols) decodes to U+FFFD.
        """
        known = (self._bytes[i] if i < self.vocab_size else UNKNOWN for i in map(int, ids))
        return b"".join(known).decode(errors="replace")

    def piece(self, token: int) -> str:
        """Return the surface form of one token; of a byte as SentencePiece writes it."""
        if token < FIRST_BYTE:
            return CONTROL[token]
        if token < FIRST_CHARACTER:
            return f"<0x{token - FIRST_BYTE:02X}>"
        return self.characters[token - FIRST_CHARACTER]

    def id_of(self, piece: str) -> int:
        """Return the id of a character, `unk_id` where the vocabulary lacks it."""
        return self._ids.get(piece, self.unk_id)

    def bytes_of(self, token: int) -> bytes:
        """Return the UTF-8 bytes that a token stands for; none for control tokens."""
        return self._bytes[token]


def build_characters(texts: Iterable[str], vocab_size: int) -> CharTokenizer:
    """Return the vocabulary of the most frequent characters of `texts`, deterministically.

    Args:
      vocab_size: symbols at most, control tokens and bytes included.
    Raises:
      ValueError: a vocabulary without room for a character.
    """
    least = FIRST_CHARACTER + 1
    require(vocab_size >= least, "data.vocab_size", vocab_size, f"wants at least {least} symbols")
    counts = Counter(itertools.chain.from_iterable(texts))
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    characters = "".join(ranked[: vocab_size - FIRST_CHARACTER])
    return CharTokenizer(json.dumps({"characters": characters}).encode())
