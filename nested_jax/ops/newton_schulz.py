"""Newton-Schulz iterations: the orthogonal factor of a matrix from matrix products alone."""

from __future__ import annotations

import jax.numpy as jnp

from nested_jax.errors import require
from nested_jax.ops.normalize import widen
from nested_jax.types import Array

# p(s) = a s + b s^3 + c s^5 acts on every singular value (Muon, Jordan 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(x: Array, steps: int = 5, eps: float = 1e-7) -> Array:
    """Return about U V^T for x = U S V^T over the last two axes; leading axes are independent.

    The matrix is first divided by its Frobenius norm, so that singular values start in (0, 1].
    After five steps, those that started above 0.003 lie in [0.68, 1.21]; more come no nearer.
    Computed in at least float32, returned in the caller's dtype; a zero matrix stays zero, with a
    finite gradient.

    Raises:
      ValueError: fewer than two axes.
    """
    require(x.ndim >= 2, "x", x.shape, "wants at least two axes")
    a, b, c = COEFFICIENTS
    y = widen(x)
    y = y / jnp.sqrt(jnp.sum(y * y, axis=(-2, -1), keepdims=True) + eps * eps)
    tall = x.shape[-2] > x.shape[-1]
    y = jnp.matrix_transpose(y) if tall else y
    for _ in range(steps):
        gram = y @ jnp.matrix_transpose(y)
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    return (jnp.matrix_transpose(y) if tall else y).astype(x.dtype)
