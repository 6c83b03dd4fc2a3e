r"""M3, multi-scale momentum Muon: a continuum memory system for gradients (NL Alg. 1, Eq. 75).

``form="literal"``, as printed (NL Alg. 1): the accumulators never decay.

.. math::
  M^1_t &= M^1_{t-1} + \beta_1 g_t \qquad V_t = V_{t-1} + \beta_2 g_t^2 \\
  M^2_t &= M^2_{t-1} + \beta_3 \textstyle\sum g \quad \text{every `period` steps} \\
  u_t &= (NS(M^1_t) + \alpha NS(M^2)) / (\sqrt{V_t} + \epsilon)

Its step shrinks like AdaGrad's and scales as 1 / |g|: it wants a learning rate of the size of
the gradients. The slow momentum is updated after the step that completes a period, so a step
uses the M2 of complete earlier periods, as the outer loop of the algorithm has it. (Its sum
runs from (k-1)f to kf, one gradient too many; here every gradient counts once.)

``form="ema"``: each accumulator becomes an exponential average, beta * old + (1 - beta) * new,
V is bias-corrected, and the step of every matrix is rescaled to the norm that a Muon step has
there, so that V and alpha decide the direction and a learning rate of Muon's size fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nested_jax.errors import require
from nested_jax.ops.newton_schulz import newton_schulz
from nested_jax.optim.dimensions import frobenius, map_matrices
from nested_jax.optim.muon import cast_like, spectral_factor, zeros_f32
from nested_jax.types import Array, PyTree

TINY = 1e-30


@dataclass(frozen=True)
class M3:
    """Hyperparameters of `scale_by_m3`."""

    beta1: float = 0.9  # fast momentum
    beta2: float = 0.95  # second moment
    beta3: float = 0.9  # slow momentum
    alpha: float = 1.0  # weight of the slow momentum
    period: int = 16  # steps between updates of the slow momentum
    eps: float = 1e-8
    steps: int = 5  # Newton-Schulz iterations
    form: Literal["ema", "literal"] = "ema"

    def __post_init__(self) -> None:
        require(self.form in ACCUMULATE, "form", self.form, f"wants one of {tuple(ACCUMULATE)}")
        require(self.period >= 1, "period", self.period, "wants 1 or more steps")


class M3State(NamedTuple):
    """Five float32 trees like the parameters: a parameter costs 20 bytes of optimizer state."""

    step: Array  # int32, steps done
    fast: PyTree  # M1
    second: PyTree  # V
    slow: PyTree  # M2
    window: PyTree  # sum of the gradients since the slow momentum was updated
    slow_direction: PyTree  # O2 = NewtonSchulz(M2), kept so that it is computed once a period


def scale_by_m3(
    hyper: M3 | None = None, *, dims: PyTree | None = None
) -> optax.GradientTransformation:
    """Two orthogonalised momenta of different periods over a root of the second moment.

    Args:
      dims: tree of `MatrixDims`; None takes the last two axes of every leaf as [in, out].
    """
    hyper = hyper or M3()
    accumulate, rescale = ACCUMULATE[hyper.form], RESCALE[hyper.form]

    def init(params: PyTree) -> M3State:
        zeros = [zeros_f32(params) for _ in M3State._fields[1:]]
        return M3State(jnp.zeros((), jnp.int32), *zeros)

    def step(fast: Array, slow_direction: Array, variance: Array) -> Array:
        orthogonal = newton_schulz(fast, hyper.steps)
        raw = (orthogonal + hyper.alpha * slow_direction) / (jnp.sqrt(variance) + hyper.eps)
        return rescale(raw, orthogonal)

    def write_slow(slow: PyTree, window: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        slow = jax.tree.map(lambda m, g: accumulate(m, g, hyper.beta3), slow, window)
        direction = map_matrices(lambda m: newton_schulz(m, hyper.steps), dims, slow)
        return slow, zeros_f32(window), direction

    def update(
        updates: PyTree, state: M3State, params: PyTree | None = None
    ) -> tuple[PyTree, M3State]:
        del params
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), updates)
        count = state.step + 1
        fast = jax.tree.map(lambda m, g: accumulate(m, g, hyper.beta1), state.fast, grads)
        second = jax.tree.map(lambda v, g: accumulate(v, g * g, hyper.beta2), state.second, grads)
        variance = unbiased(second, count, hyper)
        new = map_matrices(step, dims, fast, state.slow_direction, variance)
        slow, window, direction = jax.lax.cond(
            count % hyper.period == 0,
            write_slow,
            lambda slow, window: (slow, window, state.slow_direction),
            state.slow,
            jax.tree.map(jnp.add, state.window, grads),
        )
        return cast_like(new, updates), M3State(count, fast, second, slow, window, direction)

    return optax.GradientTransformation(init, update)


def unbiased(second: PyTree, count: Array, hyper: M3) -> PyTree:
    if hyper.form == "literal":
        return second
    correction = 1.0 - hyper.beta2 ** count.astype(jnp.float32)
    return jax.tree.map(lambda v: v / correction, second)


def to_muon_norm(raw: Array, orthogonal: Array) -> Array:
    """Scale each matrix of `raw` to the norm of the Muon step along `orthogonal`."""
    ratio = frobenius(orthogonal) / jnp.maximum(frobenius(raw), TINY)
    return spectral_factor(raw) * ratio * raw


Accumulate = Callable[[Array, Array, float], Array]
ACCUMULATE: dict[str, Accumulate] = {
    "ema": lambda total, new, beta: beta * total + (1.0 - beta) * new,
    "literal": lambda total, new, beta: total + beta * new,
}
RESCALE: dict[str, Callable[[Array, Array], Array]] = {
    "ema": to_muon_norm,
    "literal": lambda raw, _: raw,
}
