"""Levels with their own clocks: a transformation that acts once in a period (NL Eq. 71)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nested_jax.errors import require
from nested_jax.optim.muon import cast_like, zeros_f32
from nested_jax.types import Array, PyTree

MODES = ("mean", "sum", "last")
Mode = Literal["mean", "sum", "last"]


class PeriodState(NamedTuple):
    seen: Array  # int32, steps seen of the open period
    pending: PyTree  # float32: sum of its gradients (`mean`) or updates (`sum`); () for `last`
    inner: PyTree


def every(
    inner: optax.GradientTransformation, period: int, mode: Mode = "mean"
) -> optax.GradientTransformation:
    r"""Let `inner` move the parameters once every `period` steps and give zero updates between.

    ``mean``: one step of `inner` on the mean gradient of the period, its state untouched between.
    ``sum``: `inner` steps on every gradient at the parameters of the period's start, and the sum
    of its updates is applied at the end: theta <- theta - sum_t eta_t f(theta; x_t), NL Eq. 71.
    ``last``: one step on the last gradient of the period; the others are dropped.

    The first movement is at step `period - 1`, counted from 0.

    Raises:
      ValueError: a period below 1 or an unknown mode.
    """
    require(period >= 1, "period", period, "wants 1 or more steps")
    require(mode in MODES, "mode", mode, f"wants one of {MODES}")
    if period == 1:
        return inner

    def init(params: PyTree) -> PeriodState:
        pending = () if mode == "last" else zeros_f32(params)
        return PeriodState(jnp.zeros((), jnp.int32), pending, inner.init(params))

    def update(
        updates: PyTree, state: PeriodState, params: PyTree | None = None
    ) -> tuple[PyTree, PeriodState]:
        inner_state = state.inner
        if mode == "sum":
            updates, inner_state = inner.update(updates, inner_state, params)
        pending = state.pending
        if mode != "last":
            pending = jax.tree.map(lambda a, u: a + u.astype(jnp.float32), pending, updates)

        def write(pending: PyTree, inner_state: PyTree) -> tuple[PyTree, PyTree, PyTree]:
            if mode == "sum":
                return cast_like(pending, updates), zeros_f32(pending), inner_state
            taken = updates
            if mode == "mean":
                taken = cast_like(jax.tree.map(lambda a: a / period, pending), updates)
            new, inner_state = inner.update(taken, inner_state, params)
            return new, zeros_f32(pending), inner_state

        def wait(pending: PyTree, inner_state: PyTree) -> tuple[PyTree, PyTree, PyTree]:
            return jax.tree.map(jnp.zeros_like, updates), pending, inner_state

        complete = state.seen == period - 1
        new, pending, inner_state = jax.lax.cond(complete, write, wait, pending, inner_state)
        return new, PeriodState((state.seen + 1) % period, pending, inner_state)

    return optax.GradientTransformation(init, update)


def level_schedule(
    schedule: optax.Schedule, period: int, mode: Mode, factor: float
) -> optax.Schedule:
    """Return `factor` times the schedule, read at the outer step of each step of the level.

    Inside `every` a counter counts the steps of `inner`: its n-th is outer step
    n * period + period - 1 for `mean` and `last`, and outer step n for `sum`.
    """

    def at(n: Array) -> Array:
        step = n if mode == "sum" else n * period + period - 1
        return factor * schedule(step)

    return at
