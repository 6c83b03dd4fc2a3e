"""Lay the tokens of a call on the chunks of their rows, after those of the chunk that is open."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.models.state import OpenChunk, StreamPosition
from nested_jax.ops.chunking import ChunkGrid, join_slots, to_chunks
from nested_jax.types import Array


class Tokens(NamedTuple):
    """Tokens of rows, [B, T, ...], or laid on the chunk grid, [N, B, C, ...]."""

    x_BTD: Array  # what the first taught CMS reads
    targets_BT: Array
    weights_BT: Array
    starts_BT: Array | None


class Chunk(NamedTuple):
    """One step of the scan."""

    tokens: Tokens
    lengths_B: Array | None  # tokens that exist; None: all C
    last_B: Array | None = None  # bool, the next chunk begins a document; None: none does


def lay_out(grid: ChunkGrid, held: OpenChunk, tokens: Tokens) -> Chunk:
    """Return the chunks of the grid; the tokens of the open chunk come first and are read again."""
    if grid.exists_BS is None:
        laid = jax.tree.map(partial(to_chunks, grid), tokens)
        return Chunk(laid, None, _last(laid.starts_BT))
    size, starts_BT = grid.width, tokens.starts_BT
    if starts_BT is None:
        starts_BT = jnp.zeros(tokens.weights_BT.shape, jnp.bool_)
    slot_N1C = jnp.arange(grid.chunks * size, dtype=jnp.int32).reshape(-1, 1, size)
    held_NBC = slot_N1C < held.count_B[None, :, None]
    exists_NBC = slot_N1C < grid.end_B[None, :, None]

    def join(old_BC: Array, new_BT: Array) -> Array:
        new_NBC = to_chunks(grid, new_BT.astype(old_BC.dtype))
        was = held_NBC[0].reshape(*held_NBC[0].shape, *[1] * (old_BC.ndim - 2))
        return new_NBC.at[0].set(jnp.where(was, old_BC[:, :size], new_NBC[0]))

    laid = Tokens(
        join(held.x_BCD, tokens.x_BTD),
        join(held.targets_BC, tokens.targets_BT),
        join(held.weights_BC, tokens.weights_BT) * exists_NBC.astype(jnp.float32),
        join(first_of(held), starts_BT) & exists_NBC,
    )
    lengths_NB = jnp.sum(exists_NBC, axis=-1, dtype=jnp.int32)
    return Chunk(laid, lengths_NB, _last(laid.starts_BT))


def _last(starts_NBC: Array | None) -> Array | None:
    """Return which chunks come right before a document of the same call, [N, B]."""
    if starts_NBC is None:
        return None
    begins_NB = starts_NBC[:, :, 0]
    return jnp.concatenate([begins_NB[1:], jnp.zeros_like(begins_NB[:1])])


def held_chunk(held: OpenChunk, size: int) -> Chunk:
    """Return the open chunk itself, as one of `size` slots."""
    parts = held.x_BCD, held.targets_BC, held.weights_BC, first_of(held)
    return Chunk(Tokens(*(x[:, :size] for x in parts)), held.count_B)


def first_of(held: OpenChunk) -> Array:
    """Return whether a document starts at each slot of the open chunk, bool [B, C]."""
    return jnp.zeros(held.weights_BC.shape, jnp.bool_).at[:, 0].set(held.start_B)


def leave_open(
    grid: ChunkGrid, held: OpenChunk, chunks: Chunk, boundary: StreamPosition
) -> OpenChunk:
    """Return the chunk that the call leaves open; slots without a token are 0."""
    if chunks.lengths_B is None:
        return jax.tree.map(jnp.zeros_like, held)._replace(boundary=boundary)
    count_B = grid.end_B % grid.width
    first_B, room = grid.end_B - count_B, held.targets_BC.shape[1]
    used_BC = jnp.arange(room, dtype=jnp.int32)[None, :] < count_B[:, None]

    def tail(x_NBC: Array) -> Array:
        x_BS = join_slots(x_NBC)
        padded = jnp.pad(x_BS, [(0, 0), (0, room), *[(0, 0)] * (x_BS.ndim - 2)])
        cut = jax.vmap(lambda x, i: jax.lax.dynamic_slice_in_dim(x, i, room))
        used = used_BC.reshape(*used_BC.shape, *[1] * (x_BS.ndim - 2))
        return jnp.where(used, cut(padded, first_B), jnp.zeros((), x_BS.dtype))

    x_BCD, targets_BC, weights_BC, starts_BC = jax.tree.map(tail, chunks.tokens)
    return OpenChunk(boundary, x_BCD, targets_BC, weights_BC, starts_BC[:, 0], count_B)
