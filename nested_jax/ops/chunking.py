"""Cut rows of tokens into chunks, each row on its own grid; scan over them in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.types import Array, PyTree


class ChunkGrid(NamedTuple):
    """Where the tokens of a call sit in N chunks of W slots; S = N * W.

    None stands for the trivial case (slot s holds token s, every slot a token that exists, every
    chunk complete), which costs a reshape instead of gathers and masks.
    """

    tokens: int  # T
    chunks: int  # N
    width: int  # W: slots of a chunk, at most the chunk's C tokens
    token_BS: Array | None  # int32: the token of each slot
    slot_BT: Array | None  # int32: the slot of each token
    exists_BS: Array | None  # bool: the slot holds a token that exists
    complete_BN: Array | None  # bool: the row reaches the end of the chunk within this call


def aligned_grid(batch: int, tokens: int, chunk: int, lengths_B: Array | None) -> ChunkGrid:
    """Lay out rows that all start on a boundary and have `lengths_B` tokens each (None: all)."""
    width = min(tokens, chunk)
    chunks = -(-tokens // width)
    if lengths_B is None and tokens % chunk == 0:
        return ChunkGrid(tokens, chunks, width, None, None, None, None)
    reached_B = jnp.full((batch,), tokens, jnp.int32) if lengths_B is None else lengths_B
    exists_BS = _count(chunks * width) < reached_B[:, None]
    complete_BN = (_count(chunks) + 1) * chunk <= reached_B[:, None]
    return ChunkGrid(tokens, chunks, width, None, None, exists_BS, complete_BN)


def phased_grid(tokens: int, chunk: int, phase_B: Array, lengths_B: Array | None) -> ChunkGrid:
    """Lay out rows that are each `phase_B` tokens past their last boundary.

    A long call shifts every row right by its phase. A call shorter than a chunk meets at most one
    boundary, so that two chunks of T slots hold it; one token takes one slot, hence decoding does
    not pay for a chunk.
    """
    phase_B1 = phase_B[:, None]
    lengths_B1 = jnp.full_like(phase_B1, tokens) if lengths_B is None else lengths_B[:, None]
    width = min(tokens, chunk)
    if tokens < chunk:
        chunks = min(2, tokens)
        second_BT = _count(tokens) >= chunk - phase_B1
        slot_BT = _count(tokens) + width * second_BT.astype(jnp.int32)
        token_BS = jnp.tile(_count(tokens), (phase_B.shape[0], chunks))
        exists_BS = jnp.concatenate([~second_BT, second_BT][:chunks], axis=1)
        exists_BS = exists_BS & (token_BS < lengths_B1)
    else:
        chunks = -(-(tokens + chunk - 1) // chunk)
        slot_BT = _count(tokens) + phase_B1
        token_BS = _count(chunks * width) - phase_B1
        exists_BS = (token_BS >= 0) & (token_BS < lengths_B1)
        token_BS = jnp.clip(token_BS, 0, tokens - 1)
    complete_BN = (_count(chunks) + 1) * chunk <= phase_B1 + lengths_B1
    return ChunkGrid(tokens, chunks, width, token_BS, slot_BT, exists_BS, complete_BN)


def segment_grid(
    tokens: int, segment: int, phase_B: Array, lengths_B: Array | None, *, aligned: bool
) -> ChunkGrid:
    """Lay out rows as `phased_grid` does, but the tokens of a chunk fill its slots from the first.

    So every chunk is a call of its own, of as many tokens as it has in `exists_BS`.

    Args:
      aligned: the caller's promise that every phase is 0.
    """
    if aligned and lengths_B is None and tokens % segment == 0:
        return aligned_grid(phase_B.shape[0], tokens, segment, None)
    width = min(tokens, segment)
    chunks = -(-(tokens + (0 if aligned else segment - 1)) // segment)
    phase_B1 = phase_B[:, None]
    lengths_B1 = jnp.full_like(phase_B1, tokens) if lengths_B is None else lengths_B[:, None]
    first_BN = jnp.clip(_count(chunks) * segment - phase_B1, 0, tokens)
    behind_BN = jnp.clip((_count(chunks) + 1) * segment - phase_B1, 0, lengths_B1)
    token_BNW = first_BN[:, :, None] + _count(width)[:, None, :]
    exists_BNW = token_BNW < behind_BN[:, :, None]
    chunk_BT = (phase_B1 + _count(tokens)) // segment
    slot_BT = chunk_BT * width + _count(tokens) - jnp.take_along_axis(first_BN, chunk_BT, axis=1)
    return ChunkGrid(
        tokens,
        chunks,
        width,
        jnp.minimum(token_BNW, tokens - 1).reshape(phase_B.shape[0], -1),
        slot_BT,
        exists_BNW.reshape(phase_B.shape[0], -1),
        None,
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
    slots = jnp.moveaxis(x, 0, 1)
    slots = slots.reshape(slots.shape[0], grid.chunks * grid.width, *x.shape[3:])
    return slots[:, : grid.tokens] if grid.slot_BT is None else _take(slots, grid.slot_BT)


def split_slots(grid: ChunkGrid, x: Array) -> Array:
    """[B, S, ...] -> [N, B, W, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], grid.chunks, grid.width, *x.shape[2:]), 1, 0)


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
    saved = jax.checkpoint(lambda c, x: group(c, x, size), prevent_cse=False)
    carry, ys = jax.lax.scan(saved, carry, grouped, length=whole // size)
    ys = jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), ys)
    if whole == steps:
        return carry, ys
    rest = jax.tree.map(lambda x: x[whole:], xs)
    carry, last = jax.checkpoint(lambda c, x: group(c, x, steps - whole))(carry, rest)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, last)


def group_size(steps: int) -> int:
    """Return the divisor of `steps` nearest to its root, or the root if none is within 2x."""
    root = math.sqrt(steps)
    near = [d for d in range(1, steps + 1) if steps % d == 0 and root / 2 <= d <= root * 2]
    return min(near, key=lambda d: abs(math.log(d / root)), default=max(1, math.isqrt(steps)))
