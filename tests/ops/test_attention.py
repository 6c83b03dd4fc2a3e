"""Softmax attention in blocks and in windows against the softmax of the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, largest

from nested_jax.ops import attention as ops
from nested_jax.ops import attention_kernels as kernels
from nested_jax.ops.attention_kernels import Prefix, blockwise_attention, softmax_attention

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
@pytest.mark.parametrize(
    ("attend", "kernel"),
    [
        (ops.attend, softmax_attention),
        (ops.causal_attend, softmax_attention),
        (ops.attend, blockwise_attention),
    ],
)
def test_attention_is_its_definition(
    attend: Callable[..., Any],
    kernel: Any,
    tokens: int,
    prefix: bool,
    float64: None,
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr(kernels, "KEY_BLOCK", 64)
    x, mask = inputs(tokens, tokens, jnp.float64), causal_mask(tokens)
    if not prefix:
        x = {name: x[name] for name in ("q", "k", "v")}

    def fast(x: dict[str, Any]) -> Any:
        seen = Prefix(x["prefix_q"], x["prefix_k"], x["prefix_v"]) if prefix else None
        return attend(kernel, x["q"], x["k"], x["v"], mask, SCALE, seen)

    compare(fast, lambda x: definition(x, mask, prefix), x)


@pytest.mark.parametrize("kernel", [softmax_attention, blockwise_attention])
@pytest.mark.parametrize(("tokens", "window"), [(1, 4), (3, 4), (4, 4), (13, 4), (9, 16)])
def test_the_window_is_a_band_of_the_full_mask(
    tokens: int, window: int, kernel: Any, float64: None, monkeypatch: Any
) -> None:
    monkeypatch.setattr(kernels, "KEY_BLOCK", 3)
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
    fast = lambda x: ops.window_attend(kernel, x["q"], x["k"], x["v"], blocked, SCALE)  # noqa: E731
    compare(fast, lambda x: definition(x, mask, False), x)


# The fused kernel wants a GPU: `twice` is tried with kernels whose gradients are told apart.
TWICE = {
    "xla": softmax_attention,
    "blockwise": blockwise_attention,
    "twice": kernels.twice(softmax_attention, blockwise_attention),
}


def second(attend: Callable[..., Any], x: dict[str, Any]) -> Any:
    """Gradient of the squared gradient of the squared output, for queries, keys and values."""

    def squared(x: dict[str, Any]) -> Any:
        return jnp.sum(attend(x).astype(jnp.float32 if x["q"].dtype != jnp.float64 else None) ** 2)

    def norm(x: dict[str, Any]) -> Any:
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(squared)(x)))

    return jax.jit(jax.grad(norm))(x)


@pytest.mark.parametrize("kernel", TWICE)
@pytest.mark.parametrize("tokens", [5, 67])
def test_attention_is_differentiable_twice(
    kernel: str, tokens: int, float64: None, monkeypatch: Any
) -> None:
    monkeypatch.setattr(kernels, "KEY_BLOCK", 32)
    x, mask = inputs(tokens, tokens, jnp.float64), causal_mask(tokens)
    x = {name: 0.3 * x[name] for name in ("q", "k", "v")}
    fast = lambda x: TWICE[kernel](x["q"], x["k"], x["v"], mask, SCALE)  # noqa: E731
    assert_close(second(fast, x), second(lambda x: definition(x, mask, False), x), rtol=1e-9)


def test_twice_takes_value_and_gradient_of_the_one_and_second_derivatives_of_the_other() -> None:
    """With a kernel of twice the scale as the one that is differentiated again."""
    x, mask = inputs(5, 5, jnp.float32), causal_mask(5)
    x = {name: 0.3 * x[name] for name in ("q", "k", "v")}

    def doubled(q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
        return softmax_attention(q, k, v, mask, 2 * scale)

    def of(kernel: Any) -> Callable[..., Any]:
        return lambda x: kernel(x["q"], x["k"], x["v"], mask, SCALE)

    mixed = of(kernels.twice(softmax_attention, doubled))
    first = lambda f: jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))(x)  # noqa: E731
    assert_close(mixed(x), of(softmax_attention)(x), rtol=0)
    assert_close(first(mixed), first(of(softmax_attention)), rtol=1e-6)
    moved = jax.tree.map(jnp.subtract, second(mixed, x), second(of(softmax_attention), x))
    assert all(float(jnp.max(jnp.abs(g))) > 1e-3 for g in jax.tree.leaves(moved))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_blocks_hold_no_scores(order: int, monkeypatch: Any) -> None:
    """No array of a program is as large as the scores of all queries and keys."""
    monkeypatch.setattr(kernels, "KEY_BLOCK", 16)
    tokens = 128
    x, mask = inputs(tokens, tokens, jnp.float32), causal_mask(tokens)
    x = {name: x[name] for name in ("q", "k", "v")}

    def derivative(kernel: Any) -> Any:
        attend = lambda x: kernel(x["q"], x["k"], x["v"], mask, SCALE)  # noqa: E731
        first = jax.grad(lambda x: jnp.sum(attend(x) ** 2))
        return (attend, first, lambda x: second(attend, x))[order]

    scores = B * H * tokens * tokens
    assert largest(derivative(blockwise_attention), x) < scores / 2
    assert largest(derivative(softmax_attention), x) >= scores


def test_the_fused_kernel_wants_even_lengths(monkeypatch: Any) -> None:
    """What is appended to odd ones weighs nothing."""
    x, mask = inputs(7, 9, jnp.float32), jnp.asarray(np.tri(7, 9, 2, dtype=bool)[None])
    args = x["q"], x["k"], x["v"], jnp.broadcast_to(mask, (B, 7, 9))

    def library(q: Any, k: Any, v: Any, *, mask: Any, scale: float, implementation: str) -> Any:
        assert q.shape[1] % 2 == k.shape[1] % 2 == v.shape[1] % 2 == 0
        assert implementation == "cudnn"
        return softmax_attention(q, k, v, mask[:, 0], scale)

    monkeypatch.setattr(jax.nn, "dot_product_attention", library)
    assert_close(kernels.fused_attention(*args, SCALE), softmax_attention(*args, SCALE), rtol=1e-6)
