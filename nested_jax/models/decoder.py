"""The decoder of MAD's compression task: every answer comes from the last position alone.

MAD's auto-encoder (athms/mad-lab, mad/model/auto_encoder.py; biases left out): the last position of
the residual stream, a fixed sine-cosine vector for the place that is asked, and two dense GELU
layers that do not widen, each after a norm.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from nested_jax.layers.basic import Declared, fan_in, rms_norm
from nested_jax.ops.linear import linear
from nested_jax.types import Array, PyTree

LONGEST_PERIOD = 10_000.0  # of the position vectors, in tokens over 2 pi
LAYERS = 2


def declare_decoder(key: Array, dim: int) -> dict[str, Declared]:
    """Return the decoder's parameters: for each layer the scale of its norm and a matrix."""
    params = {}
    for i, layer_key in enumerate(jax.random.split(key, LAYERS)):
        matrix_DD = fan_in(dim)(layer_key, (dim, dim))
        params[f"norm_{i}"] = Declared(jnp.ones((dim,), jnp.float32), (None,), "vector")
        params[f"dense_{i}"] = Declared(matrix_DD, ("embed", None), "matrix")
    return params


def decode_last(params: PyTree, x_BTD: Array, eps: float) -> Array:
    """Return an output for each of the T places, made from the last position; same shape and dtype.

    The final norm and the head come after it. Causality does not hold: place 0 is answered by what
    the last position knows.
    """
    places_TD = jnp.asarray(position_vectors(*x_BTD.shape[1:]), x_BTD.dtype)
    y_BTD = x_BTD[:, -1:, :] + places_TD[None]
    for i in range(LAYERS):
        normed_BTD = rms_norm(y_BTD, params[f"norm_{i}"], eps)
        y_BTD = nn.gelu(linear(normed_BTD, params[f"dense_{i}"].astype(x_BTD.dtype)))
    return y_BTD


def position_vectors(tokens: int, dim: int) -> np.ndarray:
    """Return sines and cosines of every place at dim / 2 frequencies from 1 down, [T, D]."""
    half = dim // 2
    frequency_K = LONGEST_PERIOD ** (-np.arange(half) / max(half - 1, 1))
    angle_TK = np.arange(tokens)[:, None] * frequency_K[None]
    return np.concatenate([np.sin(angle_TK), np.cos(angle_TK)], axis=1)
