"""Products of gates: values and two derivatives against the definition, zeros included."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close
from jax.test_util import check_grads

from nested_jax.ops.memory.chunk_weights import gate_products, momentum_products, suffix_products


def by_definition(gate: np.ndarray) -> np.ndarray:
    size = len(gate)
    return np.array(
        [
            [np.prod(gate[s + 1 : t + 1]) if s <= t else 0.0 for s in range(size)]
            for t in range(size)
        ]
    )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_products(size: int, float64: None) -> None:
    gate = np.random.default_rng(size).uniform(0.0, 1.0, size)
    gate[size // 2] = 0.0  # a closed gate: logarithms would not survive it
    assert_close(jax.jit(gate_products)(gate), by_definition(gate), 1e-14)


def test_long_products_in_float32() -> None:
    gate = np.random.default_rng(0).uniform(0.9, 1.0, 64)
    assert_close(jax.jit(gate_products)(gate.astype(np.float32)), by_definition(gate), 2e-6)


@pytest.mark.parametrize("size", [2, 5])
def test_two_derivatives(size: int, float64: None) -> None:
    gate = jnp.asarray(np.random.default_rng(size).uniform(0.1, 1.0, size)).at[1].set(0.0)
    check_grads(jax.jit(gate_products), (gate,), order=2)


def test_one_token_differentiates_under_vmap() -> None:
    """A chunk of one token has the constant 1, whose derivative is 0."""
    per_row = jax.vmap(jax.grad(lambda g: gate_products(g).sum()))
    assert per_row(jnp.full((3, 1), 0.5)).tolist() == [[0.0]] * 3


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_weights_with_momentum(size: int, float64: None) -> None:
    """E_t = a_t E_{t-1} + live_t P_t, a closed gate of each kind, a slot without a token."""
    rng = np.random.default_rng(size)
    keep, momentum, live = rng.uniform(0.0, 1.0, size), rng.uniform(0.0, 1.0, size), np.ones(size)
    keep[size // 2] = momentum[size // 3] = live[size - 1] = 0.0
    want, before = by_definition(momentum) * live[:, None], np.zeros(size)
    for t in range(size):
        want[t] += keep[t] * before
        before = want[t]
    got = jax.jit(momentum_products)(keep, momentum, live)
    assert_close(got, want, 1e-14)
    assert_close(jax.jit(suffix_products)(keep), by_definition(keep)[-1], 1e-14)


@pytest.mark.parametrize("size", [2, 5])
def test_two_derivatives_of_weights_with_momentum(size: int, float64: None) -> None:
    rng = np.random.default_rng(size)
    keep, momentum = (jnp.asarray(rng.uniform(0.1, 1.0, size)).at[1].set(0.0) for _ in range(2))
    live = jnp.ones(size).at[-1].set(0.0)
    check_grads(jax.jit(lambda a, m: momentum_products(a, m, live)), (keep, momentum), order=2)
