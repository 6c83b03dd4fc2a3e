"""Linear recurrences h_t = a_t h_{t-1} + b_t along an axis: sequential and associative."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nested_jax.types import Array


def linear_scan_sequential(
    a: Array, b: Array, initial: Array | None = None, *, axis: int = 0, reverse: bool = False
) -> Array:
    """Return every h_t of h_t = a_t h_{t-1} + b_t, one step after the other.

    `a` and `b` have one shape and dtype; `initial` (h_{-1}, zeros if None) lacks `axis`. With
    `reverse` the recurrence runs from the last index to the first.
    """
    a, b = jnp.moveaxis(a, axis, 0), jnp.moveaxis(b, axis, 0)
    start = jnp.zeros_like(b[0]) if initial is None else initial

    def step(h: Array, ab: tuple[Array, Array]) -> tuple[Array, Array]:
        h = ab[0] * h + ab[1]
        return h, h

    h = jax.lax.scan(step, start, (a, b), reverse=reverse)[1]
    return jnp.moveaxis(h, 0, axis)


def linear_scan_associative(
    a: Array, b: Array, initial: Array | None = None, *, axis: int = 0, reverse: bool = False
) -> Array:
    """Return what `linear_scan_sequential` returns, in log2(T) parallel steps and 2 T multiplies.

    Products of `a` are formed as such, not as exponentials of sums, so a may be 0.
    """

    def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    decay, h = jax.lax.associative_scan(combine, (a, b), axis=axis, reverse=reverse)
    return h if initial is None else h + decay * jnp.expand_dims(initial, axis)
