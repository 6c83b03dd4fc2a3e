"""The input pipeline: prepared shards to batches, on ``grain.MapDataset``.

The order of rows is a pure function of (seed, epoch): a global shuffle, reseeded every epoch.
Global batch i holds the same rows in the same order however many processes share it, each of which
reads its own contiguous part; the iterator's whole state is the number of batches given out.

With ``data.mode="stream"`` nothing is shuffled: every row of the batch is one contiguous reading of
the text, and row i of a batch goes on where row i of the batch before it ended.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np

from nested_jax.config import DataConfig
from nested_jax.data.cache import Report, cache_root
from nested_jax.data.chat.store import chat_files, chat_store, describe
from nested_jax.data.mixture import open_mixture
from nested_jax.data.packing import ExampleSource, JoinedSource, PackedSource, Row, StreamSource
from nested_jax.data.shards import INDEX, Shard, TokenStore, open_store
from nested_jax.data.splits import SPLITS
from nested_jax.data.synthetic import rows as synthetic
from nested_jax.data.text.plain_text import text_files, text_store
from nested_jax.data.text.stdlib_build import stdlib_store
from nested_jax.errors import require

READ_THREADS, PREFETCH = 2, 16  # threads that read rows, rows read ahead
SOURCES: dict[str, type[PackedSource]] = {
    "rows": PackedSource,
    "stream": StreamSource,
    "examples": ExampleSource,
}


class DatasetInfo(NamedTuple):
    """What a trainer needs to know of its data."""

    vocab_size: int
    tokenizer_path: Path | None  # None: synthetic tasks, which are ids from the start
    tokenizer_sha256: str  # of synthetic tasks: the hash of their settings
    eos_id: int  # -1: there is none
    pad_id: int
    bytes_per_token: float  # UTF-8 bytes per target of the valid split, exactly
    tokens: dict[str, dict[str, int]]  # segment -> split -> tokens
    documents: dict[str, dict[str, int]]  # segment -> split -> documents
    weights: dict[str, float]  # segment -> sampling weight; {} is in proportion to tokens
    piece_byte_lengths: np.ndarray  # [vocab_size] int64, bytes that a token stands for; EOS is 0
    root: Path
    rewritten: bool = False  # some tokens stand for other text than their names


class RowSource(Protocol):
    """Rows by number: `packing.PackedSource`, `synthetic.SyntheticSource`."""

    def __len__(self) -> int: ...

    def empty(self, rows: int) -> Row: ...

    def fill(self, rows: Row, place: int, index: int) -> None: ...


def ignore(message: str) -> None:
    """Report nothing."""


def open_data(cfg: DataConfig, report: Report = ignore) -> TokenStore:
    """Return the shards of ``data.source``, building those of text where they are missing.

    Raises:
      ValueError: a source that is none, with where it was looked for; damaged or foreign shards;
        prepared shards of another kind of tokenizer than ``data.tokenizer``.
    """
    require(bool(cfg.source), "data.source", cfg.source, "wants 'stdlib', a folder or a file")
    path, cache = Path(cfg.source).expanduser(), cache_root(cfg.cache_dir)
    if cfg.source == "stdlib":
        store = stdlib_store(cache, cfg.vocab_size, report, tokenizer=cfg.tokenizer)
    elif path.exists() and chat_files(path):
        want = "wants examples, which are not cut: the source is JSON lines of conversations"
        require(cfg.mode == "examples", "data.mode", cfg.mode, want)
        return chat_store(cache, path, cfg.chat, report)  # with the tokenizer of data.chat
    elif path.exists() and not (path / INDEX).is_file() and text_files(path):
        store = text_store(cache, path, cfg.tokenizer, cfg.vocab_size, report)
    elif path.is_dir():
        store = open_store(path)
    elif path.is_file():
        store = open_mixture(path)
    else:
        raise ValueError(
            f"data.source={cfg.source!r}: neither 'stdlib', nor a folder with an {INDEX}, nor "
            f"plain text, nor the JSON of a mixture (looked for {path.absolute()}); prepare one "
            "with `python -m nested_jax.data full --out data/full`, or take the embedded text with "
            "--config.data.source=stdlib"
        )
    require(
        store.tokenizer.kind == cfg.tokenizer,
        "data.tokenizer",
        cfg.tokenizer,
        f"the shards of {store.root} were written with {store.tokenizer.kind!r}",
    )
    return store


def prepare(cfg: DataConfig, report: Report = ignore) -> DatasetInfo:
    """Build or find the data, validate them, and say what they are."""
    if cfg.is_synthetic:
        return describe_tasks(cfg)
    store = open_data(cfg, report)
    segments = cfg.segments or store.segments
    valid = store.select("valid", segments)
    if cfg.mode == "examples":
        report(describe(store, cfg.seq_len))
    targets = sum(shard.tokens - shard.documents for shard in valid)
    require(targets > 0, "data.segments", segments, f"{store.root} has no valid split of them")
    return DatasetInfo(
        vocab_size=store.tokenizer.vocab_size,
        tokenizer_path=store.tokenizer_path,
        tokenizer_sha256=store.tokenizer.hash,
        eos_id=store.tokenizer.eos_id,
        pad_id=store.tokenizer.pad_id,
        bytes_per_token=sum(shard.target_bytes for shard in valid) / targets,
        tokens=totals(store, segments, "tokens"),
        documents=totals(store, segments, "documents"),
        weights=dict(zip(segments, segment_weights(cfg, store, segments), strict=False)),
        piece_byte_lengths=store.piece_byte_lengths,
        root=store.root,
        rewritten=bool(store.source.get("piece_bytes")) or any(s.symbols for s in store.shards),
    )


def describe_tasks(cfg: DataConfig) -> DatasetInfo:
    vocab_size = synthetic.symbols(cfg.task)
    synthetic.train_sources(cfg.task, cfg.seq_len)  # raises where a row is too short for its task
    return DatasetInfo(
        vocab_size=vocab_size,
        tokenizer_path=None,
        tokenizer_sha256=synthetic.identity(cfg.task),
        eos_id=-1,
        pad_id=0,
        bytes_per_token=0.0,
        tokens={},
        documents={spec: {"train": cfg.task.rows} for spec in cfg.task.train},
        weights={},
        piece_byte_lengths=np.zeros(vocab_size, np.int64),
        root=Path(),
    )


def totals(store: TokenStore, segments: Sequence[str], field: str) -> dict[str, dict[str, int]]:
    return {
        name: {
            split: sum(getattr(shard, field) for shard in store.select(split, (name,)))
            for split in SPLITS
        }
        for name in segments
    }


@dataclass(frozen=True)
class LocalBatches:
    """A random-access source of one process's share of every global batch: a contiguous part."""

    sources: tuple[RowSource, ...]
    order: Any  # endless row numbers, by index; the rows of the first source come first
    batch_size: int  # rows of the global batch
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return len(self.order) // self.batch_size

    def __getitem__(self, index: int) -> Row:
        rows = self.batch_size // self.process_count
        batch = self.sources[0].empty(rows)
        first = int(index) * self.batch_size + self.process_index * rows
        for place in range(rows):
            number = self.order[first + place]
            for source in self.sources:
                if number < len(source):
                    source.fill(batch, place, number)
                    break
                number -= len(source)
        return batch


@dataclass(frozen=True)
class StreamOrder:
    """The endless order of row numbers in which each row of the batch reads on where it ended.

    Row i of the batch begins at i / batch of the text, goes on into what row i + 1 began with, and
    at the end of the text goes on at its beginning.
    """

    rows: int  # of the source
    batch_size: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, place: int) -> int:
        step, row = divmod(place, self.batch_size)
        return (row * self.rows // self.batch_size + step) % self.rows


class BatchIterator(Iterator[Row]):
    """Endless batches of packed rows; numpy dicts with the four fields of ``types.Batch``."""

    def __init__(self, grain_iterator: grain.DatasetIterator) -> None:
        self.grain_iterator = grain_iterator  # for checkpoint handlers that know grain

    def __next__(self) -> Row:
        return next(self.grain_iterator)

    def get_state(self) -> dict[str, Any]:
        """Return ``{"next_index": n}``: the number of batches given out."""
        return self.grain_iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on after the batches that `state` has counted, on any number of processes."""
        self.grain_iterator.set_state(state)


def make_train_iterator(
    cfg: DataConfig,
    *,
    batch_size: int,
    align: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Return the endless training batches of one process.

    Args:
      batch_size: rows of the global batch, a multiple of `process_count`.
      align: documents start at its multiples.
    Raises:
      ValueError: data that are missing or damaged, an unknown segment, sizes that do not divide.
    """
    check_processes(batch_size, process_index, process_count)
    sources, weights = open_rows(cfg, align)
    order = batch_order(cfg, [len(source) for source in sources], weights, seed, batch_size)
    local = LocalBatches(sources, order, batch_size, process_index, process_count)
    batches = grain.MapDataset.source(local)
    options = grain.ReadOptions(
        num_threads=READ_THREADS,
        # grain wants at least one batch ahead per thread
        prefetch_buffer_size=max(READ_THREADS, PREFETCH * process_count // batch_size),
    )
    return BatchIterator(iter(batches.to_iter_dataset(options)))


def open_rows(cfg: DataConfig, align: int) -> tuple[tuple[RowSource, ...], tuple[float, ...]]:
    """Return the sources of training rows and their weights; () is one shuffle over all of them."""
    if cfg.is_synthetic:
        tasks = synthetic.train_sources(cfg.task, cfg.seq_len)
        return tasks, cfg.weights or (1.0,) * len(tasks)
    store = open_data(cfg)
    segments = cfg.segments or store.segments
    weights = segment_weights(cfg, store, segments)
    groups = [(s,) for s in segments] if weights else [segments]
    return train_sources(store, cfg, groups, align), weights


def segment_weights(
    cfg: DataConfig, store: TokenStore, segments: Sequence[str]
) -> tuple[float, ...]:
    """Return the sampling weight of each segment; () is one shuffle over all of them."""
    return cfg.weights or tuple(store.weights[s] for s in segments if store.weights)


def train_sources(
    store: TokenStore, cfg: DataConfig, groups: Sequence[Sequence[str]], align: int
) -> tuple[PackedSource, ...]:
    """Return one source of training rows for each group of segments."""
    sources = []
    for group in groups:
        shards = store.select("train", group)
        source = source_of(store, shards, cfg, align)
        require(len(source) > 0, "data.segments", group, f"{store.root} has no train split of them")
        sources.append(source)
    return tuple(sources)


def source_of(
    store: TokenStore, shards: Sequence[Shard], cfg: DataConfig, align: int
) -> PackedSource:
    """Return the rows that are cut from shards as ``data.mode`` and ``data.loss`` say."""
    masked = all(shard.mask_sha256 for shard in shards)
    want = f"the shards of {store.root} do not say what an assistant wrote; wants 'all'"
    require(cfg.loss == "all" or masked, "data.loss", cfg.loss, want)
    kind = JoinedSource if cfg.documents == "joined" else SOURCES[cfg.mode]
    return kind(store, shards, seq_len=cfg.seq_len, align=align, loss=cfg.loss)


def batch_order(
    cfg: DataConfig, sizes: Sequence[int], weights: Sequence[float], seed: int, batch_size: int
) -> Any:
    """Return the endless order of row numbers that ``data.mode`` asks for; arguments as below.

    Raises:
      ValueError: a stream over parts that are mixed by weight, or with fewer rows of text than rows
        of a batch.
    """
    if cfg.mode != "stream":
        return row_order(sizes, weights, seed)
    require(
        not weights,
        "data.mode",
        cfg.mode,
        "reads the text in its own order; weights of segments want data.mode='rows'",
    )
    require(
        sizes[0] >= batch_size,
        "train.batch_size",
        batch_size,
        f"the text has {sizes[0]} rows of data.seq_len={cfg.seq_len}; a stream wants no more",
    )
    return StreamOrder(sizes[0], batch_size)


def row_order(sizes: Sequence[int], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """Return the endless global order of row numbers; part i holds ``sizes[i]`` of them.

    Each part is shuffled by itself, differently in every epoch of it, and the parts interleave in
    proportion to `weights`. One part without weights: an epoch holds every row once.
    """
    starts = np.concatenate([[0], np.cumsum(sizes)])
    parts = [
        grain.MapDataset.range(int(start), int(start) + size)
        .seed(derived_seed(seed, number))
        .shuffle()
        .repeat()
        for number, (start, size) in enumerate(zip(starts, sizes, strict=False))
    ]
    return grain.MapDataset.mix(parts, weights=list(weights)) if weights else parts[0]


def derived_seed(seed: int, number: int) -> int:
    """Return the seed of a mixture's part: different for every (run seed, part)."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def check_processes(batch_size: int, process_index: int, process_count: int) -> None:
    require(
        0 <= process_index < process_count,
        "process_index",
        process_index,
        f"wants an index below process_count={process_count}",
    )
    require(
        batch_size >= 1 and batch_size % process_count == 0,
        "train.batch_size",
        batch_size,
        f"must be a multiple of the {process_count} processes",
    )
