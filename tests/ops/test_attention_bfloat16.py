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

from nested_jax.ops import attention_kernels
from nested_jax.ops.attention_kernels import KERNELS, TWICE

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
    ["xla", "blockwise", pytest.param("cudnn", marks=[pytest.mark.gpu, ON_GPU])],
)
def test_bfloat16_is_float32_within_its_rounding(implementation: str) -> None:
    """Values and gradients; products of bfloat16 are rounded to 8 bits, sums are not."""
    (q, k, v, weight), mask = inputs()

    def run(name: str, dtype: Any) -> Any:
        def loss(q: Any, k: Any, v: Any) -> Any:
            y = KERNELS[name](q, k, v, mask, SCALE)
            return jnp.sum(y.astype(jnp.float32) * weight.astype(jnp.float32)), y

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        (_, y), gradients = step(*(x.astype(dtype) for x in (q, k, v)))
        return jax.tree.map(lambda x: x.astype(jnp.float32), (y, gradients))

    assert_close(run(implementation, jnp.bfloat16), run("xla", jnp.float32), rtol=1e-2)


@pytest.mark.parametrize("tokens", [T, T - 1], ids=["even", "odd"])
@pytest.mark.parametrize(
    "implementation",
    ["xla", "blockwise", pytest.param("cudnn", marks=[pytest.mark.gpu, ON_GPU])],
)
def test_second_derivatives_in_bfloat16(
    implementation: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of a function of the gradients, as the outer loss has it of the inner."""
    monkeypatch.setattr(attention_kernels, "KEY_BLOCK", 48)
    (q, k, v, weight), mask = inputs()
    arrays, mask = [x[:, :tokens] for x in (q, k, v, weight)], mask[:, :tokens, :tokens]

    def run(kernel: Any, dtype: Any) -> Any:
        *args, weight = (x.astype(dtype) for x in arrays)

        def inner(args: Any) -> Any:
            y = kernel(*args, mask, SCALE)
            return jnp.sum(y.astype(jnp.float32) * weight.astype(jnp.float32))

        def outer(args: Any) -> Any:
            grads = jax.grad(inner)(args)
            return sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in grads)

        return jax.tree.map(lambda x: x.astype(jnp.float32), jax.jit(jax.grad(outer))(args))

    assert_close(run(TWICE[implementation], jnp.bfloat16), run(TWICE["xla"], jnp.float32), 3e-2)
