"""The tokenizer of a run as the files that `AutoTokenizer` reads, and back.

`tokenizer.json` gives the ids of ours for every text, with two exceptions that are Hugging Face's
custom: the text of a control token is that token there, and SentencePiece's stand-in for the space,
U+2581, is a space.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nested_jax.data.tokenizers.base import Tokenizer
from nested_jax.data.tokenizers.byte_bpe import END, ByteBPE, as_bytes, make_model, with_ids
from nested_jax.data.tokenizers.pieces import SPACE, SentencePiece
from nested_jax.data.tokenizers.tokenizer import load_tokenizer
from nested_jax.errors import require
from nested_jax.files import write_json
from nested_jax.train.workdir import TOKENIZER

JSON, SETTINGS = "tokenizer.json", "tokenizer_config.json"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # types of a piece
UNIGRAM = 1


def write_tokenizer(folder: Path, tokenizer: Tokenizer, max_len: int) -> bool:
    """Write what `AutoTokenizer` reads; return whether the tokenizer has such a form.

    A vocabulary of characters has none.
    """
    if isinstance(tokenizer, ByteBPE):
        data = json.loads(tokenizer.tokenizer_json)
    elif isinstance(tokenizer, SentencePiece):
        data = sentencepiece_json(tokenizer)
    else:
        return False
    text = json.dumps(data, ensure_ascii=False)
    (folder / JSON).write_text(text, encoding="utf-8")
    names = {
        f"{name}_token": tokenizer.piece(getattr(tokenizer, f"{name}_id"))
        for name in ("bos", "eos", "pad", "unk")
        if getattr(tokenizer, f"{name}_id") >= 0
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "model_max_length": max_len,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    write_json(folder / SETTINGS, settings)
    return True


def token_ids(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Return what `generation_config.json` says: how a text ends, and what is never written.

    The latter are control tokens but for the end, and the model's ids that stand for nothing.
    """
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_id") for n in ("bos", "eos", "pad")}
    never = [*tokenizer.never_written, *range(tokenizer.vocab_size, vocab_size)]
    return {**ids, "suppress_tokens": never} if never else ids


# --- reading -------------------------------------------------------------------------------------


def read_tokenizer(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer of a folder of Hugging Face, or of one that `export` wrote.

    Args:
      config: its `config.json`, with the generation's ids where that lacks them.
    Raises:
      ValueError: there is none, or one that changes the text that it reads.
    """
    if (folder / TOKENIZER).is_file():
        return load_tokenizer(folder)
    if (folder / JSON).is_file():
        data = json.loads((folder / JSON).read_text("utf-8"))
        vocab = {**data.get("model", {}).get("vocab", {})}
        vocab |= {token["content"]: token["id"] for token in data.get("added_tokens", [])}
        eos = _one(config.get("eos_token_id"), vocab.get(END))
        require(eos is not None, "eos_token_id", None, "config.json does not say how a text ends")
        bos = _one(config.get("bos_token_id"), eos)
        pad = _one(config.get("pad_token_id"), eos)
        model = with_ids(_without_nfc(data, (folder / JSON).read_text("utf-8")), bos, eos, pad)
        try:
            return ByteBPE(model)
        except (RuntimeError, ValueError) as error:
            want = f"wants a byte-level BPE that gives every text back, or our {TOKENIZER}"
            raise ValueError(f"tokenizer={str(folder / JSON)!r}: {error}; {want}") from error
    files = folder / "vocab.json", folder / "merges.txt"
    want = f"has no tokenizer: wants {TOKENIZER}, {JSON}, or vocab.json and merges.txt alone"
    alone = all(file.is_file() for file in files) and not (folder / "added_tokens.json").exists()
    require(alone, "folder", str(folder), want)
    return _from_pairs(*files)


def _without_nfc(data: dict[str, Any], text: str) -> str:
    """Leave out the normal form C of Qwen2: text that has it gets the same ids, other text its own.

    With it, other text would not be given back.
    """
    if (data.get("normalizer") or {}).get("type") != "NFC":
        return text
    return json.dumps({**data, "normalizer": None}, ensure_ascii=False)


def _one(value: Any, otherwise: Any) -> Any:
    """Return an id; some folders have a list of ends, of which the first is the usual one."""
    value = value[0] if isinstance(value, list) and value else value
    return otherwise if value is None else value


def _from_pairs(vocab_file: Path, merges_file: Path) -> ByteBPE:
    vocab: dict[str, int] = json.loads(vocab_file.read_text("utf-8"))
    end = vocab.pop(END, None)
    require(end == len(vocab), END, end, f"wants the last id of vocab.json, {len(vocab)}")
    lines = [line for line in merges_file.read_text("utf-8").split("\n")[1:] if line]
    merges = [(as_bytes(a), as_bytes(b)) for a, b in (line.split(" ") for line in lines)]
    tokens = [as_bytes(piece) for piece in sorted(vocab, key=vocab.__getitem__)]
    return ByteBPE(make_model(tokens, merges, (), 0))


# --- SentencePiece -------------------------------------------------------------------------------


class Piece(NamedTuple):
    text: str
    score: float
    type: int


def sentencepiece_json(tokenizer: SentencePiece) -> dict[str, Any]:
    """Return the `tokenizer.json` of a SentencePiece model of ours, BPE or unigram."""
    pieces, kind = read_pieces(tokenizer.model)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": i, "content": p.text, **flags, "special": p.type != USER_DEFINED}
        for i, p in enumerate(pieces)
        if p.type in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    if kind == UNIGRAM:
        model: dict[str, Any] = {"type": "Unigram", "unk_id": tokenizer.unk_id}
        model |= {"vocab": [[p.text, p.score] for p in pieces], "byte_fallback": True}
    else:
        vocab = {p.text: i for i, p in enumerate(pieces)}
        model = {
            "type": "BPE",
            "dropout": None,
            "unk_token": tokenizer.piece(tokenizer.unk_id),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [f"{a} {b}" for a, b in _merges(pieces)],
        }
    back = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [*back, {"type": "ByteFallback"}, {"type": "Fuse"}],
        },
        "model": model,
    }


def _merges(pieces: list[Piece]) -> Iterator[tuple[str, str]]:
    """Yield the pairs that make a piece, in the order in which SentencePiece merges them."""
    score = {p.text: p.score for p in pieces if p.type == NORMAL}
    place = {p.text: i for i, p in enumerate(pieces)}
    for text in sorted(score, key=lambda t: (-score[t], place[t])):
        cuts = ((text[:i], text[i:]) for i in range(1, len(text)))
        fits = [(a, b) for a, b in cuts if a in score and b in score]
        yield from sorted(fits, key=lambda pair: (place[pair[0]], place[pair[1]]))


def read_pieces(model: bytes) -> tuple[list[Piece], int]:
    """Return the pieces of a serialized SentencePiece model, and its kind (1 unigram, 2 BPE).

    Fields of `sentencepiece_model.proto`: 1 pieces (1 text, 2 score, 3 type), 2 trainer_spec
    (3 model_type).
    """
    pieces, kind = [], UNIGRAM
    for field, value in _fields(model):
        if field == 1:
            said = dict(_fields(value))
            (score,) = struct.unpack("<f", said.get(2, bytes(4)))
            pieces.append(Piece(said[1].decode(), score, said.get(3, NORMAL)))
        elif field == 2:
            kind = dict(_fields(value)).get(3, UNIGRAM)
    return pieces, kind


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a protocol buffer: an int, or the bytes of anything else."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = number()
        if key & 7 == 0:
            yield key >> 3, number()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or number()
        yield key >> 3, message[at : at + size]
        at += size
