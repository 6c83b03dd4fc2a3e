"""The LSTM against a loop over tokens, in values and gradients, and as a mixer of a stream."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_equal

import nested_jax
from nested_jax.config import ModelConfig
from nested_jax.models.lm import LanguageModel
from nested_jax.models.state import reset
from nested_jax.ops.lstm import GATES, lstm_scan
from nested_jax.types import Array

BATCH, TOKENS, WIDTH = 3, 7, 5
CFG = ModelConfig(
    block="lstm", vocab_size=23, dim=12, layers=2, heads=2, mlp_hidden=20, lstm_hidden=7
)


def cases() -> dict[str, Array]:
    keys = jax.random.split(jax.random.key(0), 6)
    return {
        "recurrent_FG": 0.5 * jax.random.normal(keys[0], (WIDTH, GATES * WIDTH)),
        "h_BF": jax.random.normal(keys[1], (BATCH, WIDTH)),
        "c_BF": jax.random.normal(keys[2], (BATCH, WIDTH)),
        "z_TBG": jax.random.normal(keys[3], (TOKENS, BATCH, GATES * WIDTH)),
        "keep_TB": (jax.random.uniform(keys[4], (TOKENS, BATCH)) > 0.3).astype(jnp.float32),
        "live_TB": (jax.random.uniform(keys[5], (TOKENS, BATCH)) > 0.3).astype(jnp.float32),
    }


def by_tokens(
    recurrent_FG: Array, h_BF: Array, c_BF: Array, z_TBG: Array, keep_TB: Array, live_TB: Array
) -> tuple[Array, Array, Array]:
    """The equations of an LSTM cell, one token after the other."""
    width, out = h_BF.shape[1], []
    for t in range(z_TBG.shape[0]):
        h0, c0 = h_BF * keep_TB[t][:, None], c_BF * keep_TB[t][:, None]
        a = z_TBG[t] + jnp.einsum("bk,kg->bg", h0, recurrent_FG)
        i, f, o = (1 / (1 + jnp.exp(-a[:, n * width : (n + 1) * width])) for n in (0, 1, 3))
        c1 = f * c0 + i * jnp.tanh(a[:, 2 * width : 3 * width])
        live = live_TB[t][:, None] > 0
        h_BF = jnp.where(live, o * jnp.tanh(c1), h_BF)
        c_BF = jnp.where(live, c1, c_BF)
        out.append(h_BF)
    return h_BF, c_BF, jnp.stack(out)


def scalar(fn: Any, weights: dict[str, Array], masks: dict[str, Array]) -> Array:
    """A function in which every output counts, each element differently."""
    return sum(
        jnp.sum(jnp.sin(x + jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape)))
        for x in fn(**weights, **masks)
    )


def test_values_and_gradients_are_those_of_the_loop() -> None:
    weights = cases()
    masks = {name: weights.pop(name) for name in ("keep_TB", "live_TB")}
    assert 0 < float(masks["keep_TB"].mean()) < 1
    assert 0 < float(masks["live_TB"].mean()) < 1
    both = jax.jit(
        lambda w: tuple(
            (fn(**w, **masks), jax.grad(partial(scalar, fn), argnums=0)(w, masks))
            for fn in (lstm_scan, by_tokens)
        )
    )
    fast, slow = both(weights)
    assert_close(fast[0], slow[0], rtol=1e-5)
    assert_close(fast[1], slow[1], rtol=1e-5)


def test_gradients_can_be_differentiated_again() -> None:
    """The inner loop differentiates, and the outer one through it."""
    weights = cases()
    masks = {name: weights.pop(name) for name in ("keep_TB", "live_TB")}

    def norm(fn: Any, w: dict[str, Array]) -> Array:
        g = jax.grad(partial(scalar, fn))(w, masks)
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(g))

    small = {**weights, "z_TBG": weights["z_TBG"][:3]}
    masks = {name: mask[:3] for name, mask in masks.items()}
    both = jax.jit(lambda w: tuple(jax.grad(partial(norm, fn))(w) for fn in (lstm_scan, by_tokens)))
    assert_close(*both(small), rtol=1e-4)


# --- the mixer ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built() -> tuple[LanguageModel, Any, Array, Any]:
    model = nested_jax.build_model(CFG)
    params = jax.jit(model.init)(jax.random.key(0))
    tokens_BT = jax.random.randint(jax.random.key(1), (2, 13), 0, CFG.vocab_size)
    return model, params, tokens_BT, jax.jit(model.apply)


def test_any_split_and_single_steps_equal_the_whole(built: Any) -> None:
    model, params, tokens_BT, read = built
    fresh = model.init_state(params, 2)
    whole, logits = read(params, fresh, tokens_BT)
    for cuts in ((5,), tuple(range(1, 13))):
        state, parts = fresh, []
        for piece in np.split(np.asarray(tokens_BT), cuts, axis=1):
            state, out = read(params, state, piece)
            parts.append(out)
        assert_close(np.concatenate(parts, axis=1), logits, rtol=2e-6)
        assert_close(state, whole, rtol=2e-6)


def test_a_document_reads_as_if_it_were_alone(built: Any) -> None:
    model, params, tokens_BT, read = built
    starts_BT = jnp.zeros((2, 13), jnp.bool_).at[0, 4].set(True).at[1, 9].set(True)
    state, logits = read(params, model.init_state(params, 2), tokens_BT, starts_BT=starts_BT)
    for row, start in ((0, 4), (1, 9)):
        tail = tokens_BT[row : row + 1, start:]
        alone, want = read(params, model.init_state(params, 1), tail)
        assert_close(logits[row : row + 1, start:], want, rtol=2e-6)
        row_state = jax.tree.map(lambda x, r=row: x[r : r + 1], state.prefix)
        assert_close(row_state, alone.prefix, rtol=2e-6)
    _, without = read(params, model.init_state(params, 2), tokens_BT)
    assert float(jnp.max(jnp.abs(without - logits))) > 1e-2  # the marks did something


def test_padding_leaves_the_state(built: Any) -> None:
    model, params, tokens_BT, read = built
    lengths_B = jnp.asarray([6, 0], jnp.int32)
    fresh = model.init_state(params, 2)
    begun, _ = read(params, fresh, tokens_BT[:, :3])
    state, _ = read(params, begun, tokens_BT, lengths_B=lengths_B)
    short, _ = read(params, begun, tokens_BT[:, :6])
    first = lambda s: jax.tree.map(lambda x: x[:1], s.prefix)  # noqa: E731
    second = lambda s: jax.tree.map(lambda x: x[1:], s.prefix)  # noqa: E731
    assert_close(first(state), first(short), rtol=2e-6)
    assert_equal(second(state), second(begun))


def test_reset_makes_a_sequence_fresh(built: Any) -> None:
    model, params, tokens_BT, read = built
    fresh = model.init_state(params, 2)
    state, _ = read(params, fresh, tokens_BT)
    cleared = reset(state, jnp.asarray([True, False]))
    assert_equal(*(jax.tree.map(lambda x: x[0], s) for s in (cleared, fresh)))
    _, logits = read(params, cleared, tokens_BT)
    _, want = read(params, fresh, tokens_BT)
    assert_close(logits[0], want[0], rtol=2e-6)
    assert float(jnp.max(jnp.abs(logits[1] - want[1]))) > 1e-3


def test_what_it_declares() -> None:
    model = nested_jax.build_model(CFG)
    info = model.param_info()["prefix"]["mixer"]
    assert info["input"].shape == (2, GATES, 12, 7)
    assert info["recurrent"].shape == (2, GATES, 7, 7)
    assert info["out"].shape == (2, 7, 12)
    bias = jax.jit(lambda key: model.init(key)["prefix"]["mixer"]["bias"])(jax.random.key(0))
    bias = np.asarray(bias)
    np.testing.assert_array_equal(bias[:, 1], 1.0)
    np.testing.assert_array_equal(np.delete(bias, 1, axis=1), 0.0)
