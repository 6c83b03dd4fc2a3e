"""Softmax attention in blocks and in windows against the softmax of the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

from nested_jax.ops import attention as ops

B, H, G, K, V, P = 2, 6, 3, 4, 5, 7
SCALE = 0.3


def inputs(tokens: int, slots: int, dtype: Any) -> dict[str, Any]:
    """Random queries, keys, values and persistent tokens."""
    shapes = {
        "q": (B, tokens, H, K),
        "k": (B, slots, G, K),
        "v": (B, slots, G, V),
        "prefix_q": (B, tokens, H, K),
        "prefix_k": (P, G, K),
        "prefix_v": (P, G, V),
    }
    keys = jax.random.split(jax.random.key(1), len(shapes))
    pairs = zip(keys, shapes.items(), strict=True)
    return {name: 2.0 * jax.random.normal(key, shape, dtype) for key, (name, shape) in pairs}


def definition(x: dict[str, Any], mask_BTU: Any, prefix: bool) -> Any:
    """One softmax over all keys, with every key head repeated for its query heads."""
    repeat = lambda y, axis: jnp.repeat(y, H // G, axis)  # noqa: E731
    score = SCALE * jnp.einsum("bthk,buhk->bhtu", x["q"], repeat(x["k"], 2))
    score = jnp.where(mask_BTU[:, None], score, -jnp.inf)
    first = P if prefix else 0
    if prefix:
        more = SCALE * jnp.einsum("bthk,phk->bhtp", x["prefix_q"], repeat(x["prefix_k"], 1))
        score = jnp.concatenate([more, score], axis=-1)
    p = jax.nn.softmax(score, axis=-1)
    y = jnp.einsum("bhtu,buhv->bthv", p[..., first:], repeat(x["v"], 2))
    if prefix:
        y += jnp.einsum("bhtp,phv->bthv", p[..., :first], repeat(x["prefix_v"], 1))
    return y


def causal_mask(tokens: int) -> Any:
    """Three documents in every row, cut elsewhere in each."""
    position = np.arange(tokens)
    document = np.stack([(position >= 0.3 * tokens) + 1, (position >= 0.6 * tokens) + 1])
    same = document[:, :, None] == document[:, None, :]
    return jnp.asarray(same & (position[:, None] >= position[None, :]))


def compare(fast: Callable[..., Any], slow: Callable[..., Any], x: dict[str, Any]) -> None:
    """Values, and gradients with respect to every input, of the same weighted sum."""

    def both(f: Callable[..., Any]) -> Any:
        def value(x: dict[str, Any]) -> Any:
            y = f(x)
            weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
            return jnp.sum(y * weights), y

        return jax.jit(jax.grad(value, has_aux=True))(x)

    assert_close(both(fast), both(slow), rtol=1e-10, atol=1e-13)  # a lone key has no gradient


@pytest.mark.parametrize("prefix", [False, True], ids=["", "persistent"])
@pytest.mark.parametrize("tokens", [1, 63, 65, 300])
@pytest.mark.parametrize("attend", [ops.attend, ops.causal_attend])
def test_attention_is_its_definition(
    attend: Callable[..., Any], tokens: int, prefix: bool, float64: None
) -> None:
    x, mask = inputs(tokens, tokens, jnp.float64), causal_mask(tokens)
    if not prefix:
        x = {name: x[name] for name in ("q", "k", "v")}

    def fast(x: dict[str, Any]) -> Any:
        seen = ops.Prefix(x["prefix_q"], x["prefix_k"], x["prefix_v"]) if prefix else None
        return attend("xla", x["q"], x["k"], x["v"], mask, SCALE, seen)

    compare(fast, lambda x: definition(x, mask, prefix), x)


@pytest.mark.parametrize(("tokens", "window"), [(1, 4), (3, 4), (4, 4), (13, 4), (9, 16)])
def test_the_window_is_a_band_of_the_full_mask(tokens: int, window: int, float64: None) -> None:
    x = inputs(tokens, window + tokens, jnp.float64)
    x = {name: x[name] for name in ("q", "k", "v")}
    segment = jnp.asarray(np.repeat([[1], [2]], tokens, 1).astype(np.int32))
    segment = segment.at[0, tokens // 2 :].set(5)
    slots = jnp.asarray(np.repeat([[1], [7]], window, 1).astype(np.int32))  # row 1: another text
    joined = jnp.concatenate([slots, segment], axis=1)
    age = (window + np.arange(tokens))[:, None] - np.arange(window + tokens)[None, :]
    band = jnp.asarray((age >= 0) & (age < window))
    mask = band[None] & (segment[:, :, None] == joined[:, None, :])
    blocked = ops.window_mask(segment, slots)
    fast = lambda x: ops.window_attend("xla", x["q"], x["k"], x["v"], blocked, SCALE)  # noqa: E731
    compare(fast, lambda x: definition(x, mask, False), x)


def test_attention_is_differentiable_twice(float64: None) -> None:
    x = inputs(5, 5, jnp.float64)
    mask = causal_mask(5)

    def value(k: Any) -> Any:
        return jnp.sum(ops.causal_attend("xla", x["q"], k, x["v"], mask, SCALE) ** 2)

    def slow(k: Any) -> Any:
        return jnp.sum(definition({**x, "k": k}, mask, False) ** 2)

    second = lambda f: jax.jit(jax.grad(lambda k: jnp.sum(jax.grad(f)(k) ** 2)))(x["k"])  # noqa: E731
    assert_close(second(value), second(slow), rtol=1e-10)
