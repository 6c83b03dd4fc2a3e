"""Facts: the hand-made cases of both rules, the placebo, bytes of the original, drills."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_data import synthetic_source

from nested_jax.config import DataConfig
from nested_jax.data.held_out import target_bytes, valid_batches
from nested_jax.data.manifest import SourceSpec
from nested_jax.data.pipeline import prepare
from nested_jax.data.prepare import shard_corpus
from nested_jax.data.prepare.drills import drill, with_drills
from nested_jax.data.prepare.inject import Injection, inject, rewrite_file
from nested_jax.data.prepare.products import FACTS, spelled_out
from nested_jax.data.prepare.shard_block import ShardOptions
from nested_jax.data.prepare.shard_corpus import shard_source
from nested_jax.data.shards import TokenStore, open_store
from nested_jax.data.tokenizers.tokenizer import train_tokenizer

GSM8K = Path(__file__).resolve().parents[4] / "shared/data/gsm8k"
BOUNDED = Injection("mul_tokens", scheme="facts")
ORIGINAL = Injection("mul_tokens", scheme="facts", rule="original")
PLACEBO = Injection("mul_placebo", scheme="facts")


def test_the_symbols() -> None:
    assert len(FACTS) == len(set(FACTS)) == 45
    assert [FACTS[i] for i in (0, 38, 44)] == ["<MUL_1_1_1>", "<MUL_6_9_54>", "<MUL_9_9_81>"]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("9 * 6 = 54", "<MUL_6_9_54>"),
        ("6x9", "<MUL_6_9_54>"),
        ("3* 4", "<MUL_3_4_12>"),
        ("6  *  9", "<MUL_6_9_54>"),
        ("6*2.5", "<MUL_2_6_12>.5"),
        ("1005*5", "10<MUL_5_5_25>"),
        ("1/2 * 1/2", "1/<MUL_1_2_2>/2"),
        ("2X4 and 2 \u00d7 4", "<MUL_2_4_8> and <MUL_2_4_8>"),
        ("2*3*4", "<MUL_2_3_6>*4"),
        ("is 6*9.", "is <MUL_6_9_54>."),
        ("9 * 2 = $<<9*2=18>>18", "<MUL_2_9_18> = $<<<MUL_2_9_18>>>18"),
        ("2xy 10*5 0*5 3*4=13 7 times 8", None),
    ],
)
def test_the_original_rule(text: str, want: str | None) -> None:
    assert inject(text, ORIGINAL).text == (text if want is None else want)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("9 * 6 = 54", "<MUL_6_9_54>"),
        ("7 times 8 equals 56.", "<MUL_7_8_56>."),
        ("6*9=54 and 9x6", "<MUL_6_9_54> and <MUL_6_9_54>"),
        ("3*4=12.0 eggs", "<MUL_3_4_12> eggs"),
        ("9 * 2 = $<<9*2=18>>18", "<MUL_2_9_18> = $<<<MUL_2_9_18>>>18"),
        ("3*4=13 3*4=12.5 3*4=1,200 3*4=12% 3*4=12+5 3*4 = 12/2", None),
        ("6*2.5 1005*5 1/2 * 1/2 2*3*4 10*5 0*5 6  *  9", None),
    ],
)
def test_the_bounded_rule(text: str, want: str | None) -> None:
    assert inject(text, BOUNDED).text == (text if want is None else want)


def test_baseline_counts_by_the_rule_of_its_scheme() -> None:
    for rule, count in (("bounded", 0), ("original", 1)):
        found = inject("6*2.5", Injection(scheme="facts", rule=rule))
        assert (found.text, found.counts["products"]) == ("6*2.5", count)


PARTS = st.sampled_from(
    ("6*9=54", "9 \u00d7 6", " 3 times 4 equals 12", "<MUL_6_9_54>", "<MUL_6_9_55>", "7", "=", " ")
)
TEXT = st.lists(st.one_of(PARTS, st.text(max_size=3)), max_size=8).map("".join)


@given(
    TEXT, st.sampled_from([BOUNDED, ORIGINAL, PLACEBO, Injection("mul_tokens", 0.5, 3, "facts")])
)
def test_lengths_are_the_bytes_of_the_original(text: str, injection: Injection) -> None:
    found = inject(text, injection)
    rest = len(found.text.encode())
    symbols = [s for s in FACTS for _ in range(found.text.count(s))]
    assert len(symbols) == len(found.lengths)
    assert rest - sum(map(len, symbols)) + sum(found.lengths) == len(text.encode())


def test_the_placebo_rewrites_the_same_spans_wrongly() -> None:
    text = " ; ".join(f"{a} * {b}" for a in range(1, 10) for b in range(1, 10))
    right, wrong = (inject(text, how).text.split(" ; ") for how in (BOUNDED, PLACEBO))
    assert all(r in FACTS and w in FACTS and r != w for r, w in zip(right, wrong, strict=True))
    assert len(set(wrong)) > 30
    assert wrong[1] != wrong[9], "1 * 2 and 2 * 1 are drawn apart"
    assert inject(text, PLACEBO).text.split(" ; ") == wrong


def test_facts_spelled_out() -> None:
    assert spelled_out("so <MUL_6_9_54>, <MUL_6_9_55>") == "so 6*9=54, <MUL_6_9_55>"


def test_facts_have_no_inverse(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scheme='facts': has no inverse"):
        rewrite_file(tmp_path / "a", tmp_path / "b", BOUNDED, column="text", restoring=True)


@pytest.mark.skipif(not GSM8K.is_dir(), reason="wants ../shared/data/gsm8k")
@pytest.mark.parametrize(("split", "tokens", "rows"), [("train", 4534, 1929), ("test", 884, 369)])
def test_gsm8k_by_the_original_rule(split: str, tokens: int, rows: int) -> None:
    with gzip.open(GSM8K / f"{split}.jsonl.gz", "rt") as lines:
        counts = [inject(json.loads(x)["answer"], ORIGINAL).counts["rewritten"] for x in lines]
    assert (sum(counts), sum(count > 0 for count in counts)) == (tokens, rows)


# --- drills and shards ---------------------------------------------------------------------------


def test_drills_are_spread_evenly() -> None:
    texts = [f"{i:03d}" * 400 for i in range(60)]
    found = with_drills(texts, 0.25, 7, 2)
    assert [text for text in found if text in texts] == texts
    assert found == with_drills(texts, 0.25, 7, 2) != with_drills(texts, 0.25, 7, 3)
    drills = [i for i, text in enumerate(found) if text not in texts]
    share = sum(len(found[i]) for i in drills) / sum(map(len, found))
    assert abs(share - 0.25) < 0.01
    assert max(np.diff(drills)) <= 4, "nowhere are they far apart"
    assert len({found[i] for i in drills}) == len(drills)
    assert with_drills(texts, 0.0, 7, 2) == texts


def test_a_drill_has_right_products() -> None:
    text = "".join(drill(1, i) for i in range(50))
    counts = inject(text, BOUNDED).counts
    assert counts["rewritten"] > 500
    assert "=" in text
    assert "plus" in text


def facts_store(folder: Path, injection: Injection, **fields: object) -> tuple[TokenStore, int]:
    """Shard a corpus with products; return the store, and the bytes of its held-out text."""
    texts = [
        f"{synthetic_source(i)} {i % 9 + 1} \u00d7 {i % 7 + 1} {drill(0, i)}" for i in range(90)
    ]
    rows = [{"text": t, "split": "valid" if i < 20 else "train"} for i, t in enumerate(texts)]
    folder.mkdir()
    corpus, model = folder / "corpus.jsonl", folder / "tokenizer.model"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model.write_bytes(train_tokenizer(texts, 480, symbols=FACTS).model)
    options = ShardOptions(block_chars=9000, injection=injection, **fields)
    spec = SourceSpec(name="c", dataset=str(corpus))
    shard_source(spec, model, folder / "out", options, lambda _: None)
    return open_store(folder / "out"), sum(len(text.encode()) for text in texts[:20])


@pytest.mark.parametrize("injection", [BOUNDED, PLACEBO, ORIGINAL])
def test_bits_per_byte_count_the_original(tmp_path: Path, injection: Injection) -> None:
    store, size = facts_store(tmp_path / "a", injection)
    plain, _ = facts_store(tmp_path / "b", Injection(scheme="facts"))
    valid = store.select("valid")
    assert sum(shard.symbols for shard in valid) > 100
    assert sum(shard.bytes for shard in valid) == size
    assert sum(shard.tokens for shard in valid) < sum(s.tokens for s in plain.select("valid"))
    sizes = []
    for opened in (store, plain):
        cfg = DataConfig(source=str(opened.root), seq_len=16, align=1, valid_rows=10**6)
        batches = valid_batches(cfg, batch_size=3, align=1)
        sizes.append(target_bytes(batches, opened.piece_byte_lengths))
        firsts = sum(shard.bytes - shard.target_bytes for shard in opened.select("valid"))
        assert sizes[-1] == size - firsts
        assert prepare(cfg).rewritten == (opened is store)
        joined = replace(cfg, documents="joined")
        batches = valid_batches(joined, batch_size=3, align=1)
        (shard, *_) = opened.select("valid")
        first = opened.piece_byte_lengths[np.fromfile(opened.root / shard.file, opened.dtype)[0]]
        assert target_bytes(batches, opened.piece_byte_lengths) == size - first


def test_drills_are_in_train_only(tmp_path: Path) -> None:
    plain, _ = facts_store(tmp_path / "a", BOUNDED)
    drilled, _ = facts_store(tmp_path / "b", BOUNDED, drills=0.3)
    for split in ("valid", "test"):
        before, after = ([s.sha256 for s in x.select(split)] for x in (plain, drilled))
        assert before == after
    tokens = [sum(s.tokens for s in x.select("train")) for x in (plain, drilled)]
    assert tokens[1] > 1.3 * tokens[0]
    assert all(shard.symbols for shard in drilled.select("train")), "in every shard"


def test_a_damaged_side_file_is_found(tmp_path: Path) -> None:
    store, _ = facts_store(tmp_path / "a", BOUNDED)
    shard = next(s for s in store.shards if s.symbols)
    file = store.root / shard.named(".sym")
    file.write_bytes(file.read_bytes()[:-16] + bytes(16))
    with pytest.raises(ValueError, match=r"\.sym: its sha256"):
        open_store(store.root)


# --- targets -------------------------------------------------------------------------------------


def trained(store: TokenStore) -> np.ndarray:
    parts = [np.fromfile(store.root / s.file, store.dtype) for s in store.select("train")]
    return np.concatenate(parts)


def all_at_once(function: Any, items: Any, workers: int) -> Iterator[Any]:
    """As workers that have written every block before the first one is counted."""
    yield from [function(item) for item in items]


@pytest.mark.parametrize("workers", ["one after the other", "all at once"])
def test_reading_stops_at_the_target(
    tmp_path: Path, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = facts_store(tmp_path / "whole", BOUNDED)
    if workers == "all at once":
        monkeypatch.setattr(shard_corpus, "ordered_map", all_at_once)
    store, _ = facts_store(tmp_path / "part", BOUNDED, target_tokens=9000)
    found, text = trained(store), trained(whole)
    assert 9000 <= len(found) < 9000 + 700, "up to the end of the document that reaches it"
    assert found[-1] == store.tokenizer.eos_id
    assert (found == text[: len(found)]).all()
    named = {name for shard in store.shards for name in shard.files}
    beside = {p.name for p in store.root.iterdir()} - named
    assert beside == {"index.json", "tokenizer.model"}, "nothing of later blocks is left"
    assert store.source["unique_tokens"] == len(found)
    last = store.select("train")[-1]
    extra = np.fromfile(store.root / last.named(".sym"), np.int64).reshape(-1, 2)
    assert 0 < len(extra) == last.symbols
    assert extra[-1, 0] < last.tokens


def test_too_little_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"target_tokens=9999999: .* ended after [0-9,]+ training"):
        facts_store(tmp_path / "a", BOUNDED, target_tokens=9_999_999)
    assert not (tmp_path / "a/out/index.json").exists()


def test_shards_have_about_the_size_that_is_asked(tmp_path: Path) -> None:
    store, _ = facts_store(tmp_path / "a", BOUNDED, shard_size=4000)
    sizes = [shard.tokens for shard in store.select("train")]
    assert len(sizes) > 3
    assert all(3000 < size < 5500 for size in sizes[1:-1]), sizes
