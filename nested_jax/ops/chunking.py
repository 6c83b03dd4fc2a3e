"""The rows of a call, cut into chunks, each row on its own grid; scans in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np

from nested_jax.errors import require
from nested_jax.types import Array, PyTree

TreeT = TypeVar("TreeT")
Start = Literal["any", "aligned", "fresh"]


class RowOptions(TypedDict, total=False):
    """What a caller may say about the rows of a call, beside their tokens; see `Rows`."""

    lengths_B: Array | None
    starts_BT: Array | None
    start: Start


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a call: which tokens exist, where documents start, where the states stand.

    A row of length 0 keeps its state, whatever else is said about it.

    Raises:
      ValueError: an unknown `start`, lengths or starts of another shape or type.
    """

    batch: int
    tokens: int  # T
    lengths_B: Array | None = None  # int: tokens of the row that exist; None: all T
    starts_BT: Array | None = None  # bool: tokens that begin a document; None: none
    # "any"; or a promise that saves work: "aligned", every chunk grid of the states is at a
    # boundary, or "fresh", the states have read nothing.
    start: Start = "any"
    fresh_B: Array | None = None  # bool: rows that have read nothing; None: none, but see `start`

    def __post_init__(self) -> None:
        known = get_args(Start)
        require(self.start in known, "start", self.start, f"known: {', '.join(known)}")
        _check("lengths_B", self.lengths_B, np.integer, (self.batch,))
        _check("starts_BT", self.starts_BT, np.bool_, (self.batch, self.tokens))

    @classmethod
    def of(cls, x_BT: Array, **options: Unpack[RowOptions]) -> Rows:
        """Return the rows of an array [B, T, ...]."""
        return cls(x_BT.shape[0], x_BT.shape[1], **options)

    @property
    def aligned(self) -> bool:
        """Every row is promised to be at a boundary."""
        return self.start != "any"

    @property
    def count_B(self) -> Array:
        """How many tokens of each row exist, int32."""
        if self.lengths_B is None:
            return jnp.full((self.batch,), self.tokens, jnp.int32)
        return self.lengths_B.astype(jnp.int32)

    @property
    def exists_BT(self) -> Array:
        return _count(self.tokens) < self.count_B[:, None]

    def mask(self, x_BT: Array) -> Array:
        """Return x [B, T, ...] with 0 for tokens that do not exist, and so are its gradients."""
        if self.lengths_B is None:
            return x_BT
        exists = self.exists_BT.reshape(self.batch, self.tokens, *[1] * (x_BT.ndim - 2))
        return jnp.where(exists, x_BT, jnp.zeros((), x_BT.dtype))

    def start_state(self, initial: TreeT, state: TreeT) -> TreeT:
        """Return the state to start from: `initial` for the rows that have read nothing."""
        if self.start == "fresh":
            return initial
        return state if self.fresh_B is None else where_rows(self.fresh_B, initial, state)

    def keep_idle(self, after: TreeT, before: TreeT) -> TreeT:
        """Return the state after the call; a row without a token in it keeps its own."""
        return after if self.lengths_B is None else where_rows(self.lengths_B > 0, after, before)

    def phase(self, phase_B: Array) -> Array:
        """Return how far each row is past its last boundary: a document that starts is at 0."""
        if self.aligned:
            return jnp.zeros_like(phase_B)
        if self.starts_BT is None:
            return phase_B
        return jnp.where(self.starts_BT[:, 0] & (self.count_B > 0), 0, phase_B)

    def grid(self, chunk: int, phase_B: Array, *, whole: bool = False) -> ChunkGrid:
        """Lay out rows that are each `phase_B` tokens past their last boundary.

        Args:
          whole: chunks have all their slots, also those before the first token of the call.
        """
        width = chunk if whole else min(self.tokens, chunk)
        if self.aligned:
            return aligned_grid(self, chunk, width)
        return phased_grid(self, chunk, phase_B, width)


def _check(name: str, x: Any, kind: Any, shape: tuple[int, ...]) -> None:
    """Raise unless `x` is None or an array of this kind and shape."""
    if x is None:
        return
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, kind) or x.shape != shape:
        got = type(x).__name__ if dtype is None else f"{dtype}{list(x.shape)}"
        raise ValueError(f"{name}: got {got}, wants {kind.__name__}{list(shape)}")


def per_row(x_B: Array, like: Array) -> Array:
    """Append axes to one value per row, so that it broadcasts against an array with B first.

    With [1, B] against an array with B second.
    """
    return x_B.reshape(x_B.shape + (1,) * (like.ndim - x_B.ndim))


def where_rows(mask_B: Array, yes: TreeT, no: TreeT) -> TreeT:
    """Take the rows of the mask from `yes` and the others, bit for bit, from `no`."""
    return jax.tree.map(lambda a, b: jnp.where(per_row(mask_B, a), a, b), yes, no)


class ChunkGrid(NamedTuple):
    """Where the tokens of a call sit in N chunks of W slots; S = N * W.

    None stands for the trivial case (slot s holds token s, every slot a token that exists, every
    chunk complete), which costs a reshape instead of gathers and masks.
    """

    tokens: int  # T
    chunks: int  # N
    width: int  # W: slots of a chunk, at most the chunk's C tokens
    end_B: Array  # int32: tokens from the boundary before the call to its end
    token_BS: Array | None = None  # int32: the token of each slot
    slot_BT: Array | None = None  # int32: the slot of each token
    exists_BS: Array | None = None  # bool: the slot holds a token that exists
    complete_BN: Array | None = None  # bool: the row reaches the end of the chunk within this call


def aligned_grid(rows: Rows, chunk: int, width: int) -> ChunkGrid:
    """Lay out rows that all start on a boundary."""
    chunks, end_B = -(-rows.tokens // width), rows.count_B
    grid = ChunkGrid(rows.tokens, chunks, width, end_B)
    if rows.lengths_B is None and rows.tokens % chunk == 0:
        return grid
    exists_BS = _count(chunks * width) < end_B[:, None]
    return grid._replace(exists_BS=exists_BS, complete_BN=_complete(grid, chunk))


def phased_grid(rows: Rows, chunk: int, phase_B: Array, width: int) -> ChunkGrid:
    """Lay out rows that are each `phase_B` tokens past their last boundary.

    Chunks with all their slots shift every row right by its phase. A call shorter than a chunk
    meets at most one boundary, so that two chunks of T slots hold it; one token takes one slot,
    hence decoding does not pay for a chunk.
    """
    tokens, phase_B1, lengths_B1 = rows.tokens, phase_B[:, None], rows.count_B[:, None]
    if width < chunk:
        chunks = min(2, tokens)
        second_BT = _count(tokens) >= chunk - phase_B1
        slot_BT = _count(tokens) + width * second_BT.astype(jnp.int32)
        token_BS = jnp.tile(_count(tokens), (rows.batch, chunks))
        exists_BS = jnp.concatenate([~second_BT, second_BT][:chunks], axis=1)
        exists_BS = exists_BS & (token_BS < lengths_B1)
    else:
        chunks = -(-(tokens + chunk - 1) // chunk)
        slot_BT = _count(tokens) + phase_B1
        token_BS = _count(chunks * width) - phase_B1
        exists_BS = (token_BS >= 0) & (token_BS < lengths_B1)
        token_BS = jnp.clip(token_BS, 0, tokens - 1)
    grid = ChunkGrid(tokens, chunks, width, phase_B + rows.count_B, token_BS, slot_BT, exists_BS)
    return grid._replace(complete_BN=_complete(grid, chunk))


def _complete(grid: ChunkGrid, chunk: int) -> Array:
    return (_count(grid.chunks) + 1) * chunk <= grid.end_B[:, None]


def segment_grid(rows: Rows, segment: int, phase_B: Array) -> ChunkGrid:
    """Lay out rows as `phased_grid` does, but the tokens of a chunk fill its slots from the first.

    So every chunk is a call of its own, of as many tokens as it has in `exists_BS`.
    """
    tokens = rows.tokens
    width = min(tokens, segment)
    if rows.aligned and rows.lengths_B is None and tokens % segment == 0:
        return aligned_grid(rows, segment, width)
    chunks = -(-(tokens + (0 if rows.aligned else segment - 1)) // segment)
    phase_B1, lengths_B1 = phase_B[:, None], rows.count_B[:, None]
    first_BN = jnp.clip(_count(chunks) * segment - phase_B1, 0, tokens)
    end_BN = jnp.clip((_count(chunks) + 1) * segment - phase_B1, 0, lengths_B1)
    token_BNW = first_BN[:, :, None] + _count(width)[:, None, :]
    exists_BNW = token_BNW < end_BN[:, :, None]
    chunk_BT = (phase_B1 + _count(tokens)) // segment
    slot_BT = chunk_BT * width + _count(tokens) - jnp.take_along_axis(first_BN, chunk_BT, axis=1)
    return ChunkGrid(
        tokens,
        chunks,
        width,
        phase_B + rows.count_B,
        jnp.minimum(token_BNW, tokens - 1).reshape(rows.batch, -1),
        slot_BT,
        exists_BNW.reshape(rows.batch, -1),
    )


def _count(size: int) -> Array:
    return jnp.arange(size, dtype=jnp.int32)[None, :]


def to_chunks(grid: ChunkGrid, x: Array) -> Array:
    """[B, T, ...] -> [N, B, W, ...]. What lies in slots without a token is arbitrary but finite."""
    if grid.token_BS is None:
        pad = grid.chunks * grid.width - grid.tokens
        slots = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2)) if pad else x
    else:
        slots = _take(x, grid.token_BS)
    return split_slots(grid, slots)


def from_chunks(grid: ChunkGrid, x: Array) -> Array:
    """[N, B, W, ...] -> [B, T, ...]: the inverse of `to_chunks`."""
    slots = join_slots(x)
    return slots[:, : grid.tokens] if grid.slot_BT is None else _take(slots, grid.slot_BT)


def split_slots(grid: ChunkGrid, x: Array) -> Array:
    """[B, S, ...] -> [N, B, W, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], grid.chunks, grid.width, *x.shape[2:]), 1, 0)


def join_slots(x: Array) -> Array:
    """[N, B, W, ...] -> [B, S, ...]: the inverse of `split_slots`."""
    slots = jnp.moveaxis(x, 0, 1)
    return slots.reshape(slots.shape[0], -1, *slots.shape[3:])


def _take(x: Array, index_BS: Array) -> Array:
    return jax.vmap(lambda row, index_S: row[index_S])(x, index_BS)


def remat_scan(
    body: Callable[[Any, Any], tuple[Any, Any]],
    carry: PyTree,
    xs: PyTree,
    length: int | None = None,
    *,
    remat: bool = True,
    prepare: Callable[[PyTree], PyTree] | None = None,
    keep: Callable[..., Any] | None = None,
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan` whose backward pass keeps about 2 sqrt(N) carries instead of N.

    The scan is cut into groups of about sqrt(N) steps; only the carry between groups is saved, and
    a group is recomputed when its gradient is due: one more forward pass. Wrap `body` in
    `jax.checkpoint` as well where its own intermediates outweigh its carry. The compiled size does
    not grow with N: at most two copies of the body (groups, and the steps left over when no
    divisor of N is near its root).

    Args:
      prepare: maps the stacked xs of a group to those that `body` receives, before the group's scan
        and inside its checkpoint: the place for work that needs no carry and can be done for many
        steps in parallel.
      keep: a policy of `jax.checkpoint`: what a group keeps beside its carry.
    """
    steps = length if length is not None else jax.tree.leaves(xs)[0].shape[0]

    def group(carry: PyTree, xs: PyTree, size: int) -> tuple[PyTree, PyTree]:
        return jax.lax.scan(body, carry, prepare(xs) if prepare else xs, length=size)

    if not remat:
        return group(carry, xs, steps)
    size = group_size(steps)
    whole = steps - steps % size
    grouped = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), xs)
    # The scan keeps XLA from merging the recomputation with the forward pass, hence no prevent_cse.
    saved = jax.checkpoint(lambda c, x: group(c, x, size), prevent_cse=False, policy=keep)
    carry, ys = jax.lax.scan(saved, carry, grouped, length=whole // size)
    ys = jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), ys)
    if whole == steps:
        return carry, ys
    rest = jax.tree.map(lambda x: x[whole:], xs)
    last_group = jax.checkpoint(lambda c, x: group(c, x, steps - whole), policy=keep)
    carry, last = last_group(carry, rest)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, last)


def group_size(steps: int) -> int:
    """Return the divisor of `steps` nearest to its root, or the root if none is within 2x."""
    root = math.sqrt(steps)
    near = [d for d in range(1, steps + 1) if steps % d == 0 and root / 2 <= d <= root * 2]
    return min(near, key=lambda d: abs(math.log(d / root)), default=max(1, math.isqrt(steps)))
