"""Rows of ``seq_len`` tokens, cut from an aligned virtual concatenation of documents.

Each document starts at a multiple of ``align``; the gap after the document before it is padding
that exists in rows only, never on disk. Chunks of the inner loop therefore never hold two
documents. ``align=1`` is plain concatenation. Rows cut across documents, and every token is in
exactly one row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from nested_jax.data.shards import Shard, TokenStore
from nested_jax.errors import require

CACHED_SHARDS = 1024  # shards that are open at once: 16 bytes per document
OPEN_ROWS = 64  # rows of examples that still take some
PACK_SEED = 20_251_130  # of the order in which examples are packed, which is shuffled once

Row = dict[str, np.ndarray]


class OpenShard(NamedTuple):
    """A shard mapped into memory, with its documents' places in the aligned concatenation."""

    tokens: np.ndarray  # [tokens] memmap
    offsets: np.ndarray  # [documents + 1] int64, where each document's tokens are
    starts: np.ndarray  # [documents + 1] int64, where each document starts in the aligned shard
    extra: np.ndarray  # [symbols, 2] int64: places, and bytes beyond those of the piece there
    mask: np.ndarray | None  # [tokens] uint8, 1 where a token is learned; None is everywhere


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
      loss: ``assistant`` weighs what the masks of the shards leave out with 0.
    """

    def __init__(
        self,
        store: TokenStore,
        shards: Sequence[Shard],
        *,
        seq_len: int,
        align: int,
        loss: str = "all",
    ) -> None:
        require(align >= 1, "align", align, "wants 1 token or more")
        require(
            seq_len % align == 0, "data.seq_len", seq_len, f"must be a multiple of align={align}"
        )
        self.store, self.shards = store, tuple(shards)
        self.seq_len, self.align, self.loss = seq_len, align, loss
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
            extra = np.zeros((0, 2), np.int64)
            if record.symbols:
                extra = np.fromfile(self.store.root / record.named(".sym"), np.int64).reshape(-1, 2)
            mask = None
            if record.mask_sha256 and self.loss == "assistant":
                mask = map_tokens(self.store.root / record.named(".mask"), "uint8")
            shard = OpenShard(tokens, offsets, aligned_starts(offsets, self.align), extra, mask)
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

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "align": 1})

    def fill(self, rows: Row, place: int, index: int) -> None:
        start, end = index * self.seq_len, int(self._shard_starts[-1])
        text = self._read(start, min(start + self.seq_len + 1, end))
        count, known = min(self.seq_len, len(text)), len(text) - 1
        rows["tokens_BT"][place, :count] = text[:count]
        rows["targets_BT"][place, :known] = text[1:]
        rows["weights_BT"][place, :known] = 1
        rows["segments_BT"][place, :count] = 1
        if "extra_BT" in rows:
            for i in range(len(self.shards)):
                extra, base = self._shard(i).extra, int(self._shard_starts[i]) - start - 1
                at = extra[:, 0] + base  # of the position whose target a token is
                inside = (at >= 0) & (at < known)
                rows["extra_BT"][place, at[inside]] = extra[inside, 1]

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


class ExampleSource(PackedSource):
    """Rows of whole documents, as many as fit; one longer than a row loses its end.

    Which documents share a row is a function of their lengths alone (`packed`).
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        offsets = [self._shard(i).offsets for i in range(len(self.shards))]
        sizes = np.concatenate([np.diff(x) for x in offsets] or [np.zeros(0, np.int64)])
        self._first = np.concatenate([[0], np.cumsum([len(x) - 1 for x in offsets])]).astype(int)
        self._rows = packed(sizes.tobytes(), self.seq_len, self.align)

    def __len__(self) -> int:
        return len(self._rows)

    def fill(self, rows: Row, place: int, index: int) -> None:
        row, at = {name: array[place] for name, array in rows.items()}, 0
        for number, document in enumerate(self._rows[index], 1):
            part = int(np.searchsorted(self._first, document, "right")) - 1
            shard, d = self._shard(part), int(document - self._first[part])
            size = int(min(shard.offsets[d + 1] - shard.offsets[d], self.seq_len - at))
            write_document(row, shard, d, at=at, skip=0, take=size, number=number)
            at += -(-size // self.align) * self.align


@lru_cache(8)
def packed(sizes: bytes, seq_len: int, align: int) -> list[list[int]]:
    """Return the documents of every row: each goes into the first of the open rows that has room.

    Args:
      sizes: int64 tokens of every document, as bytes.
    """
    lengths = np.minimum(np.frombuffer(sizes, np.int64), seq_len)
    lengths = -(-lengths // align) * align
    rows: list[list[int]] = []
    free: dict[int, int] = {}  # row -> tokens that are left; rows that are still open
    for document in np.random.default_rng(PACK_SEED).permutation(len(lengths)).tolist():
        size = int(lengths[document])
        row = next((row for row, left in free.items() if left >= size), None)
        if row is None:
            row = len(rows)
            rows.append([])
            free[row] = seq_len
            if len(free) > OPEN_ROWS:
                free.pop(min(free, key=free.__getitem__))
        rows[row].append(document)
        free[row] = free.get(row, seq_len) - size
    return rows


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
        write_document(
            row, shard, d, at=place + skip - start, skip=skip, take=take, number=document
        )
    return document


def write_document(
    row: Row, shard: OpenShard, d: int, *, at: int, skip: int, take: int, number: int
) -> None:
    """Write `take` tokens of document `d`, after its first `skip`, into the row from place `at`."""
    begin, end = int(shard.offsets[d]), int(shard.offsets[d + 1])
    source = begin + skip
    known = min(take, end - source - 1)  # positions whose next token is in the document
    row["tokens_BT"][at : at + take] = shard.tokens[source : source + take]
    row["targets_BT"][at : at + known] = shard.tokens[source + 1 : source + 1 + known]
    learned = 1 if shard.mask is None else shard.mask[source + 1 : source + 1 + known]
    row["weights_BT"][at : at + known] = learned
    row["segments_BT"][at : at + take] = number
    if "extra_BT" in row:
        low, high = np.searchsorted(shard.extra[:, 0], (source + 1, source + 1 + known))
        places = shard.extra[low:high, 0] - (source + 1) + at
        row["extra_BT"][places] = shard.extra[low:high, 1]
