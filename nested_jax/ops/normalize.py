"""The one dtype policy, and unit vectors with a gradient that is finite everywhere."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from nested_jax.types import Array


def state_dtype(compute: str) -> np.dtype:
    """Return the dtype of fast weights, inner gradients, gates and losses beside `compute`.

    float32, or float64 in a float64 computation.
    """
    return np.promote_types(jnp.dtype(compute), np.float32)


def widen(x: Array) -> Array:
    """Return x in float32, or in float64 if it is: the precision that fast weights are kept in."""
    return x.astype(state_dtype(x.dtype.name))


def l2_normalize(x: Array, eps: float = 1e-6) -> Array:
    """Return x / max(|x|, eps) along the last axis, in at least float32 and in the caller's dtype.

    Below `eps` the result is x / eps: linear, so that value and gradient at 0 are finite, and small
    vectors are not blown up. The square root never sees 0 (its gradient there is infinite).
    """
    wide = widen(x)
    square = jnp.sum(wide * wide, axis=-1, keepdims=True)
    large = square > eps * eps
    norm = jnp.where(large, jnp.sqrt(jnp.where(large, square, 1.0)), eps)
    return (wide / norm).astype(x.dtype)
