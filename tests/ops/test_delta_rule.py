"""`delta_rule`, online linear memories in blocks, against the reference and against the papers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close
from memory_cases import (
    B,
    H,
    T,
    assert_same,
    first,
    fresh_state,
    make_inputs,
    make_specs,
    make_state,
    name,
    reference,
    value_and_grads,
)

from nested_jax.ops.memory.chunked import memory_chunked
from nested_jax.ops.memory.delta_rule import delta_rule
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.types import Array

BLOCK = 4  # T = 14 is three blocks and a rest
ONLINE = make_specs("linear", chunk=1)
DECAYED = [replace(s, gradient_at="decayed") for s in ONLINE if s.has_keep]
QUICK = {
    "linear-l2-gd-token-write_read-c1",
    "linear-l2-titans+m-token-read_write-c1",
    "linear-dot-dgd-token-write_read-c1",
    "linear-l2-titans-token-write_read-c1-decayed",
}
CASES = [
    pytest.param(s, id=name(s), marks=() if name(s) in QUICK else pytest.mark.slow)
    for s in ONLINE + DECAYED
]


def compiled(spec: MemorySpec, block: int = BLOCK) -> Any:
    return jax.jit(value_and_grads(spec, partial(delta_rule, block=block, remat=False)))


@pytest.mark.parametrize("spec", CASES)
def test_equals_reference_in_values_and_gradients(spec: MemorySpec, float64: None) -> None:
    """Whole rows, rows that end early, and documents that start at any token."""
    state, inputs = make_state(spec, jnp.float64), make_inputs(spec, T, jnp.float64)
    fast, slow = compiled(spec), reference(spec)
    starts = jnp.zeros((B, T), bool).at[0, 0].set(True).at[0, 5].set(True).at[1, 7].set(True)
    lengths_B = jnp.asarray([T, T - 5], jnp.int32)
    fresh = fresh_state(spec, jnp.float64)
    for masks in ({}, {"lengths_B": lengths_B, "starts_BT": starts, "initial": fresh}):
        assert_same(fast(state, inputs, **masks), slow(state, inputs, **masks))


@pytest.mark.parametrize("block", [1, 64])
def test_the_block_changes_nothing(block: int, float64: None) -> None:
    spec = MemorySpec(arch="linear", rule="dgd", momentum=True, chunk=1)
    state, inputs = make_state(spec, jnp.float64), make_inputs(spec, 7, jnp.float64)
    assert_same(compiled(spec, block)(state, inputs), compiled(spec, 3)(state, inputs))


def test_calls_of_any_length_chain(float64: None) -> None:
    spec = MemorySpec(arch="linear", rule="titans", momentum=True, chunk=1)
    state, inputs = make_state(spec, jnp.float64), make_inputs(spec, T, jnp.float64)
    run = jax.jit(partial(delta_rule, spec, block=BLOCK))
    want, y_BTHV = run(state, inputs)
    begun, head = run(state, first(inputs, 5))
    ended, tail = run(begun, jax.tree.map(lambda x: x[:, 5:], inputs))
    assert_close((ended, jnp.concatenate([head, tail], axis=1)), (want, y_BTHV), 1e-12)


def test_wants_an_online_linear_memory() -> None:
    spec = MemorySpec(arch="linear", chunk=2)
    state, inputs = make_state(spec, jnp.float32), make_inputs(spec, 3, jnp.float32)
    with pytest.raises(ValueError, match="wants arch='linear' and chunk=1"):
        delta_rule(spec, state, inputs)
    with pytest.raises(ValueError, match="block=0: wants at least 1 token"):
        delta_rule(replace(spec, chunk=1), state, inputs, block=0)


# --- the members of the family as their papers write them -----------------------------------------


def written(step: Any, fast: Array, *tokens: Array) -> tuple[np.ndarray, np.ndarray]:
    """Run a rule W <- step(W, k, v, ...) token by token; return the last W and all q W."""
    w, (q, *rest) = np.array(fast), [np.asarray(x) for x in tokens]
    answers = np.zeros((*q.shape[:3], w.shape[-1]))
    for b, t, h in np.ndindex(*q.shape[:3]):
        w[b, h] = step(w[b, h], *(x[b, t, h] for x in rest))
        answers[b, t, h] = q[b, t, h] @ w[b, h]
    return w, answers


def deltanet(w: np.ndarray, k: np.ndarray, v: np.ndarray, beta: float) -> np.ndarray:
    return w - beta * np.outer(k, k @ w - v)  # arXiv 2406.06484, transposed


def gated_deltanet(
    w: np.ndarray, k: np.ndarray, v: np.ndarray, beta: float, keep: float
) -> np.ndarray:
    return keep * (w - beta * np.outer(k, k @ w)) + beta * np.outer(k, v)  # arXiv 2412.06464 Eq. 10


def test_gradient_descent_on_l2_is_deltanet(float64: None) -> None:
    spec = MemorySpec(arch="linear", rule="gd", objective="l2", chunk=1)
    state, x = make_state(spec, jnp.float64), make_inputs(spec, 9, jnp.float64)
    after, y = memory_chunked(spec, state, x)
    want = written(deltanet, state.fast[0], x.q_BTHK, x.k_BTHK, x.v_BTHV, x.rate_BTH)
    assert_close((after.fast[0], y), want, 1e-12)


def test_titans_that_keeps_everything_is_gradient_descent(float64: None) -> None:
    spec = MemorySpec(arch="linear", rule="titans", objective="l2", chunk=1)
    state, x = make_state(spec, jnp.float64), make_inputs(spec, 9, jnp.float64)
    x = x._replace(keep_BTH=jnp.ones_like(x.rate_BTH))
    got = memory_chunked(spec, state, x)
    want = memory_chunked(replace(spec, rule="gd"), state, x._replace(keep_BTH=None))
    assert_close(got, want, 1e-13)


def test_titans_without_momentum_is_gated_deltanet(float64: None) -> None:
    """With the gradient at a W it is that rule; as printed, with beta = eta / a and values a v."""
    printed = MemorySpec(arch="linear", rule="titans", objective="l2", chunk=1)
    state, x = make_state(printed, jnp.float64), make_inputs(printed, 9, jnp.float64)
    keep = x.keep_BTH
    assert keep is not None
    tokens = (x.q_BTHK, x.k_BTHK, x.v_BTHV, x.rate_BTH, keep)
    want = written(gated_deltanet, state.fast[0], *tokens)
    after, y = memory_chunked(replace(printed, gradient_at="decayed"), state, x)
    assert_close((after.fast[0], y), want, 1e-12)
    scaled = x._replace(rate_BTH=x.rate_BTH * keep, v_BTHV=x.v_BTHV / keep[..., None])
    after, y = memory_chunked(printed, state, scaled)
    assert_close((after.fast[0], y), want, 1e-12)


@pytest.mark.parametrize("chunk", [1, 3])
def test_dot_moves_the_memory_toward_its_target(chunk: int, float64: None) -> None:
    """NL Eq. 92 with the sign of the gradient: one write to an empty memory answers +eta v."""
    spec = MemorySpec(arch="linear", rule="gd", objective="dot", chunk=chunk)
    empty = jax.tree.map(jnp.zeros_like, make_state(spec, jnp.float64))
    x = make_inputs(spec, 1, jnp.float64)
    _, y = memory_chunked(spec, empty, x._replace(q_BTHK=x.k_BTHK))
    assert_close(y, x.rate_BTH[..., None] * x.v_BTHV, 1e-12)


def test_delta_descent_on_l2_erases_twice(float64: None) -> None:
    """What is stored at the key fades by 1 - 2 eta (a = 1): the erase term and the l2 gradient."""
    spec = MemorySpec(arch="linear", rule="dgd", objective="l2", chunk=1)
    state, x = make_state(spec, jnp.float64), make_inputs(spec, 1, jnp.float64)
    x = x._replace(
        q_BTHK=x.k_BTHK,
        v_BTHV=jnp.zeros_like(x.v_BTHV),
        keep_BTH=jnp.ones_like(x.rate_BTH),
        erase_BTH=None,
    )
    _, y = memory_chunked(spec, state, x)
    found = jnp.einsum("bthk,bhkv->bthv", x.k_BTHK, state.fast[0])
    assert_close(y, (1.0 - 2.0 * x.rate_BTH)[..., None] * found, 1e-12)
    assert y.shape[2] == H


def test_rates_up_to_two_are_stable_and_reflect(float64: None) -> None:
    """At eta = 2 a unit key is mirrored: a negative eigenvalue, and no growth."""
    spec = MemorySpec(arch="linear", rule="gd", objective="l2", chunk=1)
    state, x = make_state(spec, jnp.float64), make_inputs(spec, 1, jnp.float64)
    x = x._replace(
        q_BTHK=x.k_BTHK,
        v_BTHV=jnp.zeros_like(x.v_BTHV),
        rate_BTH=jnp.full_like(x.rate_BTH, 2.0),
    )
    after, y = memory_chunked(spec, state, x)
    found = jnp.einsum("bthk,bhkv->bthv", x.k_BTHK, state.fast[0])
    assert_close(y, -found, 1e-12)
    norm = lambda w: jnp.linalg.norm(w, axis=(-2, -1))  # noqa: E731
    assert_close(norm(after.fast[0]), norm(state.fast[0]), 1e-12)
