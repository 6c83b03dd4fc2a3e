"""Delta momentum: a momentum that is itself written by the delta rule (NL Eq. 48-49)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
import optax

from nested_jax.errors import require
from nested_jax.optim.dimensions import map_matrices, project, unit_frobenius
from nested_jax.optim.muon import cast_like, frobenius_factor, zeros_f32
from nested_jax.types import Array, PyTree

FORMS = ("unit", "literal")
Form = Literal["unit", "literal"]


class DeltaMomentumState(NamedTuple):
    momentum: PyTree  # float32, like the parameters


def scale_by_delta_momentum(
    alpha: float = 0.9, form: Form = "unit", *, dims: PyTree | None = None
) -> optax.GradientTransformation:
    r"""Momentum that forgets along the directions of the new gradient.

    NL Eq. 48-49 with P = I, for weights [in, out] (the transpose of the paper's):

    .. math:: m_t = (\alpha I - g_t g_t^\top) \, m_{t-1} + g_t \qquad W_t = W_{t-1} - \eta \, m_t

    ``form="literal"``: g is the raw gradient. The factor on m has eigenvalues alpha - s^2 for the
    singular values s of g, so m **diverges** as soon as a gradient has s^2 > 1 + alpha for a few
    steps, and for s << 1 it is ordinary momentum. Only for problems of known scale.
    ``form="unit"``: g / ||g||_F in both places. The eigenvalues then lie in [alpha - 1, alpha] and
    ||m|| <= 1 / (1 - alpha) always. The step is 0.2 sqrt(in * out) m: RMS 0.2 a element for a first
    gradient, so that rates carry over from AdamW and Muon.

    m starts at full size, so there is no bias to correct.

    Args:
      alpha: retention of the momentum where the new gradient says nothing, in [0, 1).
      dims: tree of `MatrixDims`; None takes the last two axes of every leaf as [in, out].
    """
    require(form in FORMS, "form", form, f"wants one of {FORMS}")
    require(0 <= alpha < 1, "alpha", alpha, "wants a retention in [0, 1)")

    def normalised(gradient: Array) -> Array:
        return gradient.astype(jnp.float32) if form == "literal" else unit_frobenius(gradient)

    def write(gradient: Array, momentum: Array) -> Array:
        key = normalised(gradient)
        return alpha * momentum - project(key, momentum) + key

    def step(momentum: Array) -> Array:
        return momentum if form == "literal" else frobenius_factor(momentum) * momentum

    def init(params: PyTree) -> DeltaMomentumState:
        return DeltaMomentumState(zeros_f32(params))

    def update(
        updates: PyTree, state: DeltaMomentumState, params: PyTree | None = None
    ) -> tuple[PyTree, DeltaMomentumState]:
        del params
        momentum = map_matrices(write, dims, updates, state.momentum)
        new = map_matrices(step, dims, momentum)
        return cast_like(new, updates), DeltaMomentumState(momentum)

    return optax.GradientTransformation(init, update)
