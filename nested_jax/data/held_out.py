"""The fixed held-out set: its rows, and the bytes that their targets stand for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nested_jax.config import DataConfig
from nested_jax.data.packing import Row
from nested_jax.data.pipeline import open_data, source_of
from nested_jax.errors import require

VALID_SEED = 20_251_107  # of the fixed held-out set: a constant, so that runs can be compared


def valid_batches(
    cfg: DataConfig, *, batch_size: int, align: int, seed: int = VALID_SEED
) -> list[Row]:
    """Return the fixed held-out set: the first ``data.valid_rows`` rows of a fixed permutation.

    Of a stream they are the first rows of the text in its order, and row i of a batch goes on where
    row i of the batch before it ended. The last batch is filled up with rows of weight 0. The bytes
    that its targets stand for, which bits per byte need, are `target_bytes`.
    """
    require(batch_size >= 1, "batch_size", batch_size, "wants 1 row or more")
    store = open_data(cfg)
    shards = store.select("valid", cfg.segments)
    source = source_of(store, shards, cfg, align)
    order = VALID_ORDERS[cfg.mode](len(source), cfg.valid_rows, batch_size, seed)
    require(len(order) > 0, "data.segments", cfg.segments, f"{store.root} has no valid split")
    batches = []
    for start in range(0, len(order), batch_size):
        batch = source.empty(batch_size)
        if any(shard.symbols for shard in shards):
            batch["extra_BT"] = np.zeros(batch["tokens_BT"].shape, np.int64)
        for place, index in enumerate(order[start : start + batch_size]):
            if index >= 0:
                source.fill(batch, place, index)
        batches.append(batch)
    return batches


def shuffled_rows(size: int, count: int, batch_size: int, seed: int) -> list[int]:
    """Return the first `count` row numbers of a fixed permutation; -1 fills the last batch up."""
    order = np.random.default_rng(seed).permutation(size)[:count].tolist()
    return order + [-1] * (-len(order) % batch_size)


def streamed_rows(size: int, count: int, batch_size: int, seed: int) -> list[int]:
    """Return the numbers of the first `count` rows, cut into `batch_size` contiguous streams.

    Batch by batch: entry b * batch_size + i is the b-th row of stream i, -1 where it has ended.
    """
    del seed
    count = min(size, count)
    steps = -(-count // batch_size)
    streams = [range(min(i * steps, count), min((i + 1) * steps, count)) for i in range(batch_size)]
    return [
        stream[step] if step < len(stream) else -1 for step in range(steps) for stream in streams
    ]


VALID_ORDERS = {"rows": shuffled_rows, "stream": streamed_rows, "examples": shuffled_rows}


def target_bytes(batches: Sequence[Row], piece_lengths: np.ndarray) -> int:
    """Return the UTF-8 bytes that the weighted targets of `batches` stand for, exactly.

    Bits per byte of a row set are its summed loss in nats / ln 2 / this number. With the lengths of
    the pieces in characters it counts characters.
    """
    total = 0
    for batch in batches:
        scored_BT = batch["weights_BT"] > 0
        total += int(piece_lengths[batch["targets_BT"][scored_BT]].sum())
        total += int(batch["extra_BT"][scored_BT].sum()) if "extra_BT" in batch else 0
    return total
