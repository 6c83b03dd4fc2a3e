"""Newton-Schulz iterations: the orthogonal factor of a matrix from matrix products alone."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from nested_jax.errors import require
from nested_jax.ops.normalize import widen
from nested_jax.types import Array

# p(s) = a s + b s^3 + c s^5 acts on every singular value.
#   quintic: Muon (Jordan 2024). Five steps take [0.003, 1] to [0.68, 1.21]; more come no nearer.
#   cubic: the classical iteration, quadratic convergence to 1 from (0, sqrt 3), slow from near 0.
COEFFICIENTS: dict[str, tuple[float, float, float]] = {
    "quintic": (3.4445, -4.7750, 2.0315),
    "cubic": (1.5, -0.5, 0.0),
}


def newton_schulz(
    x: Array,
    steps: int = 5,
    polynomial: Literal["quintic", "cubic"] = "quintic",
    eps: float = 1e-7,
) -> Array:
    """Return about U V^T for x = U S V^T over the last two axes; leading axes are independent.

    The matrix is first divided by its Frobenius norm, so that singular values start in (0, 1].
    After five quintic steps, those that started above 0.003 lie in [0.68, 1.21]; ten cubic steps
    bring those above 0.05 to 1 within 0.1 %. Computed in at least float32, returned in the
    caller's dtype; a zero matrix stays zero, with a finite gradient.

    Raises:
      ValueError: an unknown polynomial, or fewer than two axes.
    """
    require(
        polynomial in COEFFICIENTS, "polynomial", polynomial, f"known: {', '.join(COEFFICIENTS)}"
    )
    require(x.ndim >= 2, "x", x.shape, "wants at least two axes")
    a, b, c = COEFFICIENTS[polynomial]
    y = widen(x)
    y = y / jnp.sqrt(jnp.sum(y * y, axis=(-2, -1), keepdims=True) + eps * eps)
    tall = x.shape[-2] > x.shape[-1]
    y = jnp.matrix_transpose(y) if tall else y
    for _ in range(steps):
        gram = y @ jnp.matrix_transpose(y)
        mix = b * gram + c * (gram @ gram) if c else b * gram
        y = a * y + mix @ y
    return (jnp.matrix_transpose(y) if tall else y).astype(x.dtype)
