"""8 virtual devices against one, placement of the state, a checkpoint in mid-period."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_equal
from jax.sharding import PartitionSpec

from nested_jax.config import MeshConfig, OptimConfig
from nested_jax.optim import make_optimizer, optimizer_shardings
from nested_jax.sharding import make_mesh, param_shardings
from nested_jax.types import ParamInfo

L, D, H, K, F, S = 2, 16, 4, 6, 12, 24
INFO = {
    "embed": ParamInfo((S, D), ("vocab", "embed"), "embed"),
    "q": ParamInfo((L, D, H, K), ("layers", "embed", "heads", "head_width"), "matrix"),
    "o": ParamInfo((L, H, K, D), ("layers", "heads", "head_width", "embed"), "matrix"),
    "up": ParamInfo((L, D, F), ("layers", "embed", "mlp"), "matrix", 1),
    "scale": ParamInfo((L, D), ("layers", "norm"), "vector"),
}
NAMES = ("adamw", "muon", "m3", "dgd", "delta_momentum", "deep_momentum")


def config(name):
    return OptimConfig(name=name, periods=(1, 2), m3_period=2, warmup_steps=0)


def normal(seed):
    rng = np.random.default_rng(seed)
    return {k: np.float32(0.1 * rng.normal(size=leaf.shape)) for k, leaf in INFO.items()}


def make_step(tx):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


def train(step, params, state, steps):
    """Return parameters and state after the gradients `steps`, placed like their parameters."""
    for seed in steps:
        grads = jax.tree.map(lambda g, p: jax.device_put(g, p.sharding), normal(seed), params)
        params, state = step(params, state, grads)
    return params, state


@pytest.mark.parametrize(
    "name",
    [
        "m3",  # holds AdamW, Newton-Schulz and both clocks
        "delta_momentum",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("adamw", "muon", "dgd")),
        pytest.param("deep_momentum", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_equal_one(name):
    tx = make_optimizer(config(name), 20, INFO)
    step, params = make_step(tx), jax.device_put(normal(99))
    alone, alone_state = train(step, params, jax.jit(tx.init)(params), range(4))

    mesh = make_mesh(MeshConfig(data=1, fsdp=4, model=2))
    places = param_shardings(mesh, INFO)
    abstract = jax.eval_shape(lambda: params)
    state_places = optimizer_shardings(tx, abstract, places, mesh)
    spread = jax.device_put(params, places)
    state = jax.jit(tx.init, out_shardings=state_places)(spread)
    spread, state = train(step, spread, state, range(4))
    assert_close(spread, alone, rtol=1e-6)
    assert_close(state, alone_state, rtol=1e-5)

    def kept(x, place):
        assert x.sharding.is_equivalent_to(place, x.ndim), (x.sharding, place)

    jax.tree.map(kept, spread, places)
    jax.tree.map(kept, state, state_places)


@pytest.mark.parametrize("name", NAMES)
def test_state_lies_where_its_parameter_lies(name):
    tx = make_optimizer(config(name), 20, INFO)
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, model=2))
    abstract = jax.eval_shape(lambda: normal(0))
    places = param_shardings(mesh, INFO)
    state_places = optimizer_shardings(tx, abstract, places, mesh)
    state = jax.eval_shape(tx.init, abstract)
    assert jax.tree.structure(state) == jax.tree.structure(state_places)
    seen = set()
    leaves = jax.tree_util.tree_leaves_with_path(state_places)
    for (path, place), leaf in zip(leaves, jax.tree.leaves(state), strict=True):
        key = next((k.key for k in reversed(path) if getattr(k, "key", None) in INFO), None)
        if key is None:
            assert leaf.shape == ()
            assert place.spec == PartitionSpec()
        else:
            assert leaf.shape == INFO[key].shape
            assert place == places[key]
            seen.add(key)
    if name != "dgd":  # the one rule without a state
        assert seen == set(INFO)


@pytest.mark.parametrize("name", ["adamw", "m3"])
def test_a_checkpoint_in_the_middle_of_a_period_continues_bit_for_bit(name):
    tx = make_optimizer(config(name), 20, INFO)
    step, params = make_step(tx), jax.device_put(normal(99))
    fresh = jax.jit(tx.init)(params)
    whole, whole_state = train(step, params, fresh, range(6))

    half, half_state = train(step, params, fresh, range(3))  # the period of level 1 is open
    file = io.BytesIO()
    np.savez(file, *(np.asarray(x) for x in jax.tree.leaves((half, half_state))))
    file.seek(0)
    leaves = [jnp.asarray(x) for x in np.load(file).values()]
    structure = jax.tree.structure((params, fresh))
    restored, restored_state = train(step, *jax.tree.unflatten(structure, leaves), range(3, 6))
    assert_equal(restored, whole)
    assert_equal(restored_state, whole_state)
