"""Rank-one algebra of one chunk: answers and end states from [C, C] and [C, I] products.

Everything is of one head of one chunk; no memory of a single token is formed (notation:
`chunk_weights`).
"""

from __future__ import annotations

from typing import NamedTuple

from nested_jax.ops.memory.chunk_weights import ChunkWeights, EndMix, Mix
from nested_jax.ops.unit_triangular import unit_lower_inverse
from nested_jax.types import Array


class Writes(NamedTuple):
    """What the tokens write into one matrix: -eta x d^T, and -eta u e^T if the rule erases."""

    input_CI: Array
    delta_CO: Array
    direction_CI: Array | None = None
    erased_CO: Array | None = None


class Scores(NamedTuple):
    """How much of each write a probe meets: weights of a mixture times inner products."""

    grad_RC: Array
    erase_RC: Array | None


def scores(mix: Mix, probe_RI: Array, input_CI: Array, direction_CI: Array | None) -> Scores:
    """Weigh the inner products of R probes with the inputs and directions of C writes."""
    grad_RC = mix.grad_RC * (probe_RI @ input_CI.T)
    if direction_CI is None:
        return Scores(grad_RC, None)
    assert mix.erase_RC is not None
    return Scores(grad_RC, mix.erase_RC * (probe_RI @ direction_CI.T))


def from_sources(mix: Mix, probe_RI: Array, sources: tuple[Array, ...]) -> Array:
    """Return what the probes find of the memories that the chunk started from, [R, O]."""
    parts = [
        coefficient_R[:, None] * (probe_RI @ source_IO)
        for coefficient_R, source_IO in zip(mix.sources, sources, strict=True)
        if coefficient_R is not None
    ]
    return sum(parts[1:], parts[0])


def recall(
    mix: Mix, score: Scores, probe_RI: Array, sources: tuple[Array, ...], writes: Writes
) -> Array:
    """Return probe_r^T W_r for the memory of every row of the mixture, [R, O]."""
    answer_RO = from_sources(mix, probe_RI, sources) - score.grad_RC @ writes.delta_CO
    if score.erase_RC is None:
        return answer_RO
    assert writes.erased_CO is not None
    return answer_RO - score.erase_RC @ writes.erased_CO


def erase_inverse(weights: ChunkWeights, direction_CI: Array) -> Array:
    """Return (I + L)^-1, L_ts = D_{t-1,s} eps_s <u_t, u_s> for s < t: how erasures shrink others.

    This is the WY form of DeltaNet (arXiv 2406.06484).
    """
    assert weights.before.erase_RC is not None
    return unit_lower_inverse(weights.before.erase_RC * (direction_CI @ direction_CI.T))


def erased(
    weights: ChunkWeights, inverse_CC: Array, sources: tuple[Array, ...], writes: Writes
) -> Array:
    """Return what a delta rule takes out: e_t = u_t^T W_{t-1}, [C, O].

    Each e_t depends on those before it: (I + L) e = rhs, with the inverse of `erase_inverse`.
    """
    before, direction_CI = weights.before, writes.direction_CI
    assert direction_CI is not None
    score_CC = before.grad_RC * (direction_CI @ writes.input_CI.T)
    rhs_CO = from_sources(before, direction_CI, sources) - score_CC @ writes.delta_CO
    return inverse_CC @ rhs_CO


def mixed(mix: EndMix, sources: tuple[Array, ...], writes: Writes) -> Array:
    """Return the memory [I, O] that a chunk leaves."""
    parts = [
        coefficient * source_IO
        for coefficient, source_IO in zip(mix.sources, sources, strict=True)
        if coefficient is not None
    ]
    matrix_IO = sum(parts[1:], parts[0])
    matrix_IO = matrix_IO - writes.input_CI.T @ (mix.grad_C[:, None] * writes.delta_CO)
    if mix.erase_C is None or writes.direction_CI is None:
        return matrix_IO
    assert writes.erased_CO is not None
    return matrix_IO - writes.direction_CI.T @ (mix.erase_C[:, None] * writes.erased_CO)
