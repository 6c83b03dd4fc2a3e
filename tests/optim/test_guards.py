"""A bad step is one that never was, is counted, and is never accepted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_equal

from nested_jax.config import OptimConfig
from nested_jax.optim import bad_updates, make_optimizer, scale_by_adam, skip_non_finite
from nested_jax.types import ParamInfo

INFO = {
    "w": ParamInfo((6, 5), ("embed", "mlp"), "matrix"),
    "slow": ParamInfo((5, 6), ("mlp", "embed"), "matrix", 1),
    "b": ParamInfo((5,), ("mlp",), "vector"),
}


def gradient(step, bad=None):
    rng = np.random.default_rng(step)
    grads = {name: np.float32(rng.normal(size=leaf.shape)) for name, leaf in INFO.items()}
    if bad is not None:
        name, value = bad
        grads[name].flat[0] = value
    return grads


def train(cfg, schedule_of_bad):
    tx = make_optimizer(cfg, 20, INFO)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), INFO)
    state, update = tx.init(params), jax.jit(tx.update)
    counts = []
    for step, bad in enumerate(schedule_of_bad):
        updates, state = update(gradient(step, bad), state, params)
        if bad is not None:
            assert all(not np.any(u) for u in jax.tree.leaves(updates))
        params = optax.apply_updates(params, updates)
        counts.append(tuple(int(n) for n in bad_updates(state)))
    return params, state, counts


@pytest.mark.parametrize("name", ["adamw", "m3", "delta_momentum"])
def test_a_run_with_bad_steps_is_the_run_without_them(name):
    """1e30 is finite, but its square is not: it would leave an infinite second moment."""
    cfg = OptimConfig(name=name, periods=(1, 3), m3_period=2, clip_norm=0.0)
    tx = make_optimizer(cfg, 20, INFO)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), INFO)
    state, update = tx.init(params), jax.jit(tx.update)
    clean_params, clean_state = params, state
    bad = [None, ("b", np.nan), None, ("slow", np.inf), ("w", 1e30), None, None]
    for step, where in enumerate(bad):
        before = state
        updates, state = update(gradient(step, where), state, params)
        if where is None:
            clean, clean_state = update(gradient(step), clean_state, clean_params)
            clean_params = optax.apply_updates(clean_params, clean)
        else:
            assert_equal(state[1].inner, before[1].inner)
        params = optax.apply_updates(params, updates)
    assert_equal(params, clean_params)
    assert_equal(state[1].inner, clean_state[1].inner)
    assert tuple(int(n) for n in bad_updates(state)) == (3, 0)


def test_counts():
    nan = ("w", np.nan)
    _, _, counts = train(OptimConfig(warmup_steps=0), [None, nan, nan, None, nan])
    assert counts == [(0, 0), (1, 1), (2, 2), (2, 0), (3, 1)]


def test_it_is_never_accepted():
    params, _, counts = train(OptimConfig(warmup_steps=0), [("b", np.inf)] * 40)
    assert counts[-1] == (40, 40)
    assert_equal(params, jax.tree.map(lambda leaf: jnp.ones(leaf.shape), INFO))


def test_an_update_that_overflows_is_skipped_too():
    tx = skip_non_finite(optax.scale(1e30))
    params = {"w": jnp.ones(3)}
    updates, state = tx.update({"w": jnp.full(3, 1e15)}, tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], 0.0)
    assert int(bad_updates(state).total) == 1


def test_a_frozen_parameters_gradient_is_not_looked_at():
    cfg = OptimConfig(param_policy="exclude_memory", warmup_steps=0)
    _, _, counts = train_with(cfg, gradient(0, ("slow", np.nan)))
    assert counts == (0, 0)


def train_with(cfg, grads):
    tx = make_optimizer(cfg, 20, INFO)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), INFO)
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    return updates, state, tuple(int(n) for n in bad_updates(state))


def test_a_state_without_a_guard_is_an_error():
    tx = scale_by_adam()
    with pytest.raises(ValueError, match="holds 0 guards"):
        bad_updates(tx.init({"w": jnp.ones(3)}))
