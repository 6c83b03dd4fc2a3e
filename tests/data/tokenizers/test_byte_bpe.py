"""Byte-level BPE: against its definition, without loss, and GPT-2's own vocabulary."""

from __future__ import annotations

import base64
import json
import unicodedata
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from nested_jax.config import DataConfig
from nested_jax.data.__main__ import main
from nested_jax.data.cache import cache_root
from nested_jax.data.held_out import valid_batches
from nested_jax.data.pipeline import open_data, prepare
from nested_jax.data.tokenizers import gpt2_files
from nested_jax.data.tokenizers.byte_bpe import (
    BYTE_ORDER,
    END,
    ByteBPE,
    make_model,
    merge,
    merges_of,
    train_byte_bpe,
    with_ids,
)
from nested_jax.data.tokenizers.tokenizer import load_tokenizer, train_tokenizer

pytest.importorskip("tokenizers.models")  # this folder has the name of the library
ROOT = Path(__file__).resolve().parents[3]
TEXTS = [(ROOT / name).read_text() for name in ("CONTRIBUTING.md", "LICENSE", "launch.py")]
ODD = [
    "",
    " ",
    "\n\n  \t x",
    "don't, I'll; we've  they're'd",
    "x²½ 12345,6 ٣٤ naïve 日本語 😀\u200d🔥 \u2581\u00a0\u3000end ",
    "<|endoftext|> <|padding_0|> is <MUL_6_9_54>=<MUL_6_9_54>",
    "\x00\x1f\x7f\u0085\ufeff",
]
SYMBOLS = ("<MUL_6_9_54>", "<é!b>")


@pytest.fixture(scope="module")
def tokenizer() -> ByteBPE:
    return train_byte_bpe(TEXTS, 500, symbols=SYMBOLS)


def ranks(tokenizer: ByteBPE) -> dict[bytes, int]:
    ordinary = tokenizer.vocab_size - 1 - len(SYMBOLS)
    return {tokenizer.bytes_of(token): token for token in range(ordinary)}


# --- the definition ------------------------------------------------------------------------------

SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def kind(character: str) -> str:
    if character in SPACES:
        return "space"
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "other"


def words(text: str) -> list[str]:
    """GPT-2's pattern by hand: runs of letters, numbers or others, with one space before them."""
    found, at = [], 0
    while at < len(text):
        clitic = next(
            (c for c in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if text.startswith(c, at)), ""
        )
        if clitic:
            found.append(clitic)
            at += len(clitic)
            continue
        lead = text[at] == " " and at + 1 < len(text) and kind(text[at + 1]) != "space"
        run = next(list(g) for _, g in groupby(text[at + lead :], kind))
        end = at + lead + len(run)
        if kind(run[0]) == "space" and len(run) > 1 and end < len(text):
            end -= 1  # the last space belongs to the word after it
        found.append(text[at:end])
        at = end
    return found


def encode_by_definition(text: str, rank: dict[bytes, int]) -> list[int]:
    if SYMBOLS[0] in text:
        first, rest = text.split(SYMBOLS[0], 1)
        symbol = [max(rank.values()) + 2]
        return encode_by_definition(first, rank) + symbol + encode_by_definition(rest, rank)
    return [
        rank[part]
        for word in words(text)
        for part in merge([bytes([b]) for b in word.encode()], rank, len(rank))
    ]


def test_encoding_is_its_definition(tokenizer: ByteBPE) -> None:
    rank = ranks(tokenizer)
    for text in (*ODD, *TEXTS):
        assert tokenizer.encode(text) == encode_by_definition(text, rank), text[:40]


def test_long_texts_are_cut_where_no_token_crosses(tokenizer: ByteBPE) -> None:
    """Runs of white space, of any kind, stay whole: they decide what a word begins with."""
    rng = np.random.default_rng(3)
    drawn = rng.choice(list(" \n\t \u00a0ab1.'s"), 30_000)
    for text in ("".join(drawn), " ".join(TEXTS)):
        whole = tokenizer._library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == whole


def test_training_takes_the_most_frequent_pair() -> None:
    """ab four times, then abc three times; ties and rare pairs come later."""
    made = train_byte_bpe(["ab ab abc abc abc xy"], 256 + 1 + 3)
    assert [made.bytes_of(token) for token in range(256, 259)] == [b"ab", b" ab", b" abc"]
    assert list(merges_of([made.bytes_of(t) for t in range(259)]))[1] == (b" ", b"ab")


# --- without loss --------------------------------------------------------------------------------


def test_every_text_comes_back(tokenizer: ByteBPE) -> None:
    rng = np.random.default_rng(0)
    points = rng.integers(0, 0x10FFFF, 4000)
    drawn = "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)
    for text in (*ODD, *TEXTS, drawn):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert b"".join(map(tokenizer.bytes_of, ids)) == text.encode()
        assert tokenizer.piece_byte_lengths[ids].sum() == len(text.encode())
        assert tokenizer.piece_char_lengths[ids].sum() == len(text)


def test_symbols_are_text_and_control_tokens_are_not(tokenizer: ByteBPE) -> None:
    symbol, end = tokenizer.id_of(SYMBOLS[0]), tokenizer.eos_id
    assert tokenizer.encode(f"is {SYMBOLS[0]}").count(symbol) == 1
    assert tokenizer.encode(SYMBOLS[1]) == [tokenizer.vocab_size - 1]
    assert end not in tokenizer.encode(END)
    assert tokenizer.piece(end) == END
    assert tokenizer.bos_id == end == tokenizer.pad_id
    ids = [end, *tokenizer.encode("6"), symbol, end, tokenizer.vocab_size + 3]
    assert tokenizer.decode(ids) == f"6{SYMBOLS[0]}\N{REPLACEMENT CHARACTER}"
    assert tokenizer.id_of("<MUL_1_1_2>") == tokenizer.unk_id == -1


def test_training_gives_the_same_bytes_again(tokenizer: ByteBPE, tmp_path: Path) -> None:
    assert train_byte_bpe(TEXTS, 500, symbols=SYMBOLS).model == tokenizer.model
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)
    loaded = load_tokenizer(tmp_path)
    assert loaded.hash == tokenizer.hash
    assert loaded.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)


def test_data_are_made_with_it(tmp_path: Path) -> None:
    """From text in a file to rows, exact in bytes; of other shards the kind is refused."""
    file = tmp_path / "text.txt"
    file.write_text("\n".join(TEXTS))
    fields = {"source": str(file), "cache_dir": str(tmp_path / "cache"), "vocab_size": 600}
    cfg = DataConfig(tokenizer="gpt2", seq_len=64, **fields)
    info, store = prepare(cfg), open_data(cfg)
    assert info.vocab_size == 600
    assert store.tokenizer.kind == "gpt2"
    assert info.eos_id == info.pad_id == 599
    batch = valid_batches(cfg, batch_size=2, align=1)[0]
    ids = batch["tokens_BT"][batch["segments_BT"] == 1]
    assert store.tokenizer.decode(ids[:40]) in "\n".join(TEXTS)
    with pytest.raises(ValueError, match=r"data\.tokenizer='char'.*written with 'gpt2'"):
        open_data(DataConfig(source=str(store.root), tokenizer="char"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b'{"byte_level_bpe":{}}', "not a byte-level BPE"),
        (b'{"byte_level_bpe":{"bos":0,"eos":0,"pad":0}}\n{}', "model.type=None"),
        (b'{"byte_level_bpe":{"bos":0,"eos":0,"pad":0}}\n{"model":', "not a byte-level BPE"),
    ],
)
def test_damaged_files_are_refused(model: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "NFC"}}, "normalizer='NFC': changes the text"),
        ({"decoder": {"type": "Metaspace"}}, "decoder=.'Metaspace'.: wants one with 'ByteLevel'"),
        ({"pre_tokenizer": None}, "pre_tokenizer="),
        ({"model": {"type": "WordPiece"}}, "model.type='WordPiece'"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "has no token for these"),
    ],
)
def test_a_tokenizer_that_loses_text_is_refused(
    change: dict[str, object], message: str, tokenizer: ByteBPE
) -> None:
    data = json.loads(tokenizer.tokenizer_json) | change
    with pytest.raises(ValueError, match=message):
        ByteBPE(with_ids(json.dumps(data), 0, 0, 0))


def test_vocabularies_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="vocab_size=256: wants at least 257"):
        train_byte_bpe(TEXTS, 256)
    with pytest.raises(ValueError, match="vocab_size=5000: the text is enough for"):
        train_tokenizer(["abc"], 5000, model_type="gpt2")
    for symbol in (END, "<|padding_3|>", "", "two words"):
        with pytest.raises(ValueError, match=r"symbols=.*(are control tokens|white space)"):
            train_byte_bpe(TEXTS, 300, symbols=[symbol])


# --- GPT-2's own ---------------------------------------------------------------------------------


def test_without_out_it_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vocabulary", "gpt2"]) == 0
    said = capsys.readouterr().out
    assert "mlx-whisper 0.4.3: mlx_whisper/assets/gpt2.tiktoken" in said
    assert "--fetch" in said


def test_another_vocabulary_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NESTED_JAX_CACHE", str(tmp_path / "cache"))
    out = str(tmp_path / "out")
    assert main(["vocabulary", "gpt2", "--out", out]) == 2
    assert "no such file" in capsys.readouterr().err
    file = tmp_path / "gpt2.tiktoken"
    tokens = [bytes([b]) for b in BYTE_ORDER]
    file.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens)))
    assert main(["vocabulary", "gpt2", "--from", str(file), "--out", out]) == 2
    assert "of 256 tokens; GPT-2's is 306cd27f03c1" in capsys.readouterr().err
    file.write_text("no vocabulary\n")
    assert main(["vocabulary", "gpt2", "--from", str(file), "--out", out]) == 2
    assert "cannot be read as a vocabulary" in capsys.readouterr().err
    assert not Path(out).exists()


VOCABULARY = cache_root() / "vocabularies" / gpt2_files.RANKS


@pytest.mark.skipif(not VOCABULARY.is_file(), reason="`... data vocabulary gpt2 --fetch` gets it")
def test_known_ids_of_gpt2(tmp_path: Path) -> None:
    products = [f"<MUL_{a}_{b}_{a * b}>" for a in range(1, 10) for b in range(a, 10)]
    flags = ["--size", "50304", "--symbols", *products]
    assert main(["vocabulary", "gpt2", "--out", str(tmp_path), *flags]) == 0
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 50349
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.piece(50303)) == (
        50256,
        50257,
        "<|padding_46|>",
    )
    known = {
        "Hello world": [15496, 995],
        " 6*9=54": [718, 9, 24, 28, 4051],
        "is 6*9": [271, 718, 9, 24],
        "is <MUL_6_9_54>": [271, 220, 50342],
        "User:": [12982, 25],
        "\nAssistant:": [198, 48902, 25],
        "#### 18": [4242, 1248],
        " The answer is": [383, 3280, 318],
    }
    for text, ids in known.items():
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == text
    bare = ByteBPE(gpt2_files.gpt2_model(gpt2_files.read_ranks(VOCABULARY)))
    assert bare.vocab_size == 50257
    assert len(bare.encode("<MUL_6_9_54>")) == 10
    # The same from the form in which Hugging Face has it.
    vocab = {bare.piece(token): token for token in range(50257)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    merges = json.loads(bare.tokenizer_json)["model"]["merges"]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    assert gpt2_files.gpt2_model(gpt2_files.read_ranks(tmp_path)) == bare.model
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges[::-1], ""]))
    with pytest.raises(ValueError, match="has other merges than GPT-2"):
        gpt2_files.read_ranks(tmp_path)


def test_a_size_fills_up_with_control_tokens() -> None:
    tokens = [bytes([b]) for b in BYTE_ORDER]
    made = ByteBPE(make_model(tokens, [], ["<x>"], 260))
    assert (made.vocab_size, made.eos_id, made.pad_id, made.id_of("<x>")) == (261, 256, 257, 260)
    assert made.decode([257, 258, 259, 260]) == "<x>"
    with pytest.raises(ValueError, match="--size=256: wants 0, or the 257 ids"):
        make_model(tokens, [], [], 256)
