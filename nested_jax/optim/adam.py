"""Adam, for whatever is not a hidden matrix; optax's does not run under strict dtype promotion."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nested_jax.optim.muon import cast_like, ema, zeros_f32
from nested_jax.types import Array, PyTree


class AdamState(NamedTuple):
    step: Array  # int32, steps done
    first: PyTree  # float32, like the parameters
    second: PyTree  # float32, like the parameters


def scale_by_adam(
    beta1: float = 0.9, beta2: float = 0.95, eps: float = 1e-8
) -> optax.GradientTransformation:
    r"""Divide the average gradient by the root of its average square (Kingma & Ba, 1412.6980).

    .. math::
      m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2
      \qquad u_t = \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}
    """

    def init(params: PyTree) -> AdamState:
        return AdamState(jnp.zeros((), jnp.int32), zeros_f32(params), zeros_f32(params))

    def update(
        updates: PyTree, state: AdamState, params: PyTree | None = None
    ) -> tuple[PyTree, AdamState]:
        del params
        first = ema(updates, state.first, beta1)
        squares = jax.tree.map(lambda g: jnp.square(g.astype(jnp.float32)), updates)
        second = ema(squares, state.second, beta2)
        t = (state.step + 1).astype(jnp.float32)
        bias1, bias2 = 1.0 - beta1**t, 1.0 - beta2**t
        new = jax.tree.map(lambda m, v: m / bias1 / (jnp.sqrt(v / bias2) + eps), first, second)
        return cast_like(new, updates), AdamState(state.step + 1, first, second)

    return optax.GradientTransformation(init, update)
