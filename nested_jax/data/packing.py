"""Rows of ``seq_len`` tokens, cut from an aligned virtual concatenation of documents.

Each document starts at a multiple of ``align``; the gap after the document before it is padding
that exists in rows only, never on disk. Chunks of the inner loop therefore never hold two
documents. ``align=1`` is plain concatenation. Rows cut across documents, and every token is in
exactly one row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from nested_jax.data.shards import Shard, TokenStore
from nested_jax.errors import require

CACHED_SHARDS = 1024  # shards that are open at once: 16 bytes per document

Row = dict[str, np.ndarray]


class OpenShard(NamedTuple):
    """A shard mapped into memory, with its documents' places in the aligned concatenation."""

    tokens: np.ndarray  # [tokens] memmap
    offsets: np.ndarray  # [documents + 1] int64, where each document's tokens are
    starts: np.ndarray  # [documents + 1] int64, where each document starts in the aligned shard


def aligned_starts(offsets: np.ndarray, align: int) -> np.ndarray:
    """Return the start of every document, and the end of the last, when each is rounded up."""
    if align == 1:
        return offsets
    lengths = np.diff(offsets)
    return np.concatenate([[0], np.cumsum(-(-lengths // align) * align)])


def map_tokens(path: Path, dtype: str) -> np.ndarray:
    """Map a file of tokens into memory; an empty file cannot be mapped and is an empty array."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


class PackedSource:
    """A random-access source of rows over shards; see the module's docstring.

    ``source[i]`` is row i, a dict of four arrays [T] named as in types.Batch: ``tokens_BT``,
    ``targets_BT`` (int32), ``weights_BT`` (float32), ``segments_BT`` (int32). The target of a
    row's last position is the real next token, where its document has one.

    Args:
      shards: in the order of the concatenation.
      seq_len: tokens per row, a multiple of `align`.
    """

    def __init__(
        self, store: TokenStore, shards: Sequence[Shard], *, seq_len: int, align: int
    ) -> None:
        require(align >= 1, "align", align, "wants 1 token or more")
        require(
            seq_len % align == 0, "data.seq_len", seq_len, f"must be a multiple of align={align}"
        )
        self.store, self.shards = store, tuple(shards)
        self.seq_len, self.align = seq_len, align
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = Lock()
        sizes = [self._shard(i).starts[-1] for i in range(len(self.shards))]
        self._shard_starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def __len__(self) -> int:
        return int(-(-self._shard_starts[-1] // self.seq_len))

    def __repr__(self) -> str:
        return f"PackedSource({self.store.root}, rows={len(self)}, seq_len={self.seq_len})"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=Lock())

    def __getitem__(self, index: int) -> Row:
        rows = self.empty(1)
        self.fill(rows, 0, int(index))
        return {name: array[0] for name, array in rows.items()}

    def empty(self, rows: int) -> Row:
        """Return `rows` rows of padding, [B, T]."""
        shape = (rows, self.seq_len)
        pad = self.store.tokenizer.pad_id
        return {
            "tokens_BT": np.full(shape, pad, np.int32),
            "targets_BT": np.full(shape, pad, np.int32),
            "weights_BT": np.zeros(shape, np.float32),
            "segments_BT": np.zeros(shape, np.int32),
        }

    def fill(self, rows: Row, place: int, index: int) -> None:
        """Write row `index` of the source over row `place`, which is padding, of `rows`."""
        start = index * self.seq_len
        stop = min(start + self.seq_len, int(self._shard_starts[-1]))
        row = {name: array[place] for name, array in rows.items()}
        first = int(np.searchsorted(self._shard_starts, start, "right")) - 1
        document = 0
        for number in range(first, len(self.shards)):
            base = int(self._shard_starts[number])
            if base >= stop:
                break
            document = fill_row(row, self._shard(number), start - base, stop - base, document)

    def _shard(self, number: int) -> OpenShard:
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
            record = self.shards[number]
            offsets = np.fromfile(self.store.root / record.offsets_file, np.int64)
            tokens = map_tokens(self.store.root / record.file, self.store.dtype)
            shard = OpenShard(tokens, offsets, aligned_starts(offsets, self.align))
            self._open[number] = shard
            if len(self._open) > CACHED_SHARDS:
                self._open.popitem(last=False)
            return shard


class StreamSource(PackedSource):
    """Rows that continue each other: document 1 of a row is the one that the row before ended in.

    A row that begins with a document of its own numbers it 2.
    """

    def fill(self, rows: Row, place: int, index: int) -> None:
        super().fill(rows, place, index)
        if self.begins_document(index):
            segments_T = rows["segments_BT"][place]
            segments_T += segments_T > 0

    def begins_document(self, index: int) -> bool:
        """Whether the first token of row `index` is the first of its document."""
        start = index * self.seq_len
        number = int(np.searchsorted(self._shard_starts, start, "right")) - 1
        starts, place = self._shard(number).starts, start - int(self._shard_starts[number])
        return bool(starts[np.searchsorted(starts, place)] == place)


class JoinedSource(PackedSource):
    """Rows of the plain concatenation: a row is one document, every token but the last a target.

    Documents are aligned to nothing, whatever `align` says.
    """

    def __init__(
        self, store: TokenStore, shards: Sequence[Shard], *, seq_len: int, align: int
    ) -> None:
        del align
        super().__init__(store, shards, seq_len=seq_len, align=1)

    def fill(self, rows: Row, place: int, index: int) -> None:
        start, end = index * self.seq_len, int(self._shard_starts[-1])
        text = self._read(start, min(start + self.seq_len + 1, end))
        count, known = min(self.seq_len, len(text)), len(text) - 1
        rows["tokens_BT"][place, :count] = text[:count]
        rows["targets_BT"][place, :known] = text[1:]
        rows["weights_BT"][place, :known] = 1
        rows["segments_BT"][place, :count] = 1

    def _read(self, start: int, stop: int) -> np.ndarray:
        """Return the tokens of a part of the concatenation, of however many shards."""
        first = int(np.searchsorted(self._shard_starts, start, "right")) - 1
        last = int(np.searchsorted(self._shard_starts, stop, "left"))
        bases = self._shard_starts
        return np.concatenate(
            [
                self._shard(i).tokens[max(start - int(bases[i]), 0) : stop - int(bases[i])]
                for i in range(first, last)
            ]
        )


def fill_row(row: Row, shard: OpenShard, start: int, stop: int, document: int) -> int:
    """Write the documents of ``[start, stop)``, in the shard's aligned positions, into the row.

    Args:
      start: position of the row's first token; below 0 where the row began in an earlier shard.
      document: documents that the row holds already.
    Returns:
      Documents that the row holds now.
    """
    first = int(np.searchsorted(shard.starts, max(start, 0), "right")) - 1
    last = min(int(np.searchsorted(shard.starts, stop, "left")), len(shard.starts) - 1)
    for d in range(first, last):
        place, begin, end = int(shard.starts[d]), int(shard.offsets[d]), int(shard.offsets[d + 1])
        skip = max(max(start, 0) - place, 0)  # tokens of the document before this row
        take = min(end - begin - skip, stop - place - skip)
        if take <= 0:
            continue
        document += 1
        at, source = place + skip - start, begin + skip
        known = min(take, end - source - 1)  # positions whose next token is in the document
        row["tokens_BT"][at : at + take] = shard.tokens[source : source + take]
        row["targets_BT"][at : at + known] = shard.tokens[source + 1 : source + 1 + known]
        row["weights_BT"][at : at + known] = 1
        row["segments_BT"][at : at + take] = document
    return document
