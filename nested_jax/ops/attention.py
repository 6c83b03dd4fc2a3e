"""Softmax attention over a cache and the tokens of a call: full, and in a sliding window.

Both read keys in the order in which they came, so that a sequence may be split anywhere: the cache
of the calls before and the keys of this call are one sequence.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nested_jax.ops.attention_kernels import Kernel, Prefix
from nested_jax.types import Array

QUERY_BLOCKS = 4  # of `causal_attend`: 5/8 of the products; eight would save another 1/16
BLOCK_TOKENS = 64  # a call with fewer tokens a block is attended to as a whole


def attend(
    kernel: Kernel,
    q_BTHK: Array,
    k_BUGK: Array,
    v_BUGV: Array,
    mask: Array,
    scale: float,
    prefix: Prefix | None = None,
) -> Array:
    """Attend to every slot of a cache that the mask shows."""
    return kernel(q_BTHK, k_BUGK, v_BUGV, mask, scale, prefix)


def causal_attend(
    kernel: Kernel,
    q_BTHK: Array,
    k_BTGK: Array,
    v_BTGV: Array,
    mask: Array,
    scale: float,
    prefix: Prefix | None = None,
) -> Array:
    """Attend to the call's own tokens: a block of queries reads no key after its end.

    The mask [B, T, T] shows no later token, so that what is left out weighs nothing.
    """
    tokens = q_BTHK.shape[1]
    size = max(BLOCK_TOKENS, -(-tokens // QUERY_BLOCKS))
    blocks = [(start, min(start + size, tokens)) for start in range(0, tokens, size)]

    def part(start: int, end: int) -> Array:
        seen = prefix and prefix._replace(q_BTHK=prefix.q_BTHK[:, start:end])
        args = q_BTHK[:, start:end], k_BTGK[:, :end], v_BTGV[:, :end], mask[:, start:end, :end]
        return kernel(*args, scale, seen)

    parts = [part(*block) for block in blocks]
    return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def full_mask(slot_BT: Array, segment_BT: Array, slot_segment_BU: Array) -> Array:
    """True where slot u of the cache is of the token's document and not later than the token.

    `slot_BT` is the slot that the token itself takes. int32 in, bool [B, T, U] out.
    """
    slots_U = jnp.arange(slot_segment_BU.shape[1], dtype=slot_BT.dtype)
    earlier = slots_U[None, None, :] <= slot_BT[:, :, None]
    return earlier & (slot_segment_BU[:, None, :] == segment_BT[:, :, None])


def window_blocks(tokens: int, window: int) -> tuple[int, int]:
    """Return (blocks, tokens a block) by which a call of `tokens` is attended to in O(T·W)."""
    size = min(tokens, window)
    return -(-tokens // size), size


def _blocked(x: Array, blocks: int, size: int) -> Array:
    """[B, T, ...] -> [B·blocks, size, ...], zero-padded at the end."""
    pad = blocks * size - x.shape[1]
    padded = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
    return padded.reshape(x.shape[0] * blocks, size, *x.shape[2:])


def _overlapping(x: Array, blocks: int, size: int, window: int) -> Array:
    """[B, W + T, ...] -> [B·blocks, W + size, ...]: the keys that each block may see."""
    if blocks == 1:
        return x
    # More than one block means size = W: a block sees the one before it and itself.
    pieces = _blocked(x, blocks + 1, size).reshape(x.shape[0], blocks + 1, size, *x.shape[2:])
    pairs = jnp.concatenate([pieces[:, :-1], pieces[:, 1:]], axis=2)
    return pairs.reshape(x.shape[0] * blocks, window + size, *x.shape[2:])


def window_mask(segment_BT: Array, slot_segment_BW: Array) -> Array:
    """The mask of `window_attend`, [B·blocks, size, W + size]: one document, 0 <= i - j < W."""
    window = slot_segment_BW.shape[1]
    blocks, size = window_blocks(segment_BT.shape[1], window)
    query = _blocked(segment_BT, blocks, size)
    key = _overlapping(jnp.concatenate([slot_segment_BW, segment_BT], 1), blocks, size, window)
    age = (window + jnp.arange(size))[:, None] - jnp.arange(window + size)[None, :]
    near = (age >= 0) & (age < window)
    # A padded query has segment 0 and may see the empty slots: softmax over nothing is never taken.
    return near[None] & (query[:, :, None] == key[:, None, :])


def window_attend(
    kernel: Kernel,
    q_BTHK: Array,
    k_BUGK: Array,
    v_BUGV: Array,
    mask: Array,
    scale: float,
    prefix: Prefix | None = None,
) -> Array:
    """Attend to the last W tokens in O(T·W): the keys are the W of the cache, then the call's T."""
    tokens, window = q_BTHK.shape[1], k_BUGK.shape[1] - q_BTHK.shape[1]
    blocks, size = window_blocks(tokens, window)
    if prefix is not None:
        prefix = prefix._replace(q_BTHK=_blocked(prefix.q_BTHK, blocks, size))
    out = kernel(
        _blocked(q_BTHK, blocks, size),
        _overlapping(k_BUGK, blocks, size, window),
        _overlapping(v_BUGV, blocks, size, window),
        mask,
        scale,
        prefix,
    )
    return out.reshape(q_BTHK.shape[0], blocks * size, *out.shape[2:])[:, :tokens]


def last(x_BU: Array, count: int, lengths_B: Array | None, tokens: int) -> Array:
    """The `count` entries before the end of each row; its last `tokens` exist up to `lengths_B`."""
    if lengths_B is None:
        return x_BU[:, x_BU.shape[1] - count :]
    first_B = lengths_B + (x_BU.shape[1] - tokens - count)
    return jax.vmap(lambda x, i: jax.lax.dynamic_slice_in_dim(x, i, count))(x_BU, first_B)


def place(cache_BU: Array, x_BT: Array, slots_B: Array, lengths_B: Array | None) -> Array:
    """Write the tokens of each row that exist after its `slots_B` used slots."""
    rows, tokens = x_BT.shape[:2]
    offset_BT = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[None, :], (rows, tokens))
    slot_BT = slots_B[:, None] + offset_BT
    if lengths_B is not None:
        slot_BT = jnp.where(offset_BT < lengths_B[:, None], slot_BT, cache_BU.shape[1])
    row_BT = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32)[:, None], (rows, tokens))
    return cache_BU.at[row_BT, slot_BT].set(x_BT, mode="drop")
