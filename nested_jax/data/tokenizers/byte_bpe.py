"""Byte-level BPE as GPT-2 has it (Radford et al. 2019): the published vocabulary, or a trained one.

Every text is bytes, and every byte is a token, so that nothing is unknown. (Some vocabularies of
others lack rare bytes: a character that has one is read as U+FFFD.) The file holds two JSON
objects in two lines: which ids end a text and fill a row, and a `tokenizer.json` of Hugging Face.
Encoding and training are those of the library `tokenizers`. Decoding joins the bytes of the tokens,
so that symbols that were added survive it and control tokens do not.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nested_jax.data.tokenizers.base import Tokenizer, split_text
from nested_jax.errors import import_extra, require

MAGIC = b'{"byte_level_bpe":'  # begins the file of such a tokenizer
END = "<|endoftext|>"  # begins and ends a text; the last of GPT-2's own tokens
FILLER = "<|padding_{}|>"  # a control token that fills the vocabulary up; the first one pads rows
BOUNDARY = re.compile(r"(?<=\S)(?= )")  # a word's space begins a piece
BATCH = 500  # pieces that are encoded at once
UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()


def byte_characters() -> list[str]:
    """Return the character that stands for each byte in the files of such a vocabulary.

    Bytes that print stand for themselves; the others for the characters from U+0100 on.
    """
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in prints else next(others)) for byte in range(256)]


CHARACTERS = byte_characters()
BYTES = {character: byte for byte, character in enumerate(CHARACTERS)}
UTF8 = frozenset(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}  # those are in no text
USUAL = frozenset((*range(32, 127), *b"\t\n\r", *UNKNOWN))  # without these no text is read
BYTE_ORDER = sorted(range(256), key=CHARACTERS.__getitem__)  # GPT-2's ids 0 to 255


class ByteBPE(Tokenizer):
    """Text to pieces of bytes; ``decode(encode(text)) == text`` for every text without `lacking`.

    A control token's text in a document, such as ``<|endoftext|>``, stays text.

    Args:
      model: the bytes of ``tokenizer.model``.
    Raises:
      RuntimeError: bytes that are not that.
      ValueError: `tokenizers` is not installed.
    """

    kind = "gpt2"
    unk_id = -1  # there is none

    def __init__(self, model: bytes) -> None:
        try:
            head, body = model.split(b"\n", 1)
            ids, data = json.loads(head)["byte_level_bpe"], json.loads(body)
        except (ValueError, KeyError) as error:
            raise RuntimeError(f"not a byte-level BPE: {error}") from error
        self.lacking = check_bytes(data)
        library = import_library()
        try:
            self._library = library.Tokenizer.from_str(body.decode())
        except Exception as error:  # the library raises nothing more precise
            raise RuntimeError(f"not a byte-level BPE: {error}") from error
        self._library.encode_special_tokens = True
        self.model, self.hash = model, hashlib.sha256(model).hexdigest()
        self.bos_id, self.eos_id, self.pad_id = ids["bos"], ids["eos"], ids["pad"]
        added = {token["id"]: token for token in data["added_tokens"]}
        self.vocab_size = 1 + max([*data["model"]["vocab"].values(), *added])
        for name, token in ids.items():
            want = f"is no id of the tokenizer, which has {self.vocab_size}"
            require(token < self.vocab_size, f"{name}_token_id", token, want)
        self._pieces = [""] * self.vocab_size
        self._bytes = [b""] * self.vocab_size
        for piece, token in data["model"]["vocab"].items():
            self._pieces[token] = piece
            self._bytes[token] = b"" if token in added else bytes(BYTES[c] for c in piece)
        for token, said in added.items():
            self._pieces[token] = said["content"]
            self._bytes[token] = b"" if said["special"] else said["content"].encode()
        self._ids = {piece: token for token, piece in enumerate(self._pieces)}

    @property
    def tokenizer_json(self) -> str:
        """The `tokenizer.json` of Hugging Face."""
        return self.model.split(b"\n", 1)[1].decode()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of every text."""
        ids: list[list[int]] = [[] for _ in texts]
        known = map(self._known, texts)
        owned = ((i, p) for i, text in enumerate(known) for p in split_text(text, BOUNDARY))
        while batch := list(itertools.islice(owned, BATCH)):
            found = self._library.encode_batch_fast([p for _, p in batch], add_special_tokens=False)
            for (owner, _), encoding in zip(batch, found, strict=True):
                ids[owner].extend(encoding.ids)
        return ids

    def _known(self, text: str) -> str:
        """Return the text with U+FFFD for characters whose bytes have no token."""
        if not self.lacking or self.lacking.isdisjoint(text.encode()):
            return text
        unknown = UNKNOWN.decode()
        return "".join(c if self.lacking.isdisjoint(c.encode()) else unknown for c in text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of `ids`; control tokens decode to nothing.

        What the vocabulary lacks (a model may have more symbols) decodes to U+FFFD.
        """
        known = (self._bytes[i] if i < self.vocab_size else UNKNOWN for i in map(int, ids))
        return b"".join(known).decode(errors="replace")

    def piece(self, token: int) -> str:
        """Return the surface form of one token; bytes are characters, a space is U+0120."""
        return self._pieces[token]

    def id_of(self, piece: str) -> int:
        """Return the id of a piece, -1 where the vocabulary lacks it."""
        return self._ids.get(piece, self.unk_id)

    def bytes_of(self, token: int) -> bytes:
        """Return the UTF-8 bytes that a token stands for; none for control tokens."""
        return self._bytes[token]


def import_library() -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # processes share the machine already
    import_extra("tokenizers.models", "data", "for byte-level BPE")
    return importlib.import_module("tokenizers")


def check_bytes(data: Mapping[str, Any]) -> frozenset[int]:
    """Raise unless a `tokenizer.json` is a byte-level BPE that changes no usual text.

    Returns:
      the bytes of UTF-8 that have no token.
    """

    def kinds(name: str) -> set[str]:
        part = data.get(name) or {}
        return {p["type"] for p in part.get("pretokenizers", part.get("decoders", [part])) if p}

    model = data.get("model") or {}
    require(model.get("type") == "BPE", "model.type", model.get("type"), "wants 'BPE'")
    normalizer = (data.get("normalizer") or {}).get("type")
    require(normalizer is None, "normalizer", normalizer, "changes the text; wants none")
    for name in ("pre_tokenizer", "decoder"):
        found = sorted(kinds(name))
        require(
            "ByteLevel" in found, name, found, "wants one with 'ByteLevel': bytes as characters"
        )
    missing = frozenset(byte for byte in UTF8 if CHARACTERS[byte] not in model["vocab"])
    want = "has no token for these bytes; wants all that print, white space, and those of U+FFFD"
    require(not missing & USUAL, "model.vocab", sorted(missing & USUAL)[:4], want)
    added = {token["content"] for token in data.get("added_tokens", [])}
    odd = [p for p in model["vocab"] if p not in added and not BYTES.keys() >= set(p)]
    require(not odd, "model.vocab", odd[:4], "are no bytes as characters")
    return missing


def make_model(
    tokens: Sequence[bytes],
    merges: Iterable[tuple[bytes, bytes]],
    symbols: Sequence[str],
    size: int,
) -> bytes:
    """Return the ``tokenizer.model`` of a vocabulary; the same bytes with every library version.

    Args:
      tokens: by id, the 256 bytes first. The end of a text follows them.
      merges: pairs of tokens, the first one first.
      symbols: ordinary tokens that are added last; each is always one token.
      size: ids before the symbols; control tokens fill up to it. 0 adds none.
    """
    check_added(tokens, symbols, size)
    controls = [END, *(FILLER.format(i) for i in range(size - len(tokens) - 1))]
    special = dict.fromkeys(controls, True) | dict.fromkeys(symbols, False)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    first = len(tokens)
    added = [
        {"id": first + i, "content": name, **flags, "special": is_special}
        for i, (name, is_special) in enumerate(special.items())
    ]
    named = [as_characters(token) for token in tokens]
    vocab = {piece: i for i, piece in enumerate([*named, END])}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False}
    byte_level |= {"trim_offsets": True, "use_regex": True}
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [f"{as_characters(a)} {as_characters(b)}" for a, b in merges],
        },
    }
    pad = first + 1 if len(controls) > 1 else first
    return with_ids(json.dumps(data, ensure_ascii=False), first, first, pad)


def with_ids(tokenizer_json: str, bos: int, eos: int, pad: int) -> bytes:
    """Return the ``tokenizer.model`` of a `tokenizer.json` and the ids that it does not say."""
    ids = json.dumps({"byte_level_bpe": {"bos": bos, "eos": eos, "pad": pad}})
    return f"{ids.replace(': ', ':', 1)}\n{tokenizer_json}".encode()


def check_added(tokens: Sequence[bytes], symbols: Sequence[str], size: int) -> None:
    least = len(tokens) + 1
    require(
        size == 0 or size >= least, "--size", size, f"wants 0, or the {least} ids that there are"
    )
    require(len(set(symbols)) == len(symbols), "symbols", symbols, "wants different ones")
    spaced = [s for s in symbols if not s or s.split() != [s]]
    require(not spaced, "symbols", spaced, "wants symbols without white space")
    control = [s for s in symbols if s == END or s.startswith(FILLER.split("{")[0])]
    require(not control, "symbols", control, "are control tokens")


def as_characters(token: bytes) -> str:
    return "".join(CHARACTERS[byte] for byte in token)


def merges_of(tokens: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the merges of a vocabulary in the order of its ranks: the two parts of each token.

    A token is two of lower rank: what is left of its bytes when only lower merges are made.

    Raises:
      ValueError: a token that is not.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for rank, token in enumerate(tokens[256:], start=256):
        parts = merge([bytes([byte]) for byte in token], ranks, rank)
        want = f"is no pair of tokens before it, but {parts}"
        require(len(parts) == 2, f"token {rank}", token, want)
        yield parts[0], parts[1]


def merge(parts: list[bytes], ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    """Merge the neighbours of lowest rank until none is below `below`: BPE by its definition."""
    while len(parts) > 1:
        pairs = [ranks.get(a + b, below) for a, b in itertools.pairwise(parts)]
        lowest = min(pairs)
        if lowest >= below:
            break
        at = pairs.index(lowest)
        parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]
    return parts


def train_byte_bpe(
    texts: Iterable[str], vocab_size: int, *, symbols: Sequence[str] = (), max_bytes: int = 64 << 20
) -> ByteBPE:
    """Train a byte-level BPE on `texts`, deterministically.

    A text that is too small for the vocabulary gives a smaller one.

    Args:
      vocab_size: at most, symbols and the end of a text included.
      symbols: each is always one token, the last ones of the vocabulary.
      max_bytes: UTF-8 bytes of text that are read at most.
    Raises:
      ValueError: a vocabulary without room for the bytes, `tokenizers` is not installed.
    """
    least = 256 + 1 + len(symbols)
    require(vocab_size >= least, "vocab_size", vocab_size, f"wants at least {least} symbols")
    library = import_library()
    level = library.pre_tokenizers.ByteLevel
    learner = library.Tokenizer(library.models.BPE())
    learner.pre_tokenizer = level(add_prefix_space=False, use_regex=True)
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size - 1 - len(symbols),
        initial_alphabet=level.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(bounded(texts, max_bytes), trainer)
    learned = json.loads(learner.to_str())["model"]
    vocab: dict[str, int] = learned["vocab"]
    tokens = [as_bytes(piece) for piece in sorted(vocab, key=vocab.__getitem__)]
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in learned["merges"])
    merges = [(as_bytes(a), as_bytes(b)) for a, b in pairs]
    return ByteBPE(make_model(tokens, merges, symbols, 0))


def as_bytes(piece: str) -> bytes:
    return bytes(BYTES[character] for character in piece)


def bounded(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    left = max_bytes
    for text in texts:
        if left <= 0:
            return
        yield text
        left -= len(text.encode())
