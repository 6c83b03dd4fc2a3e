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

from nested_jax.losses import MEASURED, MEASURES, logits_of, measure, measure_and_pull
from nested_jax.ops.normalize import state_dtype

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


# --- the loss with its gradient ---

NAMES = ("loss", "margin", "entropy", "prediction")


def by_autodiff(names: tuple[str, ...], targets: Any) -> Any:
    """The slow twin: all logits at once, and `jax.grad` of the weighted sum of losses."""

    def measured(h: Any, head: Any, weights: Any) -> Any:
        def summed(h: Any) -> Any:
            logits = h.reshape(B * T, D) @ head.T
            found = {n: MEASURES[n](logits, targets.reshape(-1)).reshape(B, T) for n in names}
            return jnp.sum(found["loss"] * weights), found

        gradient, found = jax.grad(summed, has_aux=True)(h)
        return found, gradient

    return measured


def outer_gradients(measured: Any, *args: Any) -> Any:
    """Of a function of all measures and of the gradient, which no token is symmetric in."""

    def outer(*args: Any) -> Any:
        found, gradient = measured(*args)
        wide = gradient.astype(state_dtype(gradient.dtype.name))
        each = jnp.cos(jnp.arange(B * T * len(found), dtype=wide.dtype)).reshape(-1, B, T)
        pairs = zip(found.values(), each, strict=True)
        parts = [jnp.sum(jnp.sin(x.astype(wide.dtype)) * w) for x, w in pairs]
        weigh = jnp.sin(jnp.arange(B * T * D, dtype=wide.dtype)).reshape(B, T, D)
        return sum(parts) + jnp.sum(weigh * jnp.sin(wide))

    return jax.jit(jax.grad(outer, (0, 1, 2)))(*args)


@pytest.mark.parametrize("names", [NAMES, ("loss",), ("entropy", "loss")])
@pytest.mark.parametrize("chunk", [0, 1, 6, 8, 1000])
def test_the_gradient_of_the_loss_is_that_of_autodiff_and_so_are_its_gradients(
    names: tuple[str, ...], chunk: int, float64: None
) -> None:
    h, head, targets = arrays(jnp.float64)
    weights = jax.random.uniform(jax.random.key(1), (B, T), jnp.float64).at[0, 3].set(0.0)
    slow = by_autodiff(names, targets)
    fast = lambda h, head, w: measure_and_pull(h, head, targets, w, chunk, names)  # noqa: E731
    assert_close(jax.jit(fast)(h, head, weights), slow(h, head, weights), rtol=1e-12, atol=1e-14)
    args = h, head, weights
    assert_close(outer_gradients(fast, *args), outer_gradients(slow, *args), rtol=1e-10)


@pytest.mark.parametrize("chunk", [0, 6])
def test_the_gradient_of_the_loss_in_bfloat16_is_within_rounding(chunk: int) -> None:
    h, head, targets = arrays(jnp.float32)
    narrow = h.astype(jnp.bfloat16), head.astype(jnp.bfloat16), jnp.ones((B, T), jnp.float32)
    wide = tuple(x.astype(jnp.float32) for x in narrow)
    slow = by_autodiff(("loss",), targets)
    fast = lambda h, head, w: measure_and_pull(h, head, targets, w, chunk)  # noqa: E731
    pairs = [(jax.jit(fast)(*narrow), slow(*wide))]
    pairs.append((outer_gradients(fast, *narrow), outer_gradients(slow, *wide)))
    for got, want in pairs:
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            # A row of p and its gradient are sums of S products, each rounded to 8 bits.
            np.testing.assert_allclose(a.astype(jnp.float32), b, atol=3e-2 * np.abs(b).max())


@pytest.mark.parametrize("chunk", [0, 6])
def test_measures_have_second_derivatives(chunk: int, float64: None) -> None:
    h, head, targets = arrays(jnp.float64)
    weights = jnp.sin(jnp.arange(B * T, dtype=h.dtype)).reshape(B, T)
    names = NAMES[:3]

    def twice(measured: Any) -> Any:
        def first(h: Any, head: Any) -> Any:
            return sum(jnp.sum(jnp.sin(x) * weights) for x in measured(h, head).values())

        def second(h: Any, head: Any) -> Any:
            dh, dhead = jax.grad(first, (0, 1))(h, head)
            return jnp.sum(jnp.sin(dh)) + jnp.sum(jnp.cos(dhead))

        return jax.jit(jax.grad(second, (0, 1)))(h, head)

    slow = lambda h, head: by_autodiff(names, targets)(h, head, weights)[0]  # noqa: E731
    fast = lambda h, head: measure(h, head, targets, chunk, names)  # noqa: E731
    assert_close(twice(fast), twice(slow), rtol=1e-10)


def products_with_the_head(function: Any, *args: Any) -> int:
    """How many products have an axis of S symbols in an operand or their result."""

    def count(jaxpr: Any) -> int:
        total = 0
        for eqn in jaxpr.eqns:
            shapes = [x.aval.shape for x in (*eqn.invars, *eqn.outvars) if hasattr(x, "aval")]
            total += eqn.primitive.name == "dot_general" and any(S in s for s in shapes)
            total += sum(map(count, jaxprs_in_params(eqn.params)))
        return total

    return count(jax.make_jaxpr(function)(*args).jaxpr)


@pytest.mark.parametrize("chunk", [0, 6])
def test_the_products_with_the_head_are_two_and_five_and_not_made_again(chunk: int) -> None:
    h, head, targets = arrays(jnp.float32)
    weights = jnp.ones((B, T), jnp.float32)
    keep = jax.checkpoint_policies.save_only_these_names(MEASURED)

    def outer(h: Any, head: Any, remat: bool) -> Any:
        def score(h: Any, head: Any) -> Any:
            found, gradient = measure_and_pull(jnp.sin(h), head, targets, weights, chunk)
            return jnp.sum(found["loss"]) + jnp.sum(jnp.sin(gradient))

        return (jax.checkpoint(score, policy=keep) if remat else score)(h, head)

    assert products_with_the_head(lambda h, e: outer(h, e, False), h, head) == 2
    for remat in (False, True):
        both = lambda h, e: jax.grad(outer, (0, 1))(h, e, remat)  # noqa: B023, E731
        assert products_with_the_head(both, h, head) == 2 + 5
