"""The losses that a write descends: prediction M(k) against target v.

Of one token by definition; given several, the sum of their losses.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from nested_jax.types import Array


def l2(prediction: Array, target: Array) -> Array:
    """Return 1/2 |M(k) - v|^2: regression (DeltaNet; Titans Eq. 12)."""
    error = prediction - target
    return 0.5 * jnp.sum(error * error)


def dot(prediction: Array, target: Array) -> Array:
    """Return -<M(k), v>, Hebbian: NL Eq. 92 with the sign that moves M(k) toward v."""
    return -jnp.sum(prediction * target)


OBJECTIVES: dict[str, Callable[[Array, Array], Array]] = {"l2": l2, "dot": dot}

# d loss / d prediction = curvature * prediction - target, for both; delta_rule solves with it.
CURVATURE: dict[str, float] = {"l2": 1.0, "dot": 0.0}
