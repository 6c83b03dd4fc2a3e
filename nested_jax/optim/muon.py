"""Muon: steepest descent under the spectral norm, for the hidden matrices.

Own code and not ``optax.contrib.muon``: M3 needs the same Newton-Schulz step and dimension numbers,
optax's takes every 2-D leaf (embeddings, heads, stacked norms) unless told otherwise, and its AdamW
half is not the one we compare with. With ``nesterov=False`` this is NL Eq. 42 and Eq. 52.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nested_jax.ops.newton_schulz import newton_schulz
from nested_jax.optim.dimensions import map_matrices
from nested_jax.types import Array, PyTree

UPDATE_RMS = 0.2  # of an element before the learning rate; AdamW's is 0.2 to 0.4 (2502.16982)


class MuonState(NamedTuple):
    momentum: PyTree  # float32, like the parameters


def scale_by_muon(
    momentum: float = 0.95,
    *,
    steps: int = 5,
    nesterov: bool = True,
    dims: PyTree | None = None,
) -> optax.GradientTransformation:
    r"""Orthogonalise the momentum of every matrix.

    .. math::
      m_t = \mu m_{t-1} + (1 - \mu) g_t \qquad
      u_t = 0.2 \sqrt{\max(in, out)} \; \mathrm{NewtonSchulz}(\mu m_t + (1 - \mu) g_t)

    (the plain :math:`m_t` inside without `nesterov`). Newton-Schulz ignores scale, so neither the
    factor 1 - mu nor a bias correction matters. An orthogonal [in, out] matrix has elements of RMS
    1 / sqrt(max(in, out)): the factor makes it 0.2 for every shape, so that one learning rate
    serves all matrices and is comparable to AdamW's.

    Sources: Jordan 2024 (Muon); Liu et al., arXiv 2502.16982, for the factor.

    Args:
      momentum: decay of the momentum.
      steps: Newton-Schulz iterations.
      dims: tree of `MatrixDims`; None takes the last two axes of every leaf as [in, out].
    """

    def init(params: PyTree) -> MuonState:
        return MuonState(zeros_f32(params))

    def update(
        updates: PyTree, state: MuonState, params: PyTree | None = None
    ) -> tuple[PyTree, MuonState]:
        del params
        average = ema(updates, state.momentum, momentum)
        ahead = ema(updates, average, momentum) if nesterov else average
        step = map_matrices(lambda m: orthogonal_step(m, steps), dims, ahead)
        return cast_like(step, updates), MuonState(average)

    return optax.GradientTransformation(init, update)


def orthogonal_step(x: Array, steps: int) -> Array:
    """Return the orthogonal factor of each matrix of [..., in, out], with elements of RMS 0.2."""
    return spectral_factor(x) * newton_schulz(x, steps)


def spectral_factor(x: Array) -> float:
    """Return what gives an orthogonal matrix of this shape elements of RMS 0.2."""
    return UPDATE_RMS * math.sqrt(max(x.shape[-2:]))


def frobenius_factor(x: Array) -> float:
    """Return what gives a matrix of Frobenius norm 1 and this shape elements of RMS 0.2."""
    return UPDATE_RMS * math.sqrt(math.prod(x.shape[-2:]))


def zeros_f32(params: PyTree) -> PyTree:
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), params)


def ema(values: PyTree, average: PyTree, decay: float) -> PyTree:
    """Return decay * average + (1 - decay) * values, float32."""
    return jax.tree.map(
        lambda v, a: decay * a + (1.0 - decay) * v.astype(jnp.float32), values, average
    )


def cast_like(values: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda v, x: v.astype(x.dtype), values, like)
