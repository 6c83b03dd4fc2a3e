"""The block inverse against numpy's, and its derivative against finite differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nested_jax.ops.unit_triangular import unit_lower_inverse


def delta_rule_matrix(size: int, rate: float) -> np.ndarray:
    """Rates times the inner products of unit keys: what a delta rule has to solve with."""
    k_CK = np.random.default_rng(size).normal(size=(size, 5))
    k_CK /= np.linalg.norm(k_CK, axis=-1, keepdims=True)
    return np.tril(rate * k_CK @ k_CK.T, -1)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9, 21, 64])
def test_it_is_the_inverse(size: int) -> None:
    lower_CC = delta_rule_matrix(size, 1.9)
    want = np.linalg.inv(np.eye(size) + lower_CC)
    got = jax.jit(unit_lower_inverse)(jnp.asarray(lower_CC, jnp.float32))
    np.testing.assert_allclose(got, want, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize("size", [5, 21])
def test_only_what_is_below_the_diagonal_is_read(float64: None, size: int) -> None:
    lower_CC = delta_rule_matrix(size, 1.9)
    got = unit_lower_inverse(jnp.asarray(lower_CC + np.triu(np.full((size, size), 7.0))))
    want = np.linalg.inv(np.eye(size) + lower_CC)
    np.testing.assert_allclose(got, want, atol=1e-14 * np.abs(want).max())


def test_two_derivatives(float64: None) -> None:
    check_grads(unit_lower_inverse, (jnp.asarray(delta_rule_matrix(5, 1.5)),), order=2)


def test_many_solves_at_once_return() -> None:
    """Independent solves in one program: with LAPACK's kernel this never came back on two cores."""
    lower_XCC = jnp.asarray(np.stack([delta_rule_matrix(16, r) for r in np.linspace(0.1, 1.9, 32)]))
    solve = jax.vmap(unit_lower_inverse)

    @jax.jit
    def both(lower_XCC: jax.Array) -> jax.Array:
        def body(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            return carry + solve(lower_XCC) + jnp.swapaxes(solve(0.5 * lower_XCC), 1, 2), None

        return jax.lax.scan(body, jnp.zeros_like(lower_XCC), length=20)[0]

    assert jnp.isfinite(both(lower_XCC.astype(jnp.float32))).all()
