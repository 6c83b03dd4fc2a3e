"""Unit vectors whose gradient is finite everywhere, and the dtypes beside a compute dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close
from jax.test_util import check_grads

from nested_jax.ops.normalize import l2_normalize, state_dtype, widen


def test_unit_length_and_direction(float64: None) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 5))
    y = np.asarray(jax.jit(l2_normalize)(x))
    assert_close(np.linalg.norm(y, axis=-1), np.ones((2, 3)), 1e-14)
    assert_close(y * np.linalg.norm(x, axis=-1, keepdims=True), x, 1e-14)
    check_grads(jax.jit(l2_normalize), (jnp.asarray(x),), order=2)


def test_short_vectors_are_scaled_not_blown_up(float64: None) -> None:
    x = np.asarray([3e-8, 4e-8])
    assert_close(jax.jit(l2_normalize)(x), x / 1e-6, 1e-14)
    jacobian = jax.jit(jax.jacobian(l2_normalize))(jnp.zeros(3))
    assert_close(jacobian, 1e6 * np.eye(3), 1e-14)


@pytest.mark.parametrize(
    ("compute", "state"),
    [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_dtypes(compute: str, state: str, float64: None) -> None:
    assert state_dtype(compute) == jnp.dtype(state)
    x = jnp.ones(3, jnp.dtype(compute))
    assert widen(x).dtype == jnp.dtype(state)
    assert l2_normalize(x).dtype == x.dtype
