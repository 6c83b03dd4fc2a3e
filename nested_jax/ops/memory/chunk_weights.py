"""The scalars of a chunk-parallel memory: how every token's write weighs in every later memory.

Unrolling W_t = a_t W_{t-1} + S_t - eps_t u_t e_t^T and S_t = mu_t S_{t-1} - eta_t x_t d_t^T over
the tokens of a chunk gives, for any matrix of the memory,

    W_t = (prod a) W_0 + (sum ..) S_0 - sum_s E_ts eta_s x_s d_s^T - sum_s D_ts eps_s u_s e_s^T

    D_ts = prod_{s < r <= t} a_r    P_ts = prod_{s < r <= t} mu_r    E = D P (no momentum: E = D)

(x: inputs, d: deltas at the anchor; u, e: direction and content of what a delta rule erases). D, P
and E depend on the gates only: they serve all matrices, and all chunks are prepared in parallel.
All arrays here are of one head of one chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.precision import full_precision
from nested_jax.types import Array


class ChunkGates(NamedTuple):
    """The gates of the slots of a chunk. A slot without a token has rate 0, keep 1, momentum 1."""

    rate_C: Array
    keep_C: Array
    momentum_C: Array | None
    live_C: Array | None  # 1 where the slot holds a token; None: everywhere
    start_C: Array | None  # 1 where the token finds a fresh memory; None: nowhere
    erase_C: Array | None = None  # rate of erasing, 0 without a token; None: rate_C


class Mix(NamedTuple):
    """Memories as mixtures of what they are made of, one row a memory.

    `sources` has one coefficient vector for each source matrix: fast, then momentum if the spec has
    it, then the same of the fresh memory if documents may start inside the chunk.
    """

    sources: tuple[Array | None, ...]  # [R] each; None is 0
    grad_RC: Array  # weight of -x_s d_s^T: E_ts eta_s
    erase_RC: Array | None  # weight of -u_s e_s^T: D_ts epsilon_s


class EndMix(NamedTuple):
    """The one memory that a chunk leaves: a row of a `Mix`."""

    sources: tuple[Array | None, ...]  # scalars
    grad_C: Array
    erase_C: Array | None


class ChunkWeights(NamedTuple):
    after: Mix  # row t: W_t
    before: Mix  # row t: the memory that token t finds, W_{t-1} or a fresh one
    end: EndMix  # the memory after the chunk
    end_momentum: EndMix | None  # its momentum


def gate_products(gate_C: Array) -> Array:
    """Return P [C, C] with P_ts = prod_{s < r <= t} gate_r for s <= t and 0 above the diagonal."""
    if gate_C.shape[0] == 1:
        # Empty products, a constant: a custom derivative of it fails under vmap (jax 0.10).
        return jnp.ones((1, 1), gate_C.dtype)
    return _gate_products(gate_C)


@jax.custom_jvp
def _gate_products(gate_C: Array) -> Array:
    """Return P [C, C] with P_ts = prod_{s < r <= t} gate_r for s <= t and 0 above the diagonal.

    Formed as products, not as exp of differences of log sums: exact where a gate is 0, in value and
    in gradient, and 6 times more accurate in float32 (7e-7 against 4e-6 relative at C = 64).
    Factors in [0, 1] cannot overflow. Blocks are joined in pairs: below the diagonal, a pair is the
    outer product of the later block's prefix products and the earlier one's suffix products.
    """
    size = gate_C.shape[0]
    padding = (1 << (size - 1).bit_length()) - size
    prefix_XM = jnp.pad(gate_C, (0, padding), constant_values=1.0)[:, None]
    suffix_XM = jnp.ones_like(prefix_XM)
    block_XMM = suffix_XM[:, None, :]
    while block_XMM.shape[0] > 1:
        early_XMM, late_XMM = block_XMM[0::2], block_XMM[1::2]
        cross_XMM = prefix_XM[1::2, :, None] * suffix_XM[0::2, None, :]
        upper_XMM = jnp.concatenate([early_XMM, jnp.zeros_like(early_XMM)], axis=2)
        lower_XMM = jnp.concatenate([cross_XMM, late_XMM], axis=2)
        block_XMM = jnp.concatenate([upper_XMM, lower_XMM], axis=1)
        early_X1, late_X1 = prefix_XM[0::2, -1:], prefix_XM[1::2, -1:]
        prefix_XM = jnp.concatenate([prefix_XM[0::2], early_X1 * prefix_XM[1::2]], axis=1)
        suffix_XM = jnp.concatenate([suffix_XM[0::2] * late_X1, suffix_XM[1::2]], axis=1)
    return block_XMM[0, :size, :size]


@_gate_products.defjvp
@full_precision
def _gate_products_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """dP_ts = sum_r P_tr dgate_r P_{r-1,s}: one matrix product, where autodiff walks the joins."""
    products_CC = _gate_products(*primals)
    return products_CC, (products_CC * tangents[0][None, :]) @ _earlier(products_CC)


def momentum_products(keep_C: Array, momentum_C: Array, live_C: Array | None) -> Array:
    """Return E [C, C], E_ts = sum_{s <= r <= t} D_tr live_r P_rs: a write's weight with momentum.

    D and P are the products of `keep_C` and `momentum_C`, so that E_t = a_t E_{t-1} + live_t P_t. A
    slot without a token (`live_C`, a mask: no gradient) does not add S, although its gates are 1.
    """
    live_C = jnp.ones_like(keep_C) if live_C is None else live_C
    if keep_C.shape[0] == 1:
        return live_C[:, None]
    return _momentum_products(keep_C, momentum_C, live_C)


@jax.custom_jvp
@full_precision
def _momentum_products(keep_C: Array, momentum_C: Array, live_C: Array) -> Array:
    return (_gate_products(keep_C) * live_C[None, :]) @ _gate_products(momentum_C)


@_momentum_products.defjvp
@full_precision
def _momentum_products_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    """dE_ts = sum_r D_tr da_r E_{r-1,s} + sum_r E_tr dmu_r P_{r-1,s}: two products, not five."""
    keep_CC, momentum_CC = _gate_products(primals[0]), _gate_products(primals[1])
    weight_CC = _momentum_products(*primals)
    through_keep_CC = (keep_CC * tangents[0][None, :]) @ _earlier(weight_CC)
    through_momentum_CC = (weight_CC * tangents[1][None, :]) @ _earlier(momentum_CC)
    return weight_CC, through_keep_CC + through_momentum_CC


def _earlier(rows_CC: Array) -> Array:
    """Row t holds row t - 1."""
    return jnp.concatenate([jnp.zeros_like(rows_CC[:1]), rows_CC[:-1]])


@full_precision
def chunk_weights(spec: MemorySpec, gates: ChunkGates) -> ChunkWeights:
    """Return the mixtures of one head of one chunk (derivation: module docstring).

    A token that finds a fresh memory has a_t W_fresh for a_t W_{t-1}: products that reach past it
    are 0, and the fresh memory enters like a write of weight a_t (its momentum, of mu_t).
    """
    keep_C = _staying(gates.keep_C, gates.start_C)
    keep_CC = gate_products(keep_C)
    carried, grad_CC, end_momentum = [jnp.cumprod(keep_C)], keep_CC, None
    fresh = [] if gates.start_C is None else [keep_CC @ (gates.start_C * gates.keep_C)]
    if gates.momentum_C is not None:
        momentum_C = _staying(gates.momentum_C, gates.start_C)
        decay_C = jnp.cumprod(momentum_C)
        grad_CC = momentum_products(keep_C, momentum_C, gates.live_C)
        carried.append(momentum_C[0] * grad_CC[:, 0])
        sources: tuple[Array | None, ...] = (None, decay_C)
        if gates.start_C is not None:
            begun_C = gates.start_C * gates.momentum_C
            fresh.append(grad_CC @ begun_C)
            sources += (None, gate_products(momentum_C) @ begun_C)
        ends = tuple(None if c is None else c[-1] for c in sources)
        end_momentum = EndMix(ends, suffix_products(momentum_C) * gates.rate_C, None)
    erase_CC = None
    if spec.rule == "dgd":
        erase_C = gates.rate_C if gates.erase_C is None else gates.erase_C
        erase_CC = keep_CC * erase_C[None, :]
    after = Mix((*carried, *fresh), grad_CC * gates.rate_C[None, :], erase_CC)
    return ChunkWeights(after, _before(after, len(carried), gates), _last(after), end_momentum)


def suffix_products(gate_C: Array) -> Array:
    """Return prod_{r > s} gate_r for every s: the last row of `gate_products`."""
    later_C = jnp.concatenate([gate_C[1:], jnp.ones_like(gate_C[:1])])
    return jnp.cumprod(later_C[::-1])[::-1]


def _staying(gate_C: Array, start_C: Array | None) -> Array:
    """Close the gate on what came before a token that finds a fresh memory."""
    return gate_C if start_C is None else gate_C * (1.0 - start_C)


def _before(after: Mix, carried: int, gates: ChunkGates) -> Mix:
    """Shift the rows by one token: row 0 is the chunk's start, and a reset row a fresh memory."""

    def shifted(rows: Array | None, first: float) -> Array:
        assert rows is not None
        moved = jnp.concatenate([jnp.full_like(rows[:1], first), rows[:-1]])
        if gates.start_C is None:
            return moved
        return moved * (1.0 - gates.start_C).reshape(-1, *[1] * (rows.ndim - 1))

    sources = [shifted(c, 1.0 if i == 0 else 0.0) for i, c in enumerate(after.sources)]
    if gates.start_C is not None:
        sources[carried] = sources[carried] + gates.start_C
    erase_CC = None if after.erase_RC is None else shifted(after.erase_RC, 0.0)
    return Mix(tuple(sources), shifted(after.grad_RC, 0.0), erase_CC)


def _last(mix: Mix) -> EndMix:
    sources = tuple(None if c is None else c[-1] for c in mix.sources)
    erase_C = None if mix.erase_RC is None else mix.erase_RC[-1]
    return EndMix(sources, mix.grad_RC[-1], erase_C)
