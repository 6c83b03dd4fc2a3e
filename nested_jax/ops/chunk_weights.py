"""The scalars of a chunk-parallel memory: how every token's write weighs in every later memory.

Unrolling W_t = a_t W_{t-1} + S_t - eta_t u_t e_t^T and S_t = mu_t S_{t-1} - eta_t x_t d_t^T over
the tokens of a chunk gives, for any matrix of the memory,

    W_t = (prod a) W_0 + (sum ..) S_0 - sum_s E_ts eta_s x_s d_s^T - sum_s D_ts eta_s u_s e_s^T

    D_ts = prod_{s < r <= t} a_r    P_ts = prod_{s < r <= t} mu_r    E = D P (no momentum: E = D)

(x: inputs, d: deltas at the anchor; u, e: direction and answer of what a delta rule erases). D, P
and E depend on the gates only: they serve all matrices, and all chunks are prepared in parallel.
All arrays here are of one head of one chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from nested_jax.ops.memory_spec import MemorySpec
from nested_jax.types import Array


class ChunkGates(NamedTuple):
    """The gates of the slots of a chunk. A slot without a token has rate 0, keep 1, momentum 1."""

    rate_C: Array
    keep_C: Array
    momentum_C: Array | None
    live_C: Array | None  # 1 where the slot holds a token; None: everywhere
    start_C: Array | None  # 1 where the token finds the memory reset to its initial value


class Mix(NamedTuple):
    """Memories as mixtures of what they are made of, one row a memory.

    `sources` has one coefficient vector for each source matrix: fast, then momentum if the rule has
    it, then the same of the initial state if documents may start inside the chunk.
    """

    sources: tuple[Array | None, ...]  # [R] each; None is 0
    grad_RC: Array  # weight of -x_s d_s^T: E_ts eta_s
    erase_RC: Array | None  # weight of -u_s e_s^T: D_ts eta_s


class ChunkWeights(NamedTuple):
    after: Mix  # row t: W_t
    before: Mix  # row t: the memory that token t finds, W_{t-1} or a fresh one
    end: Mix  # one row: the running memory behind the chunk
    end_momentum: Mix | None  # one row: S behind the chunk


def gate_products(gate_C: Array) -> Array:
    """Return P [C, C] with P_ts = prod_{s < r <= t} gate_r for s <= t and 0 above the diagonal.

    Formed as products, not as exp of differences of log sums: exact at gate 0, in value and in
    gradient, ten times more accurate in float32, and as fast; factors in [0, 1] cannot overflow.
    """
    size = gate_C.shape[0]
    below_CC = jnp.tril(jnp.ones((size, size), bool), -1)
    factors_CC = jnp.where(below_CC, gate_C[:, None], jnp.ones((), gate_C.dtype))
    return jnp.tril(jnp.cumprod(factors_CC, axis=0))


def chunk_weights(spec: MemorySpec, gates: ChunkGates) -> ChunkWeights:
    """Return the mixtures of one head of one chunk (derivation: module docstring)."""
    stay_C = None if gates.start_C is None else 1.0 - gates.start_C
    keep_C = gates.keep_C if stay_C is None else gates.keep_C * stay_C
    keep_CC = gate_products(keep_C)
    sources, grad_CC, end_momentum = [jnp.cumprod(keep_C)], keep_CC, None
    fresh = [] if gates.start_C is None else [keep_CC @ (gates.start_C * gates.keep_C)]
    if gates.momentum_C is not None:
        momentum_C = gates.momentum_C if stay_C is None else gates.momentum_C * stay_C
        momentum_CC = gate_products(momentum_C)
        decay_C = jnp.cumprod(momentum_C)
        live_CC = keep_CC if gates.live_C is None else keep_CC * gates.live_C[None, :]
        grad_CC = live_CC @ momentum_CC
        sources.append(live_CC @ decay_C)
        carried: tuple[Array | None, ...] = (None, decay_C)
        if gates.start_C is not None:
            begun_C = gates.start_C * gates.momentum_C
            fresh.append(grad_CC @ begun_C)
            carried += (None, momentum_CC @ begun_C)
        end_momentum = _last(Mix(carried, momentum_CC * gates.rate_C[None, :], None))
    after = Mix(
        (*sources, *fresh),
        grad_CC * gates.rate_C[None, :],
        keep_CC * gates.rate_C[None, :] if spec.rule == "dgd" else None,
    )
    return ChunkWeights(after, _before(after, len(sources), gates), _last(after), end_momentum)


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
    erase = None if after.erase_RC is None else shifted(after.erase_RC, 0.0)
    return Mix(tuple(sources), shifted(after.grad_RC, 0.0), erase)


def _last(mix: Mix) -> Mix:
    erase = None if mix.erase_RC is None else mix.erase_RC[-1:]
    return Mix(tuple(None if c is None else c[-1:] for c in mix.sources), mix.grad_RC[-1:], erase)
