"""The one dtype policy: what must be precise is float32, or float64 in a float64 computation."""

from __future__ import annotations

import jax.numpy as jnp

from nested_jax.types import Array


def state_dtype(compute: str) -> jnp.dtype:
    """Return the dtype of fast weights, inner gradients, gates and losses beside `compute`."""
    return jnp.promote_types(jnp.dtype(compute), jnp.float32)


def wide(x: Array) -> Array:
    """Cast to at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
