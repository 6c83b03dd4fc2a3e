"""Attention in bfloat16, written out and fused, against float32.

The fused one wants a GPU: JAX_PLATFORMS=cuda python -m pytest -m gpu
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

from nested_jax.ops.attention import ATTENTION

B, T, H, G, K = 2, 128, 4, 2, 64
SCALE = K**-0.5
ON_GPU = pytest.mark.skipif(jax.default_backend() != "gpu", reason="wants a GPU")


def inputs() -> tuple[list[Any], Any]:
    """Return queries, keys, values and weights of the outputs, and a mask of two documents."""
    shapes = [(B, T, H, K), (B, T, G, K), (B, T, G, K), (B, T, H, K)]
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]
    document = np.arange(T) >= 50
    mask = np.tril(document[:, None] == document[None, :])
    return arrays, jnp.asarray(np.broadcast_to(mask, (B, T, T)))


@pytest.mark.parametrize(
    "implementation",
    ["xla", pytest.param("cudnn", marks=[pytest.mark.gpu, ON_GPU])],
)
def test_bfloat16_is_float32_within_its_rounding(implementation: str) -> None:
    """Values and gradients; products of bfloat16 are rounded to 8 bits, sums are not."""
    (q, k, v, weight), mask = inputs()

    def run(name: str, dtype: Any) -> Any:
        def loss(q: Any, k: Any, v: Any) -> Any:
            y = ATTENTION[name](q, k, v, mask, SCALE)
            return jnp.sum(y.astype(jnp.float32) * weight.astype(jnp.float32)), y

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        (_, y), gradients = step(*(x.astype(dtype) for x in (q, k, v)))
        return jax.tree.map(lambda x: x.astype(jnp.float32), (y, gradients))

    assert_close(run(implementation, jnp.bfloat16), run("xla", jnp.float32), rtol=1e-2)
