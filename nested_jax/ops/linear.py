"""A linear map of the last axes of an array, as the product of two matrices."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax.typing import DTypeLike

from nested_jax.types import Array


def linear(
    x: Array, weight: Array, inputs: int = 1, preferred_element_type: DTypeLike | None = None
) -> Array:
    """Contract the last `inputs` axes of `x` with the first of `weight`, as `jnp.tensordot` does.

    Both are flattened to matrices first. The gradient with respect to `weight` then sums over one
    axis; over two (rows and tokens) XLA transposes the large operand in memory before it multiplies
    (CPU, 4096 tokens: a SwiGLU of width 256 takes 1.4 times as long, the loss over 8192 symbols
    1.5 times).

    Args:
      x: [..., I...], any number of axes before the `inputs` last.
      weight: [I..., O...].
      inputs: number of axes I.
      preferred_element_type: of the sums and the result; None takes the operands'.
    """
    split = x.ndim - inputs
    width = math.prod(weight.shape[:inputs])
    product = jnp.matmul(
        x.reshape(-1, width),
        weight.reshape(width, -1),
        preferred_element_type=preferred_element_type,
    )
    return product.reshape(*x.shape[:split], *weight.shape[inputs:])
