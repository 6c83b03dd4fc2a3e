"""Fast weights of a CMS level: gradients gathered over a period, then one inner optimizer step.

NL Eq. 71: theta <- theta - sum over the period of eta · f(theta; x_t). Every function is pure and
works on the deltas of all sequences (B) and layers (L) at once; a state of zeros is a level never
written.

A sequence carries leaves [B, L, ...]. The inner loop reads and writes every fast weight at every
chunk, so there a tree is cut into pieces of layers, leaves [l, B, ...], one for each scan that
reads them: nothing is moved, sliced or joined from chunk to chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.config import CMSConfig
from nested_jax.ops.chunking import per_row, where_rows
from nested_jax.ops.newton_schulz import newton_schulz
from nested_jax.types import Array, PyTree

EPS = 1e-8  # of Adam's denominator
TINY = 1e-30  # of a squared norm that is divided by
BACKOFF = 0.25  # factor on the rates of a sequence each time that its writes were undone


class Trust(NamedTuple):
    """What the writes of a sequence have been worth, against the same model without them."""

    gain_B: Array  # float32, nats since the reset or since they were undone, at most ``cms.trust``
    undone_B: Array  # int32, times that they were undone since the reset


UNROLLED = 4  # of so many layers each is a piece of its own


class LevelState(NamedTuple):
    """One level's fast weights; trees have leaves [B, L, ...] in float32, or pieces of them."""

    delta: PyTree  # what was written: the level computes with its slow weights + delta
    pending: PyTree  # gradients of the open period, summed over its tokens
    moments: tuple[PyTree, ...]  # of the inner optimizer
    tokens_B: Array  # int32, tokens of the open period
    supervised_B: Array  # int32, chunks of the open period that had targets
    accepted_B: Array  # int32, of these, chunks that the surprise gate let through
    writes_B: Array  # int32, writes since the reset
    trust: Trust | tuple[()] = ()  # where ``cms.trust`` bounds what they may cost


WEIGHTS = 3  # fields of a level that are trees; the others are counts [B]


class InnerRule(NamedTuple):
    """An inner optimizer: how many moments it keeps, and the direction that a write descends.

    `idle`: a chunk without targets, whose gradient is 0, would change nothing.
    """

    moments: int
    direction: Callable[
        [tuple[PyTree, ...], PyTree, Array, float], tuple[tuple[PyTree, ...], PyTree]
    ]
    idle: bool = False


def _sgd(
    moments: tuple[PyTree, ...], grads: PyTree, count_B: Array, beta: float
) -> tuple[tuple[PyTree, ...], PyTree]:
    del count_B, beta
    return moments, grads


def _momentum(
    moments: tuple[PyTree, ...], grads: PyTree, count_B: Array, beta: float
) -> tuple[tuple[PyTree, ...], PyTree]:
    """m <- beta m + g (heavy ball)."""
    del count_B
    m = jax.tree.map(lambda m, g: beta * m + g, moments[0], grads)
    return (m,), m


def _adam(
    moments: tuple[PyTree, ...], grads: PyTree, count_B: Array, beta: float
) -> tuple[tuple[PyTree, ...], PyTree]:
    """Adam with both decays at `momentum`, bias-corrected by the writes since the reset."""
    m = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, moments[0], grads)
    v = jax.tree.map(lambda v, g: beta * v + (1 - beta) * g * g, moments[1], grads)

    def step(m: Array, v: Array) -> Array:
        c = per_row(1.0 - beta ** (count_B + 1).astype(m.dtype)[None], m)
        # The root's argument is floored: where v is 0 its derivative would be infinite.
        return (m / c) / (jnp.sqrt(jnp.maximum(v / c, EPS**2)) + EPS)

    return (m, v), jax.tree.map(step, m, v)


def _muon(
    moments: tuple[PyTree, ...], grads: PyTree, count_B: Array, beta: float
) -> tuple[tuple[PyTree, ...], PyTree]:
    """The orthogonalised momentum of every matrix (Jordan 2024)."""
    moments, m = _momentum(moments, grads, count_B, beta)
    return moments, jax.tree.map(newton_schulz, m)


def _unit(
    moments: tuple[PyTree, ...], grads: PyTree, count_B: Array, beta: float
) -> tuple[tuple[PyTree, ...], PyTree]:
    """The gradient of every matrix at norm 1; its rate is then a share of the matrix's own norm.

    The size of a write does not depend on that of the loss or the chunk (layers/cms.py: rates).
    """
    del count_B, beta

    def unit(g: Array) -> Array:
        square = jnp.sum(jnp.square(g), axis=(-2, -1), keepdims=True)
        return g * jax.lax.rsqrt(jnp.maximum(square, TINY))

    return moments, jax.tree.map(unit, grads)


# `dgd` descends the same direction as `sgd`: what it adds, the forgetting along the inputs of a
# matrix (NL Eq. 57), is a gradient too and is part of what teach gathers (layers/cms.py: recall).
INNER_RULES: dict[str, InnerRule] = {
    "sgd": InnerRule(0, _sgd, idle=True),
    "dgd": InnerRule(0, _sgd),
    "momentum": InnerRule(1, _momentum),
    "adam": InnerRule(2, _adam),
    "muon": InnerRule(1, _muon),
    "unit": InnerRule(0, _unit, idle=True),
}


def init_level(cfg: CMSConfig, level: int, delta: PyTree, batch: int) -> LevelState:
    """Return the state of level number `level`, never written; `delta` gives the shapes."""
    zeros = jax.tree.map(jnp.zeros_like, delta)
    count = jnp.zeros((batch,), jnp.int32)
    moments = (zeros,) * INNER_RULES[cfg.level_optimizer(level)].moments
    trust = Trust(jnp.zeros((batch,), jnp.float32), count) if cfg.trust else ()
    return LevelState(zeros, zeros, moments, count, count, count, count, trust)


# --- in the loop ---


def cut_layers(tree: PyTree) -> tuple[PyTree, ...]:
    """Cut leaves [L, ...] into pieces: the first layer, and those after it, one by one if few."""
    layers = jax.tree.leaves(tree)[0].shape[0]
    ends = range(1, layers + 1) if layers <= UNROLLED else (1, layers)
    edges = zip((0, *ends), ends, strict=False)
    return tuple(jax.tree.map(lambda x: x[i:j], tree) for i, j in edges)  # noqa: B023


def join_layers(pieces: tuple[PyTree, ...]) -> PyTree:
    """Undo `cut_layers`."""
    return jax.tree.map(lambda *x: jnp.concatenate(x), *pieces)


def into_loop(tree: PyTree) -> tuple[PyTree, ...]:
    """Return the pieces, leaves [l, B, ...], of a tree with leaves [B, L, ...]."""
    return cut_layers(jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tree))


def out_of_loop(pieces: tuple[PyTree, ...]) -> PyTree:
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), join_layers(pieces))


def enter(level: LevelState, *, pending: bool = True) -> LevelState:
    """Return a level as the loop carries it; without `pending` its period is one chunk."""
    return level._replace(
        delta=into_loop(level.delta),
        pending=into_loop(level.pending) if pending else (),
        moments=tuple(into_loop(m) for m in level.moments),
    )


def leave(level: LevelState, before: LevelState) -> LevelState:
    """Undo `enter`; `before` is what entered, whose open period was empty if none was carried."""
    return level._replace(
        delta=out_of_loop(level.delta),
        pending=out_of_loop(level.pending) if level.pending else before.pending,
        moments=tuple(out_of_loop(m) for m in level.moments),
    )


def choose(rows_B: Array, yes: LevelState, no: LevelState) -> LevelState:
    """Take the rows of the mask from `yes` and the others, bit for bit, from `no`."""
    weights: Any = where_rows(rows_B[None], yes[:WEIGHTS], no[:WEIGHTS])
    counts: Any = where_rows(rows_B, yes[WEIGHTS:], no[WEIGHTS:])
    return LevelState(*weights, *counts)


def clear(level: LevelState, rows_B: Array) -> LevelState:
    """Make the rows of the mask a level never written."""
    return choose(rows_B, jax.tree.map(jnp.zeros_like, level), level)


def gather(
    level: LevelState, grads: PyTree, tokens_B: Array, supervised_B: Array, accepted_B: Array
) -> LevelState:
    """Add one chunk to the open period: its gradient where accepted, its tokens everywhere."""
    pending = grads  # of a period of one chunk, which is written only where accepted
    if level.pending:
        added = jax.tree.map(jnp.add, level.pending, grads)
        pending = where_rows(accepted_B[None], added, level.pending)
    return level._replace(
        pending=pending,
        tokens_B=level.tokens_B + tokens_B,
        supervised_B=level.supervised_B + supervised_B.astype(jnp.int32),
        accepted_B=level.accepted_B + accepted_B.astype(jnp.int32),
    )


class WriteEvents(NamedTuple):
    """What became of the periods that ended."""

    wrote_B: Array  # bool
    blocked_B: Array  # bool, the period had targets and the gate let none of its chunks through


def write_level(
    cfg: CMSConfig,
    number: int,
    level: LevelState,
    rates: PyTree,
    ended_B: Array,
    *,
    one_chunk: bool = False,
    certain: bool = False,
) -> tuple[LevelState, WriteEvents]:
    """Step the rows whose period ended; a row without an accepted chunk stays bit-identical.

    Args:
      cfg: the levels.
      number: counts the levels, 0 the fastest, and says which inner optimizer this one has.
      level: after `gather`.
      rates: has the structure of the deltas and leaves [l]: the rate of each matrix of each layer.
      ended_B: rows whose period is over.
      one_chunk: the period is one chunk; no gradient is kept.
      certain: `ended_B` is true, and every chunk with targets is accepted. Where a gradient of 0
        changes nothing, there is then no choice between before and after.
    """
    wrote_B = ended_B & (level.accepted_B > 0)
    blocked_B = ended_B & (level.accepted_B == 0) & (level.supervised_B > 0)
    rule, beta = INNER_RULES[cfg.level_optimizer(number)], cfg.level_momentum(number)
    moments, direction = rule.direction(level.moments, level.pending, level.writes_B, beta)

    def step(delta: Array, d: Array, rate_L: Array) -> Array:
        rate = per_row(rate_L, delta)
        if level.trust:
            backed_off_B = BACKOFF ** level.trust.undone_B.astype(delta.dtype)
            rate = rate * per_row(backed_off_B[None], delta)
        return cfg.keep * delta - rate * d

    delta = jax.tree.map(step, level.delta, direction, rates)
    if not (certain and rule.idle and cfg.keep == 1.0):
        delta = where_rows(wrote_B[None], delta, level.delta)
        moments = where_rows(wrote_B[None], moments, level.moments)
    pending: PyTree = ()
    if not one_chunk:
        empty = jax.tree.map(jnp.zeros_like, level.pending)
        pending = where_rows(ended_B[None], empty, level.pending)
    zero = jnp.zeros_like(level.tokens_B)
    written = LevelState(
        delta=delta,
        pending=pending,
        moments=moments,
        tokens_B=jnp.where(ended_B, zero, level.tokens_B),
        supervised_B=jnp.where(ended_B, zero, level.supervised_B),
        accepted_B=jnp.where(ended_B, zero, level.accepted_B),
        writes_B=level.writes_B + wrote_B.astype(jnp.int32),
        trust=level.trust,
    )
    return written, WriteEvents(wrote_B, blocked_B)


def undo_losing(cfg: CMSConfig, level: LevelState, gain_B: Array) -> LevelState:
    """Undo the writes of the rows that have lost more than ``cfg.trust`` nats by them.

    Such a row goes on from its slow weights, with `BACKOFF` of its rates. What writes cost a text
    is then at most (1 + times undone) · (trust + what one chunk lost), and a rate that is a
    thousandth does nothing after five times.

    Args:
      gain_B: nats that the chunk would have cost without writes, less what it cost.
    """
    assert isinstance(level.trust, Trust)
    gain_B = jnp.minimum(level.trust.gain_B + gain_B.astype(jnp.float32), cfg.trust)
    lost_B = ~(gain_B >= -cfg.trust)  # not finite is lost
    zeros = jax.tree.map(jnp.zeros_like, (level.delta, level.pending, level.moments))
    kept = (level.delta, level.pending, level.moments)
    delta, pending, moments = where_rows(lost_B[None], zeros, kept)
    trust = Trust(jnp.where(lost_B, 0.0, gain_B), level.trust.undone_B + lost_B.astype(jnp.int32))
    return level._replace(delta=delta, pending=pending, moments=moments, trust=trust)


def restart(level: LevelState, delta: PyTree, rows_B: Array) -> LevelState:
    """Start the rows again at `delta`, with an empty open period (`nested` chain)."""
    zeros = jax.tree.map(jnp.zeros_like, level)
    fresh = zeros._replace(delta=delta, writes_B=level.writes_B, trust=level.trust)
    return choose(rows_B, fresh, level)
