"""Packing against a slow twin that lays the aligned concatenation out in full."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import make_store

from nested_jax.data.packing import JoinedSource, PackedSource
from nested_jax.data.shards import TokenStore
from nested_jax.data.tokenizers.base import EOS_ID, PAD_ID, Tokenizer

DOCUMENTS = st.lists(st.lists(st.integers(4, 399), min_size=1, max_size=150), max_size=6)


def slow_rows(shards: list[list[list[int]]], seq_len: int, align: int) -> dict[str, np.ndarray]:
    """Lay out every position of the concatenation in Python lists, then cut it into rows."""
    tokens, targets, owners = [], [], []
    for number, document in enumerate(d for shard in shards for d in shard):
        ids = [*document, EOS_ID]
        gap = -len(ids) % align
        tokens += ids + [PAD_ID] * gap
        targets += ids[1:] + [-1] * (gap + 1)
        owners += [number + 1] * len(ids) + [0] * gap
    gap = -len(tokens) % seq_len
    shape = (-1, seq_len)
    tokens_BT = np.reshape(tokens + [PAD_ID] * gap, shape)
    targets_BT = np.reshape(targets + [-1] * gap, shape)
    owners_BT = np.reshape(owners + [0] * gap, shape)
    segments_BT = np.zeros_like(owners_BT)
    for row, owned in enumerate(owners_BT):
        order = [o for o in dict.fromkeys(owned.tolist()) if o]
        segments_BT[row] = [order.index(o) + 1 if o else 0 for o in owned]
    return {
        "tokens_BT": tokens_BT,
        "targets_BT": np.where(targets_BT < 0, PAD_ID, targets_BT),
        "weights_BT": (targets_BT >= 0).astype(np.float32),
        "segments_BT": segments_BT,
    }


def packed(store: TokenStore, seq_len: int, align: int) -> dict[str, np.ndarray]:
    source = PackedSource(store, store.select("train"), seq_len=seq_len, align=align)
    rows = [source[i] for i in range(len(source))]
    if not rows:
        return {name: array[:0] for name, array in source.empty(0).items()}
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@settings(deadline=None, max_examples=60)
@given(
    shards=st.lists(DOCUMENTS, min_size=1, max_size=3).filter(any),
    align=st.sampled_from([1, 8, 64]),
    chunks=st.integers(1, 3),
)
def test_rows_equal_the_slow_twin(
    tokenizer: Tokenizer, shards: list[list[list[int]]], align: int, chunks: int
) -> None:
    seq_len = align * chunks if align > 1 else 5 * chunks + 2
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), tokenizer, {"a/train": shards})
        got, want = packed(store, seq_len, align), slow_rows(shards, seq_len, align)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name], err_msg=name)
        # No token lost or doubled: what is not padding is the concatenation of the documents.
        flat = [i for shard in shards for document in shard for i in [*document, EOS_ID]]
        assert got["tokens_BT"][got["segments_BT"] > 0].tolist() == flat
        documents = sum(len(shard) for shard in shards)
        assert got["weights_BT"].sum() == len(flat) - documents


@pytest.mark.parametrize("align", [1, 8, 64])
def test_documents_start_at_multiples_of_align(store: TokenStore, align: int) -> None:
    rows = packed(store, 64, align)
    for row in rows["segments_BT"]:
        starts = np.flatnonzero(np.diff(row) > 0) + 1
        assert not (starts % align).any()


def test_types_and_padding(store: TokenStore) -> None:
    row = PackedSource(store, store.select("train"), seq_len=64, align=64)[1]
    assert {name: str(array.dtype) for name, array in row.items()} == {
        "tokens_BT": "int32",
        "targets_BT": "int32",
        "weights_BT": "float32",
        "segments_BT": "int32",
    }
    padding = row["segments_BT"] == 0
    assert not row["weights_BT"][padding].any()
    assert (row["tokens_BT"][padding] == PAD_ID).all()


def test_pickles_by_path(store: TokenStore) -> None:
    source = PackedSource(store, store.select("train"), seq_len=16, align=8)
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[3]["tokens_BT"], source[3]["tokens_BT"])


def test_seq_len_must_be_a_multiple_of_align(store: TokenStore) -> None:
    with pytest.raises(ValueError, match=r"data\.seq_len=100: must be a multiple of align=64"):
        PackedSource(store, store.select("train"), seq_len=100, align=64)


@settings(deadline=None, max_examples=60)
@given(
    shards=st.lists(DOCUMENTS, min_size=1, max_size=3).filter(any),
    seq_len=st.sampled_from([1, 7, 64]),
)
def test_joined_rows_are_the_concatenation(
    tokenizer: Tokenizer, shards: list[list[list[int]]], seq_len: int
) -> None:
    """Every token is followed by the next one, over the ends of documents and of shards."""
    flat = [i for shard in shards for document in shard for i in [*document, EOS_ID]]
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), tokenizer, {"a/train": shards})
        source = JoinedSource(store, store.select("train"), seq_len=seq_len, align=64)
        rows = [source[i] for i in range(len(source))]
    assert len(rows) == -(-len(flat) // seq_len)
    tokens, targets, weights, segments = (np.concatenate([row[n] for row in rows]) for n in rows[0])
    assert tokens[segments == 1].tolist() == flat
    assert targets[weights == 1].tolist() == flat[1:]
    assert weights.sum() == len(flat) - 1
    assert segments.sum() == len(flat)
    assert (tokens[len(flat) :] == PAD_ID).all()
