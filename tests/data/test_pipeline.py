"""The input pipeline (T16): order, resumption, sharding over processes, mixtures, held-out rows."""

from __future__ import annotations

import itertools
from dataclasses import replace

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nested_jax.config import DataConfig
from nested_jax.data import pipeline
from nested_jax.data.held_out import target_bytes, valid_batches
from nested_jax.data.packing import PackedSource
from nested_jax.data.pipeline import BatchIterator, make_train_iterator, prepare, row_order
from nested_jax.data.shards import TokenStore

FIELDS = ("tokens_BT", "targets_BT", "weights_BT", "segments_BT")


def config(store: TokenStore, **fields: object) -> DataConfig:
    return replace(DataConfig(source=str(store.root), seq_len=32, valid_rows=7), **fields)


def train(cfg: DataConfig, batch_size: int = 6, seed: int = 0, **kwargs: int) -> BatchIterator:
    return make_train_iterator(cfg, batch_size=batch_size, align=8, seed=seed, **kwargs)


def take(iterator: BatchIterator, count: int) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(iterator, count))


def assert_same(got: list[dict[str, np.ndarray]], want: list[dict[str, np.ndarray]]) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        for name in FIELDS:
            np.testing.assert_array_equal(a[name], b[name])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 500), st.integers(0, 2**31))
def test_an_epoch_is_a_permutation_and_epochs_differ(size: int, seed: int) -> None:
    order = row_order([size], (), seed)
    first, second = ([order[e * size + i] for i in range(size)] for e in range(2))
    assert sorted(first) == sorted(second) == list(range(size))
    assert size < 6 or first != second


def test_an_epoch_of_batches_holds_every_row_once(store: TokenStore) -> None:
    cfg = config(store)
    source = PackedSource(store, store.select("train"), seq_len=32, align=8)
    rows = sorted(source[i]["tokens_BT"].tobytes() for i in range(len(source)))
    epochs = [
        [b["tokens_BT"][0].tobytes() for b in take(it, len(source))]
        for it in [train(cfg, batch_size=1)] * 2
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == rows
    assert epochs[0] != epochs[1]


def test_the_seed_decides_the_order(store: TokenStore) -> None:
    cfg = config(store)
    assert_same(take(train(cfg), 5), take(train(cfg), 5))
    assert (
        take(train(cfg), 1)[0]["tokens_BT"] != take(train(cfg, seed=1), 1)[0]["tokens_BT"]
    ).any()


def test_threads_do_not_change_the_stream(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for threads, ahead in ((0, 0), (4, 64)):
        monkeypatch.setattr(pipeline, "READ_THREADS", threads)
        monkeypatch.setattr(pipeline, "PREFETCH", ahead)
        rows.append(take(train(config(store)), 9))
    assert_same(*rows)


@settings(max_examples=12, deadline=None)
@given(steps=st.integers(0, 60), weighted=st.booleans())
def test_resume_continues_the_stream(resumable: TokenStore, steps: int, weighted: bool) -> None:
    mixture = {"segments": ("notes", "code"), "weights": (0.7, 0.3)} if weighted else {}
    cfg = config(resumable, **mixture)
    straight = train(cfg)
    take(straight, steps)
    state = straight.get_state()
    assert state == {"next_index": steps}
    resumed = train(cfg)
    take(resumed, 3)
    resumed.set_state(state)
    assert_same(take(resumed, 4), take(straight, 4))


@pytest.fixture(scope="module")
def resumable(tmp_path_factory: pytest.TempPathFactory, tokenizer: object) -> TokenStore:
    from small_data import make_store, synthetic_shards

    return make_store(tmp_path_factory.mktemp("data"), tokenizer, synthetic_shards(tokenizer))


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_partition_the_global_batch(store: TokenStore, processes: int) -> None:
    cfg = config(store)
    whole = take(train(cfg), 8)
    parts = [
        take(train(cfg, process_index=p, process_count=processes), 8) for p in range(processes)
    ]
    joined = [
        {name: np.concatenate([part[i][name] for part in parts]) for name in FIELDS}
        for i in range(8)
    ]
    assert_same(joined, whole)


def test_state_fits_another_process_count(store: TokenStore) -> None:
    cfg = config(store)
    single = train(cfg)
    take(single, 5)
    second_of_two = train(cfg, process_index=1, process_count=2)
    second_of_two.set_state(single.get_state())
    want = [{name: b[name][3:] for name in FIELDS} for b in take(single, 3)]
    assert_same(take(second_of_two, 3), want)


def test_the_grain_iterator_is_what_checkpoint_handlers_want(store: TokenStore) -> None:
    assert isinstance(train(config(store)).grain_iterator, grain.DatasetIterator)


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (0.945, 0.05, 0.005), (1.0, 1.009, 1.0)])
@pytest.mark.parametrize("start", [0, 77_777])
def test_mixture_weights_hold_over_any_10000(weights: tuple[float, ...], start: int) -> None:
    sizes = [4000, 70_000, 900]
    order = row_order(sizes, weights, seed=3)
    drawn = np.array([order[start + i] for i in range(10_000)])
    parts = np.searchsorted(np.cumsum(sizes), drawn, "right")
    share = np.bincount(parts, minlength=3) / 10_000
    want = np.array(weights) / sum(weights)
    assert (np.abs(share - want) <= 0.01 * want + 1e-4).all(), (share, want)  # 1e-4: one sample


def test_parts_of_a_mixture_never_repeat_an_epoch() -> None:
    order = row_order([20, 20], (1.0, 1.0), seed=0)
    drawn = [order[i] for i in range(80)]
    first = [i for i in drawn if i < 20]
    second = [i - 20 for i in drawn if i >= 20]
    assert sorted(first[:20]) == sorted(first[20:]) == list(range(20))
    assert first[:20] != first[20:]
    assert first != second


def test_valid_rows_are_fixed_and_padded(store: TokenStore) -> None:
    cfg = config(store)
    batches = valid_batches(cfg, batch_size=4, align=8)
    assert [b["tokens_BT"].shape for b in batches] == [(4, 32)] * 2
    assert batches[1]["weights_BT"][:3].any(axis=1).all()
    assert not batches[1]["weights_BT"][3].any()
    assert_same(batches, valid_batches(cfg, batch_size=4, align=8))
    rows = np.concatenate([b["tokens_BT"] for b in batches])[:7]
    other = np.concatenate([b["tokens_BT"] for b in valid_batches(cfg, batch_size=7, align=8)])
    np.testing.assert_array_equal(rows, other)


def test_bytes_of_targets_are_exact(store: TokenStore) -> None:
    cfg = config(store, valid_rows=10_000)
    info = prepare(cfg)
    batches = valid_batches(cfg, batch_size=5, align=8)
    texts = []
    for shard in store.select("valid"):
        ids = np.fromfile(store.root / shard.file, store.dtype)
        offsets = np.fromfile(store.root / shard.offsets_file, np.int64)
        for begin, end in itertools.pairwise(offsets):
            texts.append(store.tokenizer.decode(ids[begin + 1 : end]))
    want = sum(len(text.encode()) for text in texts)
    assert target_bytes(batches, info.piece_byte_lengths) == want
    targets = sum(int(b["weights_BT"].sum()) for b in batches)
    assert info.bytes_per_token == want / targets


def test_info_counts(store: TokenStore) -> None:
    info = prepare(config(store, segments=("notes",)))
    assert list(info.tokens) == ["notes"]
    shard = store.select("train", ("notes",))[0]
    assert info.tokens["notes"] == {
        "train": shard.tokens,
        "valid": store.select("valid", ("notes",))[0].tokens,
        "test": 0,
    }
    assert info.documents["notes"]["train"] == 20
    assert info.vocab_size == 400


def test_a_batch_holds_only_the_chosen_segments(store: TokenStore) -> None:
    cfg = config(store, segments=("notes",))
    source = PackedSource(store, store.select("train", ("notes",)), seq_len=32, align=8)
    known = {source[i]["tokens_BT"].tobytes() for i in range(len(source))}
    for batch in take(train(cfg), 10):
        assert {row.tobytes() for row in batch["tokens_BT"]} <= known


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "/nowhere/at/all"}, "neither 'stdlib', nor a folder"),
        ({"segments": ("prose",)}, "no segment 'prose'; it has code, notes"),
    ],
)
def test_bad_source(store: TokenStore, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(config(store, **fields))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 5, "process_count": 2}, "must be a multiple of the 2 processes"),
        ({"batch_size": 4, "process_index": 2, "process_count": 2}, "below process_count=2"),
    ],
)
def test_bad_process(store: TokenStore, kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(config(store), **kwargs)
