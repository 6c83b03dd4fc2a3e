"""The flattened product is the contraction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_close

from nested_jax.ops.linear import linear


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "inputs"),
    [
        ((2, 3, 5), (5, 7), 1),
        ((2, 3, 5), (5, 4, 7), 1),
        ((2, 3, 4, 5), (4, 5, 7), 2),
        ((5,), (5, 7), 1),
        ((2, 1, 0, 5), (5, 7), 1),
    ],
)
def test_linear_is_tensordot(
    x_shape: tuple[int, ...], weight_shape: tuple[int, ...], inputs: int, float64: None
) -> None:
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], x_shape, jnp.float64)
    weight = jax.random.normal(keys[1], weight_shape, jnp.float64)
    fast = lambda x, w: linear(x, w, inputs)  # noqa: E731
    slow = lambda x, w: jnp.tensordot(x, w, inputs)  # noqa: E731
    weigh = lambda f: lambda x, w: jnp.sum(jnp.sin(f(x, w)))  # noqa: E731
    assert_close(fast(x, weight), slow(x, weight), rtol=1e-12)
    gradients = [jax.grad(weigh(f), (0, 1))(x, weight) for f in (fast, slow)]
    assert_close(gradients[0], gradients[1], rtol=1e-12)


def test_sums_are_kept_in_the_preferred_type() -> None:
    x, weight = jnp.full((1, 4096), 1.0, jnp.bfloat16), jnp.full((4096, 1), 1.0078125, jnp.bfloat16)
    assert linear(x, weight, preferred_element_type=jnp.float32).item() == 4096 * 1.0078125
    assert linear(x, weight).dtype == jnp.bfloat16
