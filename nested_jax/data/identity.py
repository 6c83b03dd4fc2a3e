"""What a run is scored on and trained on, as hashes: compared runs have two of them in common.

Neither depends on the model, on the rows of an evaluation batch, on where the data lie or on the
number of processes. A checkpoint has more of them, so that a run never goes on over other data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nested_jax.config import DataConfig
from nested_jax.data.held_out import target_bytes
from nested_jax.data.packing import PackedSource, Row
from nested_jax.data.pipeline import LocalBatches, RowSource, batch_order, open_data, open_rows
from nested_jax.data.shards import Shard
from nested_jax.data.synthetic.rows import SyntheticSource
from nested_jax.data.synthetic.rows import identity as synthetic_identity
from nested_jax.data.synthetic.task import Example, Task

ORDER_ROWS = 4096  # row numbers of the training order that are hashed
CONTENT_ROWS = 64  # of them, rows that are hashed as they are read
TRAIN_ORDER = "order of training rows"  # in what a checkpoint says of its data
FIELDS = {"tokens_BT": "<i4", "targets_BT": "<i4", "weights_BT": "<f4", "segments_BT": "<i4"}


def valid_text_sha256(batches: Sequence[Row], mode: str, piece_lengths: np.ndarray) -> str:
    """Return the hash of held-out rows, whole batches of `held_out.valid_batches`.

    It covers every row in the order of the text: its tokens, targets, weights and documents up to
    its last token, and the bytes that all targets that count stand for.
    """
    whole = {name: np.stack([batch[name] for batch in batches]) for name in FIELDS}  # [N, B, T]
    if mode == "stream":  # row i of a batch goes on where row i of the batch before it ended
        whole = {name: x.swapaxes(0, 1) for name, x in whole.items()}
    length = whole["tokens_BT"].shape[-1]
    rows = {name: x.reshape(-1, length) for name, x in whole.items()}
    found = hash_rows(
        {name: x[i : i + 1] for name, x in rows.items()} for i in range(len(rows["tokens_BT"]))
    )
    found.update(str(target_bytes(batches, piece_lengths)).encode())
    return found.hexdigest()


def valid_tasks_sha256(tests: Iterable[tuple[Task, Sequence[Example]]]) -> str:
    """Return the hash of the test rows of synthetic tasks: the tasks, and all that a row asks."""
    found = hashlib.sha256()
    for task, examples in tests:
        found.update(repr(task).encode())
        found.update(hash_rows(map(row_of, examples)).digest())
    return found.hexdigest()


def row_of(example: Example) -> Row:
    """Return an example as `SyntheticSource` writes it, without padding."""
    used = int(np.flatnonzero(example.weights_T)[-1]) + 1
    return {
        "tokens_BT": example.tokens_T[None, :used],
        "targets_BT": example.targets_T[None, :used],
        "weights_BT": example.weights_T[None, :used],
        "segments_BT": np.ones((1, used), np.int32),
    }


def train_order_sha256(cfg: DataConfig, *, batch_size: int, align: int, seed: int) -> str:
    """Return the hash of what is trained on, and in which order.

    It covers the contents of the shards, the tokenizer and how rows are cut (``data.mode``,
    ``data.seq_len``, the alignment), or the tasks with their settings; the weights; the rows of a
    step; the numbers of the first `ORDER_ROWS` rows, in which the seed shows; and `CONTENT_ROWS`
    rows as they are read. How far a run has read is its number of steps. The padding of tasks is
    left out: a model may want longer rows.
    """
    sources, weights = open_rows(cfg, align)
    sizes = [len(source) for source in sources]
    order = batch_order(cfg, sizes, weights, seed, batch_size)
    # A shuffled number of a small set costs milliseconds, and four epochs of it show the seed.
    first = min(ORDER_ROWS, 4 * sum(sizes))
    about = {
        "sources": [describe(source) for source in sources],
        "mode": cfg.mode if cfg.documents == "apart" else cfg.documents,
        **({"loss": cfg.loss} if cfg.loss != "all" else {}),
        "weights": list(weights),
        "batch_size": batch_size,
        "rows": [int(order[i]) for i in range(first)],
    }
    reader = LocalBatches(sources, order, 1, 0, 1)
    found = hash_rows(reader[i] for i in range(CONTENT_ROWS))
    found.update(json.dumps(about, sort_keys=True).encode())
    return found.hexdigest()


def describe(source: RowSource) -> dict[str, Any]:
    """Return what a source of training rows is made of."""
    if isinstance(source, SyntheticSource):
        return {"task": repr(source.task), "seed": source.seed, "rows": source.rows}
    assert isinstance(source, PackedSource)
    return {
        "shards": [contents(shard) for shard in source.shards],
        "dtype": source.store.dtype,
        "tokenizer": source.store.tokenizer.hash,
        "seq_len": source.seq_len,
        "align": source.align,
    }


def contents(shard: Shard) -> tuple[str, ...]:
    """Return the hashes of a shard's files, of those that there are."""
    beside = (shard.symbols_sha256, shard.mask_sha256)
    return (shard.sha256, shard.offsets_sha256, *filter(None, beside))


def data_identity(cfg: DataConfig, train_order: str) -> dict[str, str]:
    """Return hashes of a run's data by what they are of; a run goes on only over the same.

    Args:
      train_order: `train_order_sha256` of the run.
    """
    if cfg.is_synthetic:
        return {"tokenizer": synthetic_identity(cfg.task), TRAIN_ORDER: train_order}
    store = open_data(cfg)
    parts: dict[str, Any] = {
        split: [(shard.segment, *contents(shard)) for shard in store.select(split, cfg.segments)]
        for split in ("train", "valid")
    }
    parts["valid"].append(sorted(store.source.get("piece_bytes", {}).items()))
    text = {
        split: hashlib.sha256(json.dumps(part).encode()).hexdigest()
        for split, part in parts.items()
    }
    return {
        "tokenizer": store.tokenizer.hash,
        "training text": text["train"],
        "held-out text": text["valid"],
        TRAIN_ORDER: train_order,
    }


def hash_rows(rows: Iterable[Row]) -> Any:
    """Return the hash object of batches of one row, each up to its last token; padding has none."""
    found = hashlib.sha256()
    for row in rows:
        used = np.flatnonzero(row["segments_BT"][0] > 0)
        for part in row_parts(row, int(used[-1]) + 1 if len(used) else 0):
            found.update(part)
    return found


def row_parts(row: Row, length: int) -> Iterator[bytes]:
    if length == 0:  # it fills a batch up
        return
    yield length.to_bytes(8, "little")
    for name, dtype in FIELDS.items():
        yield row[name][0, :length].astype(dtype).tobytes()
