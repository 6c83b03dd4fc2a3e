"""Delta gradient descent: erase what a weight holds for this input, then step (NL Eq. 57)."""

from __future__ import annotations

from typing import Literal

import optax

from nested_jax.errors import require
from nested_jax.optim.dimensions import map_matrices, project, unit_frobenius
from nested_jax.optim.muon import cast_like, frobenius_factor
from nested_jax.types import Array, PyTree

FORMS = ("unit", "literal")
Form = Literal["unit", "literal"]


def scale_by_delta_gradient(
    form: Form = "unit", *, dims: PyTree | None = None
) -> optax.GradientTransformation:
    r"""Add to the gradient of every matrix a decay along the inputs that produced it.

    NL Eq. 57 for one token with input x, ||x|| = 1, and eta' = eta / (1 + eta):

    .. math:: W_{t+1} = W_t (I - \eta' x x^\top) - \eta' \, \nabla_y L \otimes x

    It solves min_W ||W x + grad_y L||^2 / 2 + ||W - W_t||^2 / (2 eta) exactly. The gradient of a
    batch mixes many inputs and an optimizer sees only the gradient G, so the projector on the
    input is read from G (our weights are [in, out], the transpose of the paper's):

    .. math:: u_t = c \, G + P W_t, \qquad P = G G^\top / \|G\|_F^2

    P is symmetric, positive and of trace 1: the mean of the projectors on the normalised inputs,
    weighted by what each contributes. For one token G = x (grad_y L)^T and P is x x^T / ||x||^2,
    the paper's rule exactly, whatever the norm of x. It needs a learning rate (eta') below 2.

    ``form="literal"``: c = 1, the raw gradient; wants a learning rate of gradient descent's size.
    ``form="unit"``: c = 0.2 sqrt(in * out) / ||G||_F, a step of RMS 0.2 per element before the
    learning rate, so that rates carry over from AdamW and Muon.

    Args:
      dims: tree of `MatrixDims`; None takes the last two axes of every leaf as [in, out].
    """
    require(form in FORMS, "form", form, f"wants one of {FORMS}")

    def step(gradient: Array, weight: Array) -> Array:
        unit = unit_frobenius(gradient)
        kept = project(unit, weight)  # P W
        return kept + (gradient if form == "literal" else frobenius_factor(unit) * unit)

    def update(
        updates: PyTree, state: optax.EmptyState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.EmptyState]:
        if params is None:
            raise ValueError("params=None: delta gradient descent decays the weights; pass them")
        return cast_like(map_matrices(step, dims, updates, params), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)
