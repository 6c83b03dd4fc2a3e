"""Newton-Schulz: singular values in the stated bands, singular vectors untouched."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

from nested_jax.ops.newton_schulz import newton_schulz


def with_singular_values(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(rows)
    u, _ = np.linalg.qr(rng.normal(size=(rows, len(values))))
    v, _ = np.linalg.qr(rng.normal(size=(columns, len(values))))
    return (u * values) @ v.T


@pytest.mark.parametrize(("rows", "columns"), [(8, 12), (12, 8)])
def test_singular_values(rows: int, columns: int) -> None:
    values = np.geomspace(4 * 0.003, 1.0, 8)  # their norm, which is divided out, is below 3
    x = with_singular_values(values, rows, columns)
    y = np.asarray(jax.jit(newton_schulz)(jnp.asarray(x, jnp.float32)))
    got = np.linalg.svd(y, compute_uv=False)
    assert np.all((got >= 0.68) & (got <= 1.21)), got
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    outside = u.T @ y @ vt.T
    assert np.abs(outside - np.diag(np.diag(outside))).max() < 1e-4


def test_scale_and_leading_axes_do_not_matter() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    fn = jax.jit(newton_schulz)
    y = fn(x)
    assert_close(fn(100.0 * x), y, 1e-5)
    assert_close(np.asarray(y)[1, 2], fn(x[1, 2]), 1e-6)
    assert jax.eval_shape(newton_schulz, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_zero_matrix_stays_zero_with_a_finite_gradient() -> None:
    zero = jnp.zeros((4, 3))
    value, gradient = jax.jit(jax.value_and_grad(lambda x: newton_schulz(x).sum()))(zero)
    assert float(value) == 0.0
    assert not np.any(jax.jit(newton_schulz)(zero))
    assert np.isfinite(gradient).all()


def test_errors() -> None:
    with pytest.raises(ValueError, match="wants at least two axes"):
        newton_schulz(jnp.ones(3))
