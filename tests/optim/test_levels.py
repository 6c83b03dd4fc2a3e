"""A level moves once a period and is bit-identical between; what it makes of its gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_equal
from optim_reference import adam

from nested_jax.config import OptimConfig
from nested_jax.optim import every, make_optimizer, make_schedule, scale_by_adam
from nested_jax.types import ParamInfo

PERIODS = (1, 3, 4)
INFO = {
    "a": ParamInfo((6, 5), ("embed", "mlp"), "matrix", 0),
    "b": ParamInfo((6, 5), ("embed", "mlp"), "matrix", 1),
    "c": ParamInfo((5,), ("mlp",), "vector", 2),
    "d": ParamInfo((5, 6), ("mlp", "embed"), "matrix", 3),  # beyond the last period: it repeats
}
CLOCK = {"a": 1, "b": 3, "c": 4, "d": 4}


def gradients(steps, shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()} for _ in range(steps)
    ]


INNER = {"adam": (scale_by_adam, adam), "sgd": (optax.identity, iter)}


@pytest.mark.parametrize("mode", ["mean", "sum", "last"])
@pytest.mark.parametrize("inner", INNER)
def test_modes_against_a_loop(mode, inner):
    """Adam shows which gradients reach the state, gradient descent how long the step is."""
    steps, period, rate = 13, 4, 0.1
    make, reference = INNER[inner]
    grads = [g["w"] for g in gradients(steps, {"w": (3, 2)})]
    tx = every(optax.chain(make(), optax.scale(-rate)), period, mode)
    params = {"w": jnp.ones((3, 2))}
    state, update = tx.init(params), jax.jit(tx.update)

    blocks = [grads[i : i + period] for i in range(0, steps - period + 1, period)]
    taken = {
        "mean": [np.mean(block, axis=0) for block in blocks],
        "last": [block[-1] for block in blocks],
        "sum": grads,
    }[mode]
    want = [-rate * u for u in reference([np.float64(g) for g in taken])]
    if mode == "sum":
        want = [sum(want[i : i + period]) for i in range(0, steps - period + 1, period)]
    for step, g in enumerate(grads):
        got, state = update({"w": jnp.asarray(g)}, state, params)
        if (step + 1) % period == 0:
            assert_close(got["w"], want[step // period], rtol=2e-6)
        else:
            np.testing.assert_array_equal(got["w"], 0.0)


@pytest.mark.parametrize("name", ["adamw", "m3"])
@pytest.mark.parametrize("mode", ["mean", "sum", "last"])
def test_every_level_moves_exactly_at_its_period(name, mode):
    cfg = OptimConfig(name=name, periods=PERIODS, period_mode=mode, warmup_steps=0)
    tx = make_optimizer(cfg, 20, INFO)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), INFO)
    state, update = tx.init(params), jax.jit(tx.update)
    moved = {k: [] for k in INFO}
    for step, grads in enumerate(gradients(9, {k: v.shape for k, v in INFO.items()})):
        updates, state = update(jax.tree.map(jnp.asarray, grads), state, params)
        new = optax.apply_updates(params, updates)
        for k in INFO:
            same = np.array_equal(new[k], params[k])
            assert same or np.all(np.asarray(new[k]) != np.asarray(params[k]))
            moved[k] += [] if same else [step]
        params = new
    assert moved == {k: list(range(p - 1, 9, p)) for k, p in CLOCK.items()}


@pytest.mark.parametrize("mode", ["mean", "last"])
def test_the_inner_state_rests_between(mode):
    tx = every(scale_by_adam(), 3, mode)
    params = {"w": jnp.ones((3, 2))}
    state = tx.init(params)
    for step, g in enumerate(gradients(3, {"w": (3, 2)})):
        before = state.inner
        _, state = tx.update(jax.tree.map(jnp.asarray, g), state, params)
        if step < 2:
            assert_equal(state.inner, before)
        else:
            assert int(state.inner.step) == 1


@pytest.mark.parametrize("mode", ["mean", "sum", "last"])
def test_the_rate_is_that_of_the_outer_step_over_the_period(mode):
    """With a constant gradient Adam steps by exactly the rate, so the rate can be read off."""
    period = 3
    cfg = OptimConfig(
        periods=(1, period), period_mode=mode, warmup_steps=2,
        weight_decay=0.0, clip_norm=0.0, learning_rate=0.1,
    )  # fmt: skip
    info = {"w": ParamInfo((2,), ("mlp",), "vector", 1)}
    tx, schedule = make_optimizer(cfg, 10, info), make_schedule(cfg, 10)
    params = {"w": jnp.zeros(2)}
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(9):
        updates, state = update({"w": jnp.full(2, 0.5)}, state, params)
        if (step + 1) % period:
            continue
        steps = range(step - period + 1, step + 1) if mode == "sum" else [step]
        want = -sum(float(schedule(s)) for s in steps) / period
        np.testing.assert_allclose(updates["w"], want, rtol=1e-5)


def test_bad_periods_and_modes_are_named():
    with pytest.raises(ValueError, match="period=0"):
        every(scale_by_adam(), 0)
    with pytest.raises(ValueError, match="mode='median': wants one of"):
        every(scale_by_adam(), 2, "median")


def test_period_one_is_the_inner_transformation():
    inner = scale_by_adam()
    assert every(inner, 1, "sum") is inner
