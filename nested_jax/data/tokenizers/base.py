"""What every tokenizer is: lossless on every UTF-8 text, known by its hash, exact about bytes."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
PIECE_CHARS = 2_000  # of a text that are encoded at once
MAX_CHARS = 200_000  # at most: encoding takes some 100 bytes of memory per character
CONTROL = ("<pad>", "<unk>", "<s>", "</s>")  # by id


class Tokenizer(Protocol):
    """Text to token ids and back; ``decode(encode(text)) == text`` for every text."""

    kind: str  # as in DataConfig.tokenizer
    pad_id, unk_id, bos_id, eos_id = PAD_ID, UNK_ID, BOS_ID, EOS_ID
    model: bytes  # of ``tokenizer.model``
    hash: str  # of the model
    vocab_size: int
    lacking: frozenset[int] = frozenset()  # bytes of UTF-8 that have no token

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without BOS or EOS."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of every text."""
        ...

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return what `encode_batch` does, as int32 [tokens] each."""
        return [np.asarray(ids, np.int32) for ids in self.encode_batch(texts)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of `ids`; control tokens (pad, bos, eos) decode to nothing."""
        ...

    def piece(self, token: int) -> str:
        """Return the surface form of one token, as SentencePiece writes it."""
        ...

    def id_of(self, piece: str) -> int:
        """Return the id of a piece, `unk_id` where the vocabulary lacks it."""
        ...

    def bytes_of(self, token: int) -> bytes:
        """Return the UTF-8 bytes that a token stands for; none for control tokens."""
        ...

    @functools.cached_property
    def never_written(self) -> tuple[int, ...]:
        """The control tokens but for the end of a text: padding, the beginning of a text."""
        silent = np.flatnonzero(self.piece_byte_lengths == 0).tolist()
        return tuple(token for token in silent if token != self.eos_id)

    @functools.cached_property
    def piece_byte_lengths(self) -> np.ndarray:
        """int64 [vocab_size]: UTF-8 bytes that a token stands for, 0 for control tokens."""
        return np.array([len(self.bytes_of(t)) for t in range(self.vocab_size)], np.int64)

    @functools.cached_property
    def piece_char_lengths(self) -> np.ndarray:
        """int64 [vocab_size]: characters that begin in a token, 0 for control tokens."""
        count = (sum(b & 0xC0 != 0x80 for b in self.bytes_of(t)) for t in range(self.vocab_size))
        return np.fromiter(count, np.int64)


def split_text(
    text: str, boundary: re.Pattern[str], target: int = PIECE_CHARS, limit: int = MAX_CHARS
) -> Iterator[str]:
    """Cut a text at places of `boundary`, where no token can cross.

    Pieces have about `target` characters, which encodes 1.5 times as fast as a whole document. A
    run of `limit` characters without such a place is cut all the same.
    """
    start = 0
    while len(text) - start > target:
        cut = boundary.search(text, start + target, start + limit)
        end = cut.start() if cut else min(start + limit, len(text))
        yield text[start:end]
        start = end
    if start < len(text) or not text:
        yield text[start:]
