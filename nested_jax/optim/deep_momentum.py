r"""Deep momentum: momentum as an associative memory of gradients, in variants (NL Eq. 47-52).

A mapping phi of the gradient is stored in a decaying memory, which is read through sigma:

.. math::
  m_t = \beta m_{t-1} + (1 - \beta) \phi(g_t) \qquad u_t = \sigma(m_t / (1 - \beta^t))

==================  ==========================================  ==============================
variant             phi                                         sigma
==================  ==========================================  ==============================
``momentum``        g / ||g||_F (Eq. 33, per matrix)            0.2 sqrt(in * out) m
``preconditioned``  P g, P = 1 / (sqrt(v / (1 - beta2^t)) + e)  m  (Eq. 47)
``feature``         tanh(g / rms(g)), a feature map (Eq. 51)    0.2 m
``muon``            g                                           0.2 sqrt(max) NS(m)  (Eq. 52)
==================  ==========================================  ==============================

v is the average of g^2. `preconditioned` divides before it averages, Adam after: a rare large
gradient leaves the memory at the size it came in with. Every variant is bias-corrected and
gives steps of RMS about 0.2 to 0.4 per element, so that rates carry over from AdamW and Muon.

Not here: the L2 objective of Eq. 48-49 is `scale_by_delta_momentum`, and the decay of the
weights along their input (Eq. 57) is `scale_by_delta_gradient`. An MLP in place of m (Eq. 50)
is left out: the paper gives neither its keys nor an objective that bounds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nested_jax.errors import require
from nested_jax.optim.dimensions import frobenius, map_matrices, unit_frobenius
from nested_jax.optim.muon import (
    UPDATE_RMS,
    cast_like,
    ema,
    frobenius_factor,
    orthogonal_step,
    zeros_f32,
)
from nested_jax.types import Array, PyTree


class DeepMomentumState(NamedTuple):
    step: Array  # int32, steps done
    momentum: PyTree  # float32, like the parameters
    second: PyTree  # float32, like the parameters; only `preconditioned` reads it


def scale_by_deep_momentum(
    variant: str = "preconditioned",
    beta: float = 0.9,
    beta2: float = 0.95,
    *,
    eps: float = 1e-8,
    steps: int = 5,
    dims: PyTree | None = None,
) -> optax.GradientTransformation:
    """Store a mapping of the gradient in a decaying memory and read it; see the module.

    Args:
      beta: retention of the memory.
      beta2: decay of the second moment.
      steps: Newton-Schulz iterations.
      dims: tree of `MatrixDims`; None takes the last two axes of every leaf as [in, out].
    Raises:
      ValueError: an unknown variant.
    """
    require(variant in PHI, "variant", variant, f"wants one of {', '.join(PHI)}")
    phi, sigma = PHI[variant], SIGMA[variant]

    def init(params: PyTree) -> DeepMomentumState:
        second = zeros_f32(params) if variant == "preconditioned" else ()
        return DeepMomentumState(jnp.zeros((), jnp.int32), zeros_f32(params), second)

    def keys(grads: PyTree, second: PyTree, t: Array) -> PyTree:
        if variant != "preconditioned":
            return map_matrices(phi, dims, grads)
        bias = 1.0 - beta2**t
        return jax.tree.map(lambda g, v: g / (jnp.sqrt(v / bias) + eps), grads, second)

    def update(
        updates: PyTree, state: DeepMomentumState, params: PyTree | None = None
    ) -> tuple[PyTree, DeepMomentumState]:
        del params
        t = (state.step + 1).astype(jnp.float32)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), updates)
        second = state.second
        if variant == "preconditioned":
            second = ema(jax.tree.map(jnp.square, grads), second, beta2)
        momentum = ema(keys(grads, second, t), state.momentum, beta)
        unbiased = jax.tree.map(lambda m: m / (1.0 - beta**t), momentum)
        new = map_matrices(lambda m: sigma(m, steps), dims, unbiased)
        return cast_like(new, updates), DeepMomentumState(state.step + 1, momentum, second)

    return optax.GradientTransformation(init, update)


def identity(x: Array) -> Array:
    return x


def bounded_feature(x: Array) -> Array:
    """Return tanh(x / rms(x)) for each matrix: bounded, and blind to the scale of the gradient."""
    count = x.shape[-2] * x.shape[-1]
    return jnp.tanh(x * count**0.5 / jnp.maximum(frobenius(x), 1e-20))


PHI: dict[str, Callable[[Array], Array]] = {
    "momentum": unit_frobenius,
    "preconditioned": identity,  # needs the second moment, see `keys`
    "feature": bounded_feature,
    "muon": identity,
}
SIGMA: dict[str, Callable[[Array, int], Array]] = {
    "momentum": lambda m, _: frobenius_factor(m) * m,
    "preconditioned": lambda m, _: m,
    "feature": lambda m, _: UPDATE_RMS * m,
    "muon": orthogonal_step,
}
