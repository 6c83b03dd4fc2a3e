"""Memory as context against a loop over tokens: retrieve, attend, write, answer."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

from nested_jax.config import ModelConfig, from_config_dict
from nested_jax.layers import titans_mac
from nested_jax.layers.basic import rms_norm, rotary, unbox
from nested_jax.layers.heads import Gate, HeadOutput, Projections, from_heads
from nested_jax.layers.titans import MemoryWeights, memory_inputs, memory_spec
from nested_jax.layers.titans_mac import MemoryAsContext
from nested_jax.models.stream import empty_context, make_call
from nested_jax.ops.chunking import Rows
from nested_jax.ops.memory.arch import memory_read
from nested_jax.ops.memory.reference import memory_reference
from nested_jax.ops.memory.state import init_state
from nested_jax.ops.normalize import l2_normalize
from nested_jax.types import Array, PyTree

B, T, SEGMENT = 2, 10, 4


def config(**fields: Any) -> ModelConfig:
    memory = {"arch": "mlp", "chunk": 2, "segment": SEGMENT, "conv": 0, "inner_lr": 0.4}
    model = {"block": "titans_mac", "dim": 12, "heads": 2, "layers": 1, "attention": "xla"} | fields
    model["memory"] = memory | fields.get("memory", {})
    return from_config_dict({"model": model, "data": {"seq_len": 64}}).model


def build(cfg: ModelConfig) -> tuple[MemoryAsContext, PyTree, Array, Any]:
    layer = MemoryAsContext(cfg)
    call = make_call(cfg, empty_context(cfg, B, 1), Rows(B, T))
    x_BTD = jax.random.normal(jax.random.key(1), (B, T, cfg.dim))

    def visit(module: MemoryAsContext) -> Any:
        return module(module.init_state(B, 1), x_BTD, call)

    params = unbox(layer.init(jax.random.key(0), method=visit)["params"])
    noise = lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape)  # noqa: E731
    return layer, jax.tree.map(noise, params), x_BTD, call


def project(w_DHK: Array, x_BTD: Array) -> Array:
    return jax.nn.silu(jnp.einsum("btd,dhk->bthk", x_BTD, w_DHK))


def attend_by_hand(p: PyTree, cfg: ModelConfig, x_BTD: Array, h_BTD: Array) -> Array:
    """One segment: every token over the persistent tokens and h_s, x_s of s <= t, one by one."""
    slots = jnp.broadcast_to(jnp.arange(x_BTD.shape[1])[None], x_BTD.shape[:2])
    place = lambda w, z: rotary(jnp.einsum("btd,dhk->bthk", z, w), slots, cfg)  # noqa: E731
    straight = jnp.einsum("btd,dhk->bthk", x_BTD, p["q"])
    turned = place(p["q"], x_BTD)
    value = lambda z: jnp.einsum("...d,dhk->...hk", z, p["v"])  # noqa: E731
    rows = []
    for t in range(x_BTD.shape[1]):
        scores, values = [], []
        for token_D in p.get("persistent", ()):
            k_HK = jnp.einsum("d,dhk->hk", token_D, p["k"])
            scores.append(jnp.einsum("bhk,hk->bh", straight[:, t], k_HK))
            values.append(jnp.broadcast_to(value(token_D)[None], (B, *k_HK.shape)))
        for source in (h_BTD, x_BTD):
            k_BTHK, v_BTHK = place(p["k"], source), value(source)
            for s in range(t + 1):
                scores.append(jnp.einsum("bhk,bhk->bh", turned[:, t], k_BTHK[:, s]))
                values.append(v_BTHK[:, s])
        weights = jax.nn.softmax(jnp.stack(scores) / math.sqrt(cfg.head_width), axis=0)
        y_BHK = jnp.einsum("ubh,ubhk->bhk", weights, jnp.stack(values))
        rows.append(jnp.einsum("bhk,hkd->bd", y_BHK, p["o"]))
    return jnp.stack(rows, axis=1)


def memory_weights(p: PyTree) -> MemoryWeights:
    gate = lambda n: Gate(p[f"{n}_gate"], p[f"{n}_bias"])  # noqa: E731
    return MemoryWeights(
        Projections(tuple(p[n] for n in "qkv"), ()),
        gate("rate"),
        gate("keep"),
        gate("momentum"),
        tuple(p[f"fast0_{i}"] for i in range(2)),
        HeadOutput(p["out_norm"], p["out_gate"], p["out"]),
    )


def by_hand(cfg: ModelConfig, p: PyTree, x_BTD: Array) -> tuple[Array, Any]:
    """The module docstring, with the token-by-token reference as the memory."""
    spec, weights, eps = memory_spec(cfg.memory), memory_weights(p["memory"]), cfg.norm_eps
    state, out = init_state(spec, weights.fast0, B), []
    for start in range(0, x_BTD.shape[1], SEGMENT):
        x = x_BTD[:, start : start + SEGMENT]
        answer = memory_read(spec, state.fast, l2_normalize(project(p["probe"], x)))
        h = from_heads(HeadOutput(p["out_norm"], None, p["out"]), answer, x, eps)
        h = rms_norm(h, p["retrieved_norm"]["scale"], eps)
        y = attend_by_hand(p["attention"], cfg, x, h)
        y = rms_norm(y, p["attended_norm"]["scale"], eps)
        read = x if cfg.memory.write_from == "input" else y
        qkv = tuple(project(w, read) for w in weights.heads.weights)
        state, found = memory_reference(spec, state, memory_inputs(cfg.memory, weights, qkv, read))
        recalled = from_heads(weights.out, found, read, eps)
        gate = jax.nn.silu(rms_norm(recalled, p["recalled"], eps))
        out.append(rms_norm(y, p["attended"], eps) * gate)
    return jnp.concatenate(out, axis=1), state


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="persistent", marks=pytest.mark.slow),
        pytest.param(
            {"memory": {"persistent": 0, "chunk": 4}}, id="without", marks=pytest.mark.slow
        ),
        pytest.param({"memory": {"write_from": "input"}}, id="input", marks=pytest.mark.slow),
    ],
)
def test_equals_a_loop_over_tokens(fields: dict[str, Any]) -> None:
    """Two whole segments and half of one; chunks of half a segment, and of a whole one."""
    cfg = config(**fields)
    layer, params, x_BTD, call = build(cfg)

    @jax.jit
    def run(params: PyTree) -> Any:
        def visit(module: MemoryAsContext) -> Any:
            return module(module.init_state(B, 1), x_BTD, call)

        return layer.apply({"params": params}, method=visit)

    state, y_BTD = run(params)
    want, memory = jax.jit(lambda p: by_hand(cfg, p, x_BTD))(params)
    assert_close(y_BTD, want, 2e-5)
    assert_close(state.memory.memory.fast, memory.fast, 2e-5)
    assert np.asarray(state.count_B).tolist() == [T % SEGMENT] * B


@pytest.mark.parametrize("starts", [False, True], ids=["one document", "documents"])
def test_all_segments_at_once_equal_one_after_the_other(starts: bool) -> None:
    """Written with the inputs: outputs, the state, and gradients of both."""
    cfg = config(memory={"write_from": "input", "conv": 3})
    layer = MemoryAsContext(cfg)
    tokens = 3 * SEGMENT
    starts_BT = jnp.zeros((B, tokens), bool).at[1, SEGMENT].set(True) if starts else None
    rows = Rows(B, tokens, starts_BT=starts_BT, start="aligned")
    call = make_call(cfg, empty_context(cfg, B, 1), rows)
    x_BTD = jax.random.normal(jax.random.key(1), (B, tokens, cfg.dim))
    params = unbox(layer.init(jax.random.key(0), method="declare")["params"])
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape), params)

    def run(params: PyTree, x_BTD: Array) -> Any:
        def visit(module: MemoryAsContext) -> Any:
            state, y_BTD = module(module.init_state(B, 1), x_BTD, call)
            return y_BTD, state

        out = layer.apply({"params": params}, method=visit)
        floats = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.inexact)]
        return sum(jnp.vdot(x, jnp.cos(jnp.arange(x.size)).reshape(x.shape)) for x in floats), out

    def outcome() -> Any:
        return jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))(params, x_BTD)

    fast = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(titans_mac, "all_pieces", titans_mac.each_piece)
        slow = outcome()
    assert_close(fast, slow, rtol=1e-5, atol=1e-6)
