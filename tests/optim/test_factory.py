"""`make_optimizer`: groups, decay, clip, frozen parameters, and optax's manners."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_equal
from optim_reference import muon

from nested_jax.config import OptimConfig
from nested_jax.optim import factory, group_counts, make_optimizer
from nested_jax.optim.factory import DECAYED, KINDS
from nested_jax.types import ParamInfo

L, D, H, K, F, S = 2, 6, 3, 4, 5, 7
INFO = {
    "embed": ParamInfo((S, D), ("vocab", "embed"), "embed"),
    "head": ParamInfo((D, S), ("embed", "vocab"), "head"),
    "blocks": {
        "q": ParamInfo((L, D, H, K), ("layers", "embed", "heads", "head_width"), "matrix"),
        "o": ParamInfo((L, H, K, D), ("layers", "heads", "head_width", "embed"), "matrix"),
        "scale": ParamInfo((L, D), ("layers", "embed"), "vector"),
        "conv": ParamInfo((L, 4, D), ("layers", "conv", "embed"), "conv"),
        "level1": ParamInfo((L, D, F), ("layers", "embed", "mlp"), "matrix", 1),
        "level1_rate": ParamInfo((L,), ("layers",), "vector", 1),
        "memory": ParamInfo((L, K, K), ("layers", "head_width", None), "fast0"),
    },
}
NAMES = ("adamw", "muon", "m3", "dgd", "delta_momentum", "deep_momentum")
COUNTS = {"q": L * D * H * K, "o": L * H * K * D, "level1": L * D * F, "memory": L * K * K}


def params_of(info, scale=1.0):
    rng = np.random.default_rng(9)
    return jax.tree.map(lambda i: np.float32(scale * rng.normal(size=i.shape)), info)


def one_step(cfg, info=INFO, grads=None, params=None):
    tx = make_optimizer(cfg, 20, info)
    params = params_of(info) if params is None else params
    grads = params_of(info, 0.1) if grads is None else grads
    return jax.device_get(jax.jit(tx.update)(grads, jax.jit(tx.init)(params), params)[0])


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_total(name):
    counts = group_counts(OptimConfig(name=name), INFO)
    assert sum(counts.values()) == sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(INFO))
    embeddings = S * D * 2
    plain = L * D + L * 4 * D + COUNTS["memory"]
    want = {"adamw_level0": embeddings, "adamw_level0_no_decay": plain, "adamw_level1_no_decay": L}
    matrices = {0: COUNTS["q"] + COUNTS["o"], 1: COUNTS["level1"]}
    for level, count in matrices.items():
        label = f"{name}_level{level}"
        want[label] = want.get(label, 0) + count
    assert counts == want


def test_groups_of_a_policy():
    memory = COUNTS["memory"] + COUNTS["level1"] + L
    rest = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(INFO)) - memory
    total = memory + rest
    vectors = sum(np.prod(x.shape) for x in jax.tree.leaves(INFO) if x.kind == "vector")
    frozen_by = {
        "all": 0,
        "exclude_memory": memory,
        "only_memory": rest,
        "only_vectors": total - vectors,
    }
    assert 0 < vectors < total
    for policy, frozen in frozen_by.items():
        assert group_counts(OptimConfig(param_policy=policy), INFO).get("frozen", 0) == frozen


def test_every_matrix_rule_gets_the_matrices_and_adamw_the_rest():
    cfg = OptimConfig(
        name="muon", warmup_steps=0, weight_decay=0.0, clip_norm=0.0, schedule="constant"
    )
    grads = params_of(INFO, 0.1)
    step = one_step(cfg, grads=grads)
    for layer in range(L):
        g = np.asarray(grads["blocks"]["o"][layer], np.float64).reshape(H * K, D)
        want = -cfg.matrix_learning_rate * next(muon([g]))
        assert_close(step["blocks"]["o"][layer].reshape(H * K, D), want, rtol=1e-4)
    for name in ("embed", "head"):
        assert_close(step[name], -cfg.learning_rate * np.sign(grads[name]), rtol=1e-5)
    scale = grads["blocks"]["scale"]
    assert_close(step["blocks"]["scale"], -cfg.learning_rate * np.sign(scale), rtol=1e-5)


def test_vectors_may_have_a_rate_of_their_own():
    base = {"warmup_steps": 0, "schedule": "constant", "weight_decay": 0.0, "clip_norm": 0.0}
    grads = params_of(INFO, 0.1)
    usual = one_step(OptimConfig(**base), grads=grads)
    own = one_step(OptimConfig(vector_learning_rate=0.02, **base), grads=grads)

    def check(leaf, a, b):
        assert_close(b, (20.0 if leaf.kind == "vector" else 1.0) * a, rtol=1e-5)

    jax.tree.map(check, INFO, usual, own)
    for rate in (0.0, 1.0):  # checkpoints name the groups
        labels = group_counts(OptimConfig(vector_learning_rate=rate), INFO)
        assert any(label.endswith("_own_rate") for label in labels) == (rate > 0)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_decay_is_decoupled_and_by_kind(name):
    """The difference that a decay makes to a step is -rate * decay * weight, or nothing."""
    base = {"name": name, "warmup_steps": 0, "schedule": "constant"}
    params = params_of(INFO)
    grads = params_of(INFO, 0.1)
    with_decay = one_step(OptimConfig(weight_decay=0.5, **base), INFO, grads, params)
    without = one_step(OptimConfig(weight_decay=0.0, **base), INFO, grads, params)
    cfg = OptimConfig(**base)

    def check(leaf, a, b, p):
        rate = cfg.matrix_learning_rate if name == "muon" and leaf.kind == "matrix" else 1e-3
        want = -rate * 0.5 * p if leaf.kind in DECAYED else np.zeros_like(p)
        np.testing.assert_allclose(a - b, want, atol=2e-8)

    jax.tree.map(check, INFO, with_decay, without, params)
    assert set(KINDS) - set(DECAYED) == {"vector", "conv", "fast0"}


@pytest.fixture
def descent(monkeypatch):
    """Gradient descent in the place of Adam, whose moments hide the scale of a gradient."""
    monkeypatch.setattr(factory, "scale_by_adam", lambda *_: optax.identity())


def test_the_clip_is_of_the_global_norm(descent):
    base = {"warmup_steps": 0, "schedule": "constant", "weight_decay": 0.0, "learning_rate": 1.0}
    grads = params_of(INFO, 10.0)
    step = one_step(OptimConfig(clip_norm=2.0, **base), grads=grads)
    norm = np.sqrt(sum(np.sum(np.square(np.float64(g))) for g in jax.tree.leaves(grads)))
    assert_close(step, jax.tree.map(lambda g: -g * (2.0 / norm), grads), rtol=1e-5)
    free = one_step(OptimConfig(clip_norm=0.0, **base), grads=grads)
    assert_close(free, jax.tree.map(lambda g: -g, grads), rtol=1e-4)


@pytest.mark.parametrize("policy", ["exclude_memory", "only_memory"])
def test_frozen_parameters_stand_still_and_do_not_count_in_the_clip(policy, descent):
    cfg = OptimConfig(param_policy=policy, warmup_steps=0, learning_rate=1.0, clip_norm=2.0)
    memory = jax.tree.map(lambda leaf: leaf.level >= 1 or leaf.kind == "fast0", INFO)
    grads = params_of(INFO)
    huge = jax.tree.map(
        lambda m, g: g if m == (policy == "only_memory") else 1e3 * g, memory, grads
    )
    step, same = one_step(cfg, grads=grads), one_step(cfg, grads=huge)
    assert_equal(step, same)
    for m, u in zip(jax.tree.leaves(memory), jax.tree.leaves(step), strict=True):
        assert np.any(u) == (m == (policy == "only_memory"))


def test_a_policy_that_trains_nothing_is_an_error():
    info = {"w": INFO["embed"]}
    with pytest.raises(ValueError, match=r"optim.param_policy='only_memory': selects no parameter"):
        make_optimizer(OptimConfig(param_policy="only_memory"), 20, info)


def test_an_unknown_kind_is_an_error_that_names_the_parameter():
    info = {"block": {"w": ParamInfo((2,), ("embed",), "bias")}}
    with pytest.raises(ValueError, match=r"kind of parameter block.w='bias'"):
        make_optimizer(OptimConfig(), 20, info)


def test_an_unknown_variant_is_an_error():
    with pytest.raises(ValueError, match="variant='mlp'"):
        make_optimizer(OptimConfig(name="deep_momentum", variant="mlp"), 20, INFO)


@pytest.mark.parametrize("name", ["m3", "dgd", "delta_momentum", "deep_momentum"])
def test_optax_manners(name):
    """Chains with others, gives one update a parameter, and its state never changes type."""
    cfg = OptimConfig(name=name, periods=(1, 2), m3_period=2)
    tx = optax.chain(optax.scale(2.0), make_optimizer(cfg, 20, INFO))
    params = params_of(INFO)
    state = tx.init(params)
    assert {x.dtype for x in jax.tree.leaves(state)} <= {jnp.dtype("float32"), jnp.dtype("int32")}
    types = jax.tree.map(jax.typeof, state)
    update = jax.jit(tx.update)
    for _ in range(2):
        updates, state = update(params_of(INFO, 0.1), state, params)
        assert jax.tree.map(jax.typeof, updates) == jax.tree.map(jax.typeof, params)
        assert jax.tree.map(jax.typeof, state) == types
        assert all(np.any(u) for u in jax.tree.leaves(updates)) == (_ == 1)
    assert update._cache_size() == 1


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(name):
    """A linear regression of known solution: the loss falls by 10 in 60 steps."""
    info = {"w": ParamInfo((D, F), ("embed", "mlp"), "matrix")}
    cfg = OptimConfig(
        name=name, warmup_steps=0, learning_rate=0.01, matrix_learning_rate=0.05, weight_decay=0.0,
        m3_period=4,
    )  # fmt: skip
    x = jax.random.normal(jax.random.key(0), (32, D))
    target = 0.1 * jax.random.normal(jax.random.key(1), (D, F))
    tx = make_optimizer(cfg, 60, info)

    def loss(params):
        return jnp.mean(jnp.square(x @ (params["w"] - target)))

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    params = {"w": jnp.zeros((D, F))}
    _, losses = jax.lax.scan(step, (params, tx.init(params)), length=60)
    assert losses[-1] < 0.1 * losses[0]
