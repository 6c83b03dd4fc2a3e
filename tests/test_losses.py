"""The cross-entropy in chunks against the definition over all logits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close
from jax.extend.core import jaxprs_in_params

from nested_jax.losses import logits_of, measure

B, T, D, S = 2, 11, 5, 17


def arrays(dtype: Any) -> tuple[Any, Any, Any]:
    keys = jax.random.split(jax.random.key(0), 3)
    h = 3.0 * jax.random.normal(keys[0], (B, T, D), dtype)
    head = jax.random.normal(keys[1], (S, D), dtype)
    return h, head, jax.random.randint(keys[2], (B, T), 0, S)


@pytest.mark.parametrize("chunk", [0, 1, 6, 8, 2 * T, 1000])
def test_loss_and_entropy_do_not_depend_on_the_chunk(chunk: int, float64: None) -> None:
    h, head, targets = arrays(jnp.float64)

    def definition(h: Any, head: Any) -> tuple[Any, Any]:
        log_p = jax.nn.log_softmax(jnp.einsum("btd,sd->bts", h, head))
        loss = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
        return loss, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def chunked(h: Any, head: Any) -> tuple[Any, Any]:
        found = measure(h, head, targets, chunk, ("loss", "entropy"))
        return found["loss"], found["entropy"]

    def gradients(f: Any) -> Any:
        def value(h: Any, head: Any) -> Any:
            loss, entropy = f(h, head)
            weights = jnp.sin(jnp.arange(B * T, dtype=h.dtype)).reshape(B, T)
            return jnp.sum(weights * loss) + jnp.sum(jnp.square(entropy))

        return jax.jit(jax.grad(value, (0, 1)))(h, head)

    assert_close(chunked(h, head), definition(h, head), rtol=1e-12)
    assert_close(gradients(chunked), gradients(definition), rtol=1e-10)


@pytest.mark.parametrize("chunk", [0, 6, 1000])
def test_smoothed_targets_are_the_loss_and_a_share_of_the_margin(chunk: int, float64: None) -> None:
    h, head, targets = arrays(jnp.float64)
    weights = jnp.sin(jnp.arange(B * T, dtype=h.dtype)).reshape(B, T)

    def definition(h: Any, head: Any) -> Any:
        smooth = optax.smooth_labels(jax.nn.one_hot(targets, S, dtype=h.dtype), 0.3)
        return optax.softmax_cross_entropy(jnp.einsum("btd,sd->bts", h, head), smooth)

    def chunked(h: Any, head: Any) -> Any:
        found = measure(h, head, targets, chunk, ("loss", "margin"))
        return found["loss"] + 0.3 * found["margin"]

    def gradients(f: Any) -> Any:
        return jax.jit(jax.grad(lambda *x: jnp.sum(weights * f(*x)), (0, 1)))(h, head)

    assert_close(chunked(h, head), definition(h, head), rtol=1e-12)
    assert_close(gradients(chunked), gradients(definition), rtol=1e-10)


def test_a_uniform_model_loses_ln_vocabulary() -> None:
    h, head, targets = arrays(jnp.float32)
    loss = measure(jnp.zeros_like(h), head, targets, 4)["loss"]
    np.testing.assert_array_equal(np.asarray(loss), np.float32(np.log(S)))


def test_logits_of_bfloat16_are_summed_in_float32() -> None:
    h, head, _ = arrays(jnp.float32)
    logits = logits_of(h.astype(jnp.bfloat16), head)
    assert logits.shape == (B, T, S)
    assert logits.dtype == jnp.float32
    rounded = jnp.einsum(
        "btd,sd->bts", *(x.astype(jnp.bfloat16).astype(jnp.float32) for x in (h, head))
    )
    assert_close(logits, rounded, rtol=1e-6)


def test_gradients_of_bfloat16_logits_are_products_of_bfloat16() -> None:
    """First and second derivatives, within the rounding of their operands."""
    h, head, targets = arrays(jnp.float32)

    def loss(h: Any, head: Any) -> Any:
        return jnp.sum(measure(h, head, targets, 0)["loss"])

    def second(h: Any, head: Any) -> Any:
        inner = jax.grad(loss)(h, head).astype(jnp.float32)
        return jnp.sum(jnp.sin(inner))

    both = lambda h, head: (jax.grad(loss, (0, 1))(h, head), jax.grad(second, (0, 1))(h, head))  # noqa: E731
    narrow = h.astype(jnp.bfloat16), head.astype(jnp.bfloat16)
    wide = tuple(x.astype(jnp.float32) for x in narrow)
    got = jax.tree.map(lambda x: x.astype(jnp.float32), jax.jit(both)(*narrow))
    assert_close(got, jax.jit(both)(*wide), rtol=3e-2)

    def operands(jaxpr: Any) -> Any:
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                yield from (x.aval.dtype for x in eqn.invars)
            for sub in jaxprs_in_params(eqn.params):
                yield from operands(sub)

    assert set(operands(jax.make_jaxpr(both)(*narrow).jaxpr)) == {jnp.dtype(jnp.bfloat16)}
