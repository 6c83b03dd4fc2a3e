"""Streams: every row of the batch reads on where it ended, over all documents and processes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nested_jax.config import DataConfig
from nested_jax.data.held_out import streamed_rows, valid_batches
from nested_jax.data.packing import PackedSource, Row
from nested_jax.data.pipeline import BatchIterator, StreamOrder, make_train_iterator
from nested_jax.data.shards import TokenStore

TOKENS, ALIGN = 16, 4


def config(store: TokenStore, **fields: object) -> DataConfig:
    cfg = DataConfig(source=str(store.root), seq_len=TOKENS, mode="stream", valid_rows=11)
    return replace(cfg, **fields)


def batches(cfg: DataConfig, batch_size: int, align: int = ALIGN, **process: int) -> BatchIterator:
    return make_train_iterator(cfg, batch_size=batch_size, align=align, seed=0, **process)


def read(cfg: DataConfig, batch_size: int, steps: int, align: int = ALIGN) -> Row:
    """Return the streams of `steps` batches, each row one array."""
    taken = list(itertools.islice(batches(cfg, batch_size, align), steps))
    return {name: np.concatenate([b[name] for b in taken], axis=1) for name in taken[0]}


def whole_text(store: TokenStore, split: str, align: int) -> tuple[np.ndarray, np.ndarray]:
    """The aligned concatenation of a split's documents, and where they start; -1 is padding."""
    tokens, starts = [], []
    for shard in store.select(split):
        ids = np.fromfile(store.root / shard.file, store.dtype).astype(np.int64)
        offsets = np.fromfile(store.root / shard.offsets_file, np.int64)
        for begin, end in itertools.pairwise(offsets):
            starts.append(len(tokens))
            tokens += ids[begin:end].tolist() + [-1] * (-(end - begin) % align)
    tokens += [-1] * (-len(tokens) % TOKENS)
    return np.array(tokens), np.array(starts)


@pytest.mark.parametrize("align", [1, ALIGN])
def test_rows_are_contiguous_and_mark_where_documents_start(store: TokenStore, align: int) -> None:
    text, starts = whole_text(store, "train", align)
    rows, batch = len(text) // TOKENS, 5
    steps = rows + 2  # beyond the end of the text, where it begins again
    got = read(config(store), batch, steps, align)
    for row in range(batch):
        at = (row * rows // batch * TOKENS + np.arange(steps * TOKENS)) % len(text)
        want = text[at]
        exists = want >= 0
        np.testing.assert_array_equal(got["tokens_BT"][row][exists], want[exists])
        segments = got["segments_BT"][row]
        np.testing.assert_array_equal(segments > 0, exists)
        begins = np.diff(segments, prepend=0) != 0
        begins[::TOKENS] = segments[::TOKENS] > 1  # a row goes on with document 1
        begins &= exists
        np.testing.assert_array_equal(np.flatnonzero(begins), np.flatnonzero(np.isin(at, starts)))


def test_targets_reach_into_the_next_row(store: TokenStore) -> None:
    got = read(config(store), batch_size=3, steps=20)
    weighed = got["weights_BT"][:, :-1] > 0
    np.testing.assert_array_equal(
        got["targets_BT"][:, :-1][weighed], got["tokens_BT"][:, 1:][weighed]
    )
    assert weighed[:, TOKENS - 1 :: TOKENS].any()


def test_an_epoch_reads_every_row_once_a_stream_and_the_batch_shares_the_text() -> None:
    order = StreamOrder(rows=12, batch_size=4)
    first = [order[i] for i in range(12)]
    assert sorted(first) == list(range(12))  # three batches of four rows: the whole text
    assert [order[i] for i in range(0, 48, 4)] == list(range(12))  # row 0 alone: the whole text


def test_processes_share_the_batch(store: TokenStore) -> None:
    whole = read(config(store), batch_size=6, steps=4)
    parts = []
    for index in range(3):
        iterator = batches(config(store), 6, process_index=index, process_count=3)
        taken = [next(iterator) for _ in range(4)]
        parts.append(np.concatenate([b["tokens_BT"] for b in taken], axis=1))
    np.testing.assert_array_equal(np.concatenate(parts), whole["tokens_BT"])


def test_a_restart_goes_on_at_the_same_character(store: TokenStore) -> None:
    cfg = config(store)
    iterator = batches(cfg, 3)
    for _ in range(7):
        next(iterator)
    state = iterator.get_state()
    want = [next(iterator) for _ in range(3)]
    again = batches(cfg, 3)
    again.set_state(state)
    for batch in want:
        for name, array in next(again).items():
            np.testing.assert_array_equal(array, batch[name])


def test_held_out_text_is_read_in_order(store: TokenStore) -> None:
    """Eleven rows in four streams: three steps, the last stream one row short."""
    text, _ = whole_text(store, "valid", ALIGN)
    got = valid_batches(config(store), batch_size=4, align=ALIGN)
    assert len(got) == 3
    for stream in range(4):
        rows = range(3 * stream, min(3 * stream + 3, 11))
        for step, row in enumerate(rows):
            want = text[row * TOKENS : (row + 1) * TOKENS]
            np.testing.assert_array_equal(
                got[step]["tokens_BT"][stream][want >= 0], want[want >= 0]
            )
    assert not got[2]["weights_BT"][3].any()
    assert got[2]["weights_BT"][:3].any()


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 7))
def test_every_held_out_row_is_scored_once(size: int, count: int, batch_size: int) -> None:
    order = streamed_rows(size, count, batch_size, 0)
    assert sorted(row for row in order if row >= 0) == list(range(min(size, count)))
    assert len(order) % batch_size == 0
    for stream in range(batch_size):
        rows = [row for row in order[stream::batch_size] if row >= 0]
        assert rows == list(range(rows[0], rows[0] + len(rows))) if rows else True


def test_streams_that_cannot_be(store: TokenStore) -> None:
    rows = len(PackedSource(store, store.select("train"), seq_len=TOKENS, align=ALIGN))
    with pytest.raises(ValueError, match=rf"batch_size={rows + 1}: the text has {rows} rows"):
        batches(config(store), rows + 1)
    with pytest.raises(ValueError, match=r"data\.mode='stream': reads the text in its own order"):
        batches(config(store, segments=("code", "notes"), weights=(1.0, 2.0)), 2)
