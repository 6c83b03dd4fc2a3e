"""Lay the tokens of a call on the chunks of their rows, behind the chunk that each has open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.models.state import Cursor, OpenChunk, State
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


@dataclass(frozen=True)
class Grid:
    """Where the tokens of a call lie on the chunks of their rows; each row has its own phase."""

    tokens: int
    chunk: int
    offset_B: Array | None  # tokens of the open chunk before the call's; None: all rows at 0, full
    total_B: Array | None  # tokens on the grid, those of the open chunk included

    def back(self, x_NBC: Array) -> Array:
        """[N, B, C] -> [B, T]: the values of the call's own tokens."""
        x_BS = _slots(x_NBC)
        if self.offset_B is None:
            return x_BS
        slot_BT = self.offset_B[:, None] + jnp.arange(self.tokens, dtype=jnp.int32)[None, :]
        return jnp.take_along_axis(x_BS, slot_BT, axis=1)

    def open_chunk(self, old: OpenChunk, tokens: Tokens, boundary: Cursor) -> OpenChunk:
        """Return the chunk that the call leaves open; slots without a token are 0."""
        if self.offset_B is None or self.total_B is None:
            return jax.tree.map(jnp.zeros_like, old)._replace(boundary=boundary)
        count_B = self.total_B % self.chunk
        first_B = self.total_B - count_B
        used_BC = jnp.arange(old.targets_BC.shape[1], dtype=jnp.int32)[None, :] < count_B[:, None]

        def tail(x_NBC: Array) -> Array:
            x_BS = _slots(x_NBC)
            pad = [(0, 0), (0, used_BC.shape[1]), *[(0, 0)] * (x_BS.ndim - 2)]
            cut = jax.vmap(lambda x, i: jax.lax.dynamic_slice_in_dim(x, i, used_BC.shape[1]))
            x_BC = cut(jnp.pad(x_BS, pad), first_B)
            used = used_BC.reshape(*used_BC.shape, *[1] * (x_BC.ndim - 2))
            return jnp.where(used, x_BC, jnp.zeros_like(x_BC))

        assert tokens.starts_BT is not None
        return OpenChunk(
            boundary,
            tail(tokens.x_BTD),
            tail(tokens.targets_BT),
            tail(tokens.weights_BT),
            tail(tokens.starts_BT)[:, 0],
            count_B,
        )


def _slots(x_NBC: Array) -> Array:
    """[N, B, C, ...] -> [B, N·C, ...]."""
    x_BNC = jnp.moveaxis(x_NBC, 0, 1)
    return x_BNC.reshape(x_BNC.shape[0], -1, *x_BNC.shape[3:])


def _chunks(x_BS: Array, chunk: int) -> Array:
    """[B, N·C, ...] -> [N, B, C, ...]."""
    return jnp.moveaxis(x_BS.reshape(x_BS.shape[0], -1, chunk, *x_BS.shape[2:]), 1, 0)


def lay_out(
    chunk: int, state: State, tokens: Tokens, lengths_B: Array | None, origin: str
) -> tuple[Grid, Chunk]:
    """Lay a call's tokens on chunks, behind those of the open chunk, which are read again."""
    batch, count = tokens.weights_BT.shape
    if origin != "any" and lengths_B is None and count % chunk == 0:
        chunks = Chunk(jax.tree.map(lambda x: _chunks(x, chunk), tokens), None)
        return Grid(count, chunk, None, None), chunks
    assert isinstance(state.open, OpenChunk)
    offset_B = state.open.count_B
    total_B = offset_B + (jnp.full((batch,), count, jnp.int32) if lengths_B is None else lengths_B)
    number = -(-(count + (chunk - 1 if origin == "any" else 0)) // chunk)
    slot_BS = jnp.arange(number * chunk, dtype=jnp.int32)[None, :]
    new_BS = chunk + jnp.clip(slot_BS - offset_B[:, None], 0, count - 1)
    index_BS = jnp.where(slot_BS < offset_B[:, None], slot_BS, new_BS)
    exists_BS = slot_BS < total_B[:, None]

    def join(old_BC: Array, new_BT: Array) -> Array:
        both = jnp.concatenate([old_BC[:, :chunk], new_BT.astype(old_BC.dtype)], axis=1)
        return jax.vmap(lambda x, i: x[i])(both, index_BS)

    starts_BT = tokens.starts_BT
    if starts_BT is None:
        starts_BT = jnp.zeros((batch, count), jnp.bool_)
    first_BC = jnp.zeros((batch, chunk), jnp.bool_).at[:, 0].set(state.open.start_B)
    laid = Tokens(
        join(state.open.x_BCD, tokens.x_BTD),
        join(state.open.targets_BC, tokens.targets_BT),
        join(state.open.weights_BC, tokens.weights_BT) * exists_BS.astype(jnp.float32),
        join(first_BC, starts_BT) & exists_BS,
    )
    chunk_N = jnp.arange(number, dtype=jnp.int32)[:, None]
    lengths_NB = jnp.clip(total_B[None, :] - chunk_N * chunk, 0, chunk)
    chunks = Chunk(jax.tree.map(lambda x: _chunks(x, chunk), laid), lengths_NB)
    return Grid(count, chunk, offset_B, total_B), chunks
