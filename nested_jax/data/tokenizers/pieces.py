"""SentencePiece, lossless on every UTF-8 text.

BPE with byte fallback and identity normalization (Kudo and Richardson, 2018). Two things that
SentencePiece does not promise by itself are added: U+2581, its stand-in for the space, survives a
round trip, and the bytes that a token stands for are known, so that bits per byte are exact.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import sentencepiece as spm

from nested_jax.data.tokenizers.base import (
    BOS_ID,
    CONTROL,
    EOS_ID,
    PAD_ID,
    UNK_ID,
    Tokenizer,
    split_text,
)
from nested_jax.data.tokenizers.byte_bpe import train_byte_bpe
from nested_jax.errors import require

SPACE = "\u2581"  # SentencePiece writes a space as this character
MODEL_TYPES = ("bpe", "unigram", "gpt2")
MIN_VOCAB = 4 + 256 + 11  # control pieces, bytes, required characters
MAX_VOCAB = 1 << 20
LINE_BYTES = 16_384  # longest training sentence; SentencePiece drops what is longer
BOUNDARY = re.compile(r"(?<=\n)|(?<=[^ ])(?= )")  # pieces begin with a space or hold none


class SentencePiece(Tokenizer):
    """A trained SentencePiece model; ``decode(encode(text)) == text`` for every text.

    Args:
      model: the serialized model, the bytes of ``tokenizer.model``.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        self.model = model
        self.hash = hashlib.sha256(model).hexdigest()
        self._processor = spm.SentencePieceProcessor(model_proto=model)
        self.vocab_size: int = self._processor.vocab_size()
        special = (
            self._processor.pad_id(),
            self._processor.unk_id(),
            self._processor.bos_id(),
            self._processor.eos_id(),
        )
        require(
            special == (PAD_ID, UNK_ID, BOS_ID, EOS_ID),
            "tokenizer special ids (pad, unk, bos, eos)",
            special,
            f"wants {(PAD_ID, UNK_ID, BOS_ID, EOS_ID)}; train it with nested_jax.data tokenizer",
        )
        self._space_ids = [self._processor.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]
        require(
            all(self._processor.is_byte(i) for i in self._space_ids),
            "tokenizer",
            self.hash[:12],
            "has no byte pieces; train it with byte fallback",
        )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of every text."""
        pieces: list[str] = []
        owners: list[int] = []
        for owner, text in enumerate(texts):
            for piece in split_text(text, BOUNDARY):
                pieces.append(piece)
                owners.append(owner)
        ids: list[list[int]] = [[] for _ in texts]
        for owner, encoded in zip(owners, self._encode_pieces(pieces), strict=True):
            ids[owner].extend(encoded)
        return ids

    def _encode_pieces(self, pieces: list[str]) -> list[list[int]]:
        if not any(SPACE in piece for piece in pieces):
            return self._processor.encode(pieces)
        return [self._encode_literal(piece) for piece in pieces]

    def _encode_literal(self, piece: str) -> list[int]:
        first, *rest = [self._processor.encode(part) for part in piece.split(SPACE)]
        for part in rest:
            first += self._space_ids + part
        return first

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of `ids`; control tokens (pad, bos, eos) decode to nothing."""
        return self._processor.decode([int(i) for i in ids])

    def piece(self, token: int) -> str:
        """Return the surface form of one token, as SentencePiece writes it."""
        return self._processor.id_to_piece(token)

    def id_of(self, piece: str) -> int:
        """Return the id of a piece, `unk_id` where the vocabulary lacks it."""
        return self._processor.piece_to_id(piece)

    def bytes_of(self, token: int) -> bytes:
        """Return the UTF-8 bytes that a token stands for; none for control tokens."""
        if self._processor.is_byte(token):
            return bytes([int(self.piece(token)[1:-1], 16)])
        if self._processor.is_control(token) or self._processor.is_unknown(token):
            return b""
        return self.piece(token).replace(SPACE, " ").encode()


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    symbols: Sequence[str] = (),
    character_coverage: float = 0.9995,
    model_type: str = "bpe",
    hard_vocab_limit: bool = True,
    max_bytes: int = 64 << 20,
) -> Tokenizer:
    """Train a SentencePiece model, or a byte-level BPE, on `texts`, deterministically.

    Args:
      texts: documents in a fixed order; reading stops after `max_bytes` of them.
      symbols: user-defined symbols; each is always one token.
      character_coverage: share of the characters that get their own piece; the rest are bytes.
      model_type: bpe or unigram of SentencePiece, or gpt2: byte-level BPE.
      hard_vocab_limit: False lets a text that is too small have a smaller vocabulary.
      max_bytes: UTF-8 bytes of text that are read at most (training holds them in memory).
    Raises:
      ValueError: a vocabulary too small to hold the bytes, or too large for the text.
    """
    require(model_type in MODEL_TYPES, "model_type", model_type, f"wants one of {MODEL_TYPES}")
    if model_type == "gpt2":
        trained = train_byte_bpe(texts, vocab_size, symbols=symbols, max_bytes=max_bytes)
        whole = trained.vocab_size == vocab_size or not hard_vocab_limit
        require(whole, "vocab_size", vocab_size, f"the text is enough for {trained.vocab_size}")
        return trained
    check_symbols(vocab_size, symbols)
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=training_lines(texts, max_bytes),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            hard_vocab_limit=hard_vocab_limit,
            byte_fallback=True,
            character_coverage=character_coverage,
            required_chars="0123456789",
            split_digits=True,
            user_defined_symbols=list(symbols),
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=False,
            max_sentence_length=LINE_BYTES,
            num_threads=2,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"vocab_size={vocab_size}: SentencePiece cannot train it on this text; give more text "
            f"or a smaller vocabulary ({error})"
        ) from error
    return SentencePiece(model.getvalue())


def check_symbols(vocab_size: int, symbols: Sequence[str]) -> None:
    """Raise unless a vocabulary of that size can hold the user-defined symbols."""
    floor = MIN_VOCAB + len(symbols)
    require(vocab_size >= floor, "vocab_size", vocab_size, f"wants at least {floor} symbols")
    require(vocab_size <= MAX_VOCAB, "vocab_size", vocab_size, f"wants at most {MAX_VOCAB} symbols")
    reserved = [symbol for symbol in symbols if symbol in CONTROL]
    require(not reserved, "symbols", reserved, "are control tokens of every tokenizer")
    spaced = [symbol for symbol in symbols if not symbol or symbol.split() != [symbol]]
    require(not spaced, "symbols", spaced, "wants symbols without white space")


def training_lines(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """Yield the lines that SentencePiece learns from, at most `max_bytes` of them.

    Lines it would drop (NUL, its stand-in for a space, blank ones) are left out, long ones cut.
    No token crosses a line end, which is why `split_text` may cut there.
    """
    left = max_bytes
    step = LINE_BYTES // 4  # a character has at most 4 bytes
    for text in texts:
        for line in text.split("\n"):
            if left <= 0:
                return
            if not line.strip() or "\0" in line or SPACE in line:
                continue
            for start in range(0, len(line), step):
                yield line[start : start + step]
            left -= len(line.encode())
