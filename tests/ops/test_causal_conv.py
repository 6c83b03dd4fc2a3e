"""The short convolution against a loop over tokens and documents, in pieces and whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from helpers import assert_close, assert_equal
from jax.test_util import check_grads

from nested_jax.ops import causal_conv as op

causal_conv = jax.jit(op.causal_conv)
B, T, W, H, K = 2, 9, 4, 3, 5
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 3, 4, 5], [7, 8, 0, 1, 2, 3, 4, 0, 1]], np.int32)


def by_definition(kernel: np.ndarray, tail: np.ndarray, x: np.ndarray) -> np.ndarray:
    joined, y = np.concatenate([tail, x], axis=1), np.zeros_like(x)
    for b, t, lag in np.ndindex(B, T, W):
        if POSITIONS[b, t] >= lag:  # the tap is a token of the same document
            y[b, t] += kernel[lag] * joined[b, W - 1 + t - lag]
    return y


def draw(dtype: type) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    shapes = ((W, H, K), (B, W - 1, H, K), (B, T, H, K))
    arrays = (jnp.asarray(rng.normal(size=s), dtype) for s in shapes)
    return (*arrays, jnp.asarray(POSITIONS))


def test_equals_the_loop(float64: None) -> None:
    kernel, tail, x, position = draw(jnp.float64)
    after, y = causal_conv(kernel, tail, x, position)
    assert_close(y, by_definition(*(np.asarray(a) for a in (kernel, tail, x))), 1e-14)
    assert_equal(after[0], x[0, -3:])
    assert_equal(after[1], x[1, -3:].at[0].set(0.0))  # that token is of the document before
    check_grads(lambda k, t, x: causal_conv(k, t, x, position), (kernel, tail, x), order=1)


def test_pieces_and_rows_that_end_early() -> None:
    kernel, tail, x, position = draw(jnp.float32)
    want, y = causal_conv(kernel, tail, x, position)
    lengths = jnp.array([5, 0], jnp.int32)
    middle, first = causal_conv(kernel, tail, x, position, lengths)
    assert_equal(middle[1], tail[1])  # a row without a token keeps its tail
    rest = [jnp.stack([jnp.roll(a[0], -5, axis=0), a[1]]) for a in (x, position)]
    end, second = causal_conv(kernel, middle, *rest, jnp.array([4, 9], jnp.int32))
    assert_close(jnp.concatenate([first[0, :5], second[0, :4]]), y[0], 1e-6)
    assert_close(second[1], y[1], 1e-6)
    assert_equal(end, want)
