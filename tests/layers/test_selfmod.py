"""Self-modifying Titans: what it is with parts switched off, and that its generators learn."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_equal

import nested_jax
from nested_jax.config import from_config_dict
from nested_jax.layers.selfmod import self_modifying_spec
from nested_jax.models.lm import LanguageModel
from nested_jax.ops.memory.chunked import memory_chunked
from nested_jax.ops.memory.self_modifying import (
    GateReadout,
    SelfModInputs,
    SelfModSpec,
    generate,
    init_self_modifying,
    stretched_sigmoid,
)
from nested_jax.ops.memory.self_modifying_chunked import self_modifying_chunked
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.memory.state import MemoryInputs
from nested_jax.ops.normalize import l2_normalize
from nested_jax.types import Array, PyTree

B, T, H, K = 2, 11, 3, 4


@pytest.mark.parametrize("arch", ["linear", pytest.param("mlp", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", [pytest.param("titans", marks=pytest.mark.slow), "dgd"])
def test_generators_that_never_write_make_it_titans(rule: str, arch: str, float64: None) -> None:
    """With constant generators and the values as targets, M_mem is an ordinary memory."""
    memory = MemorySpec(arch=arch, rule=rule, momentum=True, chunk=4)
    spec = SelfModSpec(
        memory,
        replace(memory, chunk=2, read="chunk"),
        ("k", "v", "rate", "keep"),
        targets="value",
    )
    keys = iter(jax.random.split(jax.random.key(0), 20))
    normal = lambda *shape: jax.random.normal(next(keys), shape)  # noqa: E731
    matrices = memory.num_matrices
    generators0 = tuple(normal(H, 4, K, K) for _ in range(matrices))
    memory0 = tuple(normal(H, K, K) / 2 for _ in range(matrices))
    readout = GateReadout(normal(H, K), normal(H), normal(H, K), 2 + normal(H), jnp.zeros((H, 4)))
    momentum_BTH = jax.nn.sigmoid(normal(B, T, H))
    x_BTHK, q_BTHK = l2_normalize(normal(B, T, H, K)), normal(B, T, H, K)
    inputs = SelfModInputs(x_BTHK, q_BTHK, None, None, momentum_BTH)
    state = init_self_modifying(spec, generators0, memory0, B)

    heads = jax.tree.map(lambda z: jnp.moveaxis(z, 2, 0), inputs)  # [H, B, T, ...]
    each = jax.vmap(lambda r, g, z: generate(spec, r, g, z), in_axes=(0, 0, 0))
    made = jax.vmap(each, in_axes=(None, None, 1), out_axes=1)(readout, generators0, heads)
    assert made.erase_C is None
    q, k, v, rate, keep = (jnp.moveaxis(z, 0, 2) for z in made[:5])
    want = memory_chunked(memory, state.memory, MemoryInputs(q, k, v, rate, keep, momentum_BTH))
    after, y_BTHV = self_modifying_chunked(spec, readout, state, inputs)
    assert_close((after.memory, y_BTHV), want, 1e-12)
    assert_equal(after.generators.fast, state.generators.fast)


def hope(**memory: Any) -> tuple[LanguageModel, PyTree, Array]:
    fields = {"chunk": 4, "generator_chunk": 2, "inner_lr": 0.3} | memory
    cfg = from_config_dict(
        {
            "model": {
                "block": "hope",
                "vocab_size": 23,
                "dim": 12,
                "layers": 1,
                "heads": 2,
                "mlp_hidden": 14,
                "memory": fields,
                "cms": {"periods": (4,), "fast_layers": 0},
            },
            "data": {"seq_len": 12},
        }
    ).model
    model = nested_jax.build_model(cfg)
    params = jax.jit(model.init)(jax.random.key(0))
    return model, params, jax.random.randint(jax.random.key(1), (B, 12), 0, 23)


def logits(model: LanguageModel, params: PyTree, tokens: Array) -> Array:
    return jax.jit(model.apply)(params, model.init_state(params, B), tokens)[1]


@pytest.mark.slow
def test_a_rate_of_zero_is_the_frozen_backbone() -> None:
    """HOPE whose inner rates are 0 and that forgets nothing is the model without writes."""
    model, params, tokens = hope(retention=False)
    frozen, _, _ = hope(retention=False, frozen=True)
    mixer = dict(params["prefix"]["mixer"])
    mixer["rate_bias"] = jnp.full_like(mixer["rate_bias"], -1e9)
    still = params | {"prefix": params["prefix"] | {"mixer": mixer}}
    assert_close(logits(model, still, tokens), logits(frozen, still, tokens), 1e-6)
    assert float(jnp.abs(logits(model, params, tokens) - logits(frozen, params, tokens)).max()) > 0


@pytest.mark.slow
def test_a_start_beside_what_is_written() -> None:
    """Frozen, it is the memory that is only read. Written, the two parts add up, and both learn."""
    beside = {"targets": "value", "beside": True}
    model, params, tokens = hope(**beside)
    still, _, _ = hope(**beside, frozen=True)
    plain, _, _ = hope(targets="value", frozen=True)
    assert_close(logits(still, params, tokens), logits(plain, params, tokens), 1e-5)
    assert float(jnp.abs(logits(model, params, tokens) - logits(still, params, tokens)).max()) > 0
    mixer = dict(params["prefix"]["mixer"])
    mixer["memory0_0"] = jnp.zeros_like(mixer["memory0_0"])
    empty = params | {"prefix": params["prefix"] | {"mixer": mixer}}
    without, _, _ = hope(targets="value")
    assert_close(logits(model, empty, tokens), logits(without, empty, tokens), 1e-5)
    loss = lambda p: jnp.sum(jnp.square(model.apply(p, model.init_state(p, B), tokens)[1]))  # noqa: E731
    learned = jax.jit(jax.grad(loss))(params)["prefix"]["mixer"]
    assert all(float(jnp.abs(learned[name]).max()) > 0 for name in ("memory0_0", "k0_0", "v0_0"))
    with pytest.raises(ValueError, match=r"model\.memory\.beside=True: wants linear memories"):
        hope(beside=True)


def test_retention_starts_where_it_is_told() -> None:
    """One value for each head, over and over; `hope` here has two heads."""
    for keep in (0.9, (0.9, 0.999)):
        _, params, _ = hope(keep_init=keep)
        got = jax.nn.sigmoid(params["prefix"]["mixer"]["keep_bias"][0])
        assert_close(got, jnp.broadcast_to(jnp.asarray(keep), 2), 1e-5)
    with pytest.raises(
        ValueError, match=r"keep_init=\(0.5, 0.6, 0.7\): wants at most one for each"
    ):
        hope(keep_init=(0.5, 0.6, 0.7))


def test_every_generator_receives_an_outer_gradient() -> None:
    """Through the writes and through what they generate: M_k, M_v, M_eta and M_alpha."""
    model, params, tokens = hope(adaptive_q=True)

    @jax.jit
    @jax.grad
    def gradient(params: PyTree) -> Array:
        state = model.init_state(params, B)
        _, out = model.apply(params, state, tokens[:, :-1], start="any")
        chosen = jnp.take_along_axis(jax.nn.log_softmax(out), tokens[:, 1:, None], axis=-1)
        return -jnp.mean(chosen)

    mixer = gradient(params)["prefix"]["mixer"]
    spec = self_modifying_spec(model.cfg.memory)
    assert spec.generators == ("k", "v", "q", "rate", "keep")
    for name in (*spec.generators, "memory"):
        norm = float(jnp.linalg.norm(mixer[f"{name}0_0"]))
        assert np.isfinite(norm), name
        assert norm > 1e-8, name


@pytest.mark.parametrize(("stretch", "start"), [(0.0, ()), (0.1, ()), (0.1, (1.0, 0.03))])
def test_the_erase_gate_starts_where_it_is_told(stretch: float, start: tuple[float, ...]) -> None:
    """In every head in turn; without a start, where the rate of the write does."""
    memory = {"rule": "dgd", "objective": "dot", "max_rate": 2.0, "inner_lr": 0.5}
    memory |= {"erase_gate": True, "erase_stretch": stretch, "erase_init": start}
    model = {"block": "hope", "vocab_size": 8, "dim": 12, "heads": 3, "layers": 2, "memory": memory}
    built = nested_jax.build_model(from_config_dict({"model": model}).model)
    init = jax.jit(lambda key: built.init(key)["prefix"]["mixer"]["erase_bias"])
    bias_LH = init(jax.random.key(0))
    begun = 2.0 * stretched_sigmoid(bias_LH, stretch)
    assert self_modifying_spec(built.cfg.memory).erase_stretch == stretch
    want = [1.0, 0.03, 1.0] if start else [0.5] * 3
    assert_close(begun, jnp.broadcast_to(jnp.asarray(want), begun.shape), rtol=1e-5)


def test_an_erase_gate_that_starts_out_of_reach_is_refused() -> None:
    memory = {"arch": "mlp", "rule": "dgd", "inner_lr": 0.03, "erase_gate": True}
    model = {"block": "hope", "memory": memory | {"erase_init": (0.02, 0.05)}}
    message = r"model\.memory\.erase_init=\(0\.02, 0\.05\): wants rates below 0\.03"
    with pytest.raises(ValueError, match=message):
        nested_jax.build_model(from_config_dict({"model": model}).model).param_info()


SWITCHES: dict[str, dict[str, Any]] = {
    "dgd": {"rule": "dgd", "objective": "dot"},
    "momentum": {"momentum": False},
    "retention": {"retention": False},
    "adaptive k": {"adaptive_k": False},
    "adaptive v": {"adaptive_v": False},
    "adaptive q": {"adaptive_q": True},
    "convolution": {"conv": 0},
    "erase gate": {"rule": "dgd", "objective": "dot", "erase_gate": True},
    "targets": {"targets": "value"},
    "writes": {"frozen": True},
}


@cache
def shapes(**memory: Any) -> tuple[dict[str, tuple[int, ...]], SelfModSpec]:
    """Return the shapes of the parameters, and what the memory is told."""
    cfg = from_config_dict({"model": {"block": "hope", "memory": memory}}).model
    info = nested_jax.build_model(cfg).param_info()
    paths = jax.tree_util.tree_leaves_with_path(info)
    named = {jax.tree_util.keystr(path): leaf.shape for path, leaf in paths}
    return named, self_modifying_spec(cfg.memory)


@pytest.mark.parametrize("name", SWITCHES)
def test_each_ablation_changes_the_parameters_or_the_spec(name: str) -> None:
    """No switch is without effect: one more than the other rows of NL Table 6 is a config flag."""

    (had, spec), (has, changed) = shapes(), shapes(**SWITCHES[name])
    parameters = {
        "momentum": "momentum",
        "retention": "keep",
        "adaptive k": "['k']",
        "adaptive v": "['v']",
        "adaptive q": "['q']",
        "convolution": "_conv",
        "erase gate": "erase_readout",
    }
    if name in parameters:
        moved = set(had) ^ set(has)
        assert moved
        assert any(parameters[name] in path for path in moved)
    else:
        assert had == has
        assert spec != changed
