"""Causal self-attention: full over a cache, or in a sliding window; rotary but for GPT-2."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.config import ModelConfig
from nested_jax.layers.basic import (
    Layer,
    add_bias,
    constant,
    matrix_init,
    normal,
    residual_scale,
    rotary,
)
from nested_jax.layers.call import Call
from nested_jax.ops import attention as ops
from nested_jax.ops.attention_kernels import KERNELS, TWICE, Kernel, Prefix
from nested_jax.ops.linear import linear
from nested_jax.ops.normalize import l2_normalize, widen
from nested_jax.types import Array

KERNEL_NAMES = {"xla": "written out", "blockwise": "blocks of keys", "cudnn": "cuDNN's kernel"}


class AttentionState(NamedTuple):
    """Keys and values of the tokens read so far: U slots in the order of reading.

    With a window U = W and the last slot is the last token; without, token i of the stream is slot
    i.
    """

    k_BUGK: Array
    v_BUGK: Array


def cache_slots(cfg: ModelConfig, capacity: int) -> int:
    """Slots of a sequence's cache; `capacity` is the number of tokens that full attention holds."""
    return (cfg.window or capacity) if cfg.attends else 0


def attention_mask(cfg: ModelConfig, call: Call) -> Array | None:
    """Return the mask of a call, the same for every layer."""
    if not cfg.attends:
        return None
    if cfg.window:
        return ops.window_mask(call.segment_BT, call.slot_segment_BU)
    tokens = call.segment_BT.shape[1]
    slot_BT = jnp.arange(tokens, dtype=jnp.int32)[None, :] + call.slots_B[:, None]
    return ops.full_mask(slot_BT, call.segment_BT, next_slot_segments(cfg, call))


def next_slot_segments(cfg: ModelConfig, call: Call) -> Array:
    """Documents of the cache's slots after the call, [B, U]."""
    if not cfg.attends:
        return call.slot_segment_BU
    if cfg.window:
        joined_BU = jnp.concatenate([call.slot_segment_BU, call.segment_BT], axis=1)
        return ops.last(joined_BU, cfg.window, call.rows.lengths_B, call.segment_BT.shape[1])
    if fills_cache(call):
        return call.segment_BT
    return ops.place(call.slot_segment_BU, call.segment_BT, call.slots_B, call.rows.lengths_B)


def fills_cache(call: Call) -> bool:
    """A fresh state whose cache the call fills: it holds the call's own tokens and no others."""
    return call.rows.start == "fresh" and call.slot_segment_BU.shape[1] == call.segment_BT.shape[1]


class AttentionBiases(NamedTuple):
    q_HK: Array | None = None
    k_GK: Array | None = None
    v_GK: Array | None = None
    o_D: Array | None = None


class AttentionWeights(NamedTuple):
    """The parameters of one attention layer, for the pure functions below."""

    q_DHK: Array
    k_DGK: Array
    v_DGK: Array
    o_HKD: Array
    temperature_H: Array | None
    persistent_PD: Array | None
    biases: AttentionBiases = AttentionBiases()  # none


def attention_weights(layer: Layer, cfg: ModelConfig) -> AttentionWeights:
    """Declare the parameters of attention, with what the block has of the optional ones."""
    d, h, g, k = cfg.dim, cfg.heads, cfg.num_kv_heads, cfg.head_width
    query, keys = ("embed", "heads", "head_width"), ("embed", "kv_heads", "head_width")
    temperature_H = persistent_PD = None
    start = matrix_init(cfg, d)
    q_DHK = layer.weight("q", (d, h, k), query, init=start)
    k_DGK = layer.weight("k", (d, g, k), keys, init=start)
    v_DGK = layer.weight("v", (d, g, k), keys, init=start)
    out = matrix_init(cfg, d, residual_scale(cfg.layers))
    o_HKD = layer.weight("o", (h, k, d), ("heads", "head_width", "embed"), init=out)
    if cfg.qk_norm:
        temperature_H = layer.weight(
            "temperature", (h,), ("heads",), kind="vector", init=constant(math.sqrt(k))
        )
    if cfg.persistent_tokens:
        persistent_PD = layer.weight(
            "persistent", (cfg.persistent_tokens, d), (None, None), kind="vector", init=normal(1.0)
        )
    weights = AttentionWeights(q_DHK, k_DGK, v_DGK, o_HKD, temperature_H, persistent_PD)
    return weights._replace(biases=_biases(layer, cfg))


def _biases(layer: Layer, cfg: ModelConfig) -> AttentionBiases:
    """Declare GPT-2's biases, or those of queries, keys and values, or none."""
    if not (cfg.kind.gpt2 or cfg.qkv_bias):
        return AttentionBiases()

    def zeros(name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Array:
        return layer.weight(name, shape, axes, kind="vector", init=constant(0.0))

    query, keys = (cfg.heads, cfg.head_width), (cfg.num_kv_heads, cfg.head_width)
    return AttentionBiases(
        zeros("q_bias", query, ("heads", "head_width")),
        zeros("k_bias", keys, ("kv_heads", "head_width")),
        zeros("v_bias", keys, ("kv_heads", "head_width")),
        zeros("o_bias", (cfg.dim,), ("norm",)) if cfg.kind.gpt2 else None,
    )


def choose_attention(cfg: ModelConfig, device: jax.Device) -> str:
    """Return the kernel of a model on a kind of device: what ``model.attention`` says.

    ``auto`` takes the fused one where device and model have what it wants, and else a written one:
    in blocks of keys on GPUs, whole on CPUs, where scores stay in the cache.
    """
    if cfg.attention != "auto":
        return cfg.attention
    if device.platform == "cpu":
        return "xla"
    capability = str(getattr(device, "compute_capability", ""))  # of NVIDIA, "9.0"
    ampere = capability.replace(".", "").isdigit() and float(capability) >= 8
    return "cudnn" if ampere and not cfg.unfused else "blockwise"


def attention_text(cfg: ModelConfig) -> str:
    """Say which kernel computes attention, of a model from `build_model`."""
    if cfg.kind.attention == "none":
        return "attention: none"
    twice = ", second derivatives in blocks" if cfg.attention == "cudnn" and cfg.fast_layers else ""
    return f"attention: {KERNEL_NAMES[cfg.attention]}{twice} (model.attention={cfg.attention!r})"


def kernel(cfg: ModelConfig, call: Call) -> Kernel:
    """Return the kernel; inside of the inner loop one that is differentiable twice."""
    return (TWICE if call.twice else KERNELS)[cfg.attention]


def score_scale(cfg: ModelConfig) -> float:
    return 1.0 if cfg.qk_norm else 1.0 / math.sqrt(cfg.head_width)


def queries(w: AttentionWeights, x_BTD: Array) -> Array:
    """Return the queries of tokens before rotary positions, [B, T, H, K] in the dtype of `x`."""
    q_BTHK = add_bias(linear(x_BTD, w.q_DHK.astype(x_BTD.dtype)), w.biases.q_HK)
    if w.temperature_H is None:
        return q_BTHK
    temperature = w.temperature_H[None, None, :, None]
    return (l2_normalize(widen(q_BTHK)) * temperature).astype(x_BTD.dtype)


def keys_values(w: AttentionWeights, x_BTD: Array) -> tuple[Array, Array]:
    """Return the keys, before rotary positions, and the values of tokens, [B, T, G, K]."""
    k_BTGK = add_bias(linear(x_BTD, w.k_DGK.astype(x_BTD.dtype)), w.biases.k_GK)
    v_BTGK = add_bias(linear(x_BTD, w.v_DGK.astype(x_BTD.dtype)), w.biases.v_GK)
    return (k_BTGK if w.temperature_H is None else l2_normalize(k_BTGK)), v_BTGK


def persistent_prefix(w: AttentionWeights, q_BTHK: Array) -> Prefix | None:
    """Return what every query, before rotary positions, sees of the persistent tokens."""
    if w.persistent_PD is None:
        return None
    k_1PGK, v_1PGK = keys_values(w, w.persistent_PD[None].astype(q_BTHK.dtype))
    return Prefix(q_BTHK, k_1PGK[0], v_1PGK[0])


def attention_output(w: AttentionWeights, y_BTHK: Array) -> Array:
    return add_bias(linear(y_BTHK, w.o_HKD.astype(y_BTHK.dtype), inputs=2), w.biases.o_D)


class Attention(Layer):
    """Multi-head attention (Vaswani et al. 2017) with grouped key heads and optional qk-norm.

    qk-norm: queries and keys are L2-normalised and the cosine is multiplied by a learned
    temperature per head, which starts at sqrt(K) (Henry et al. 2020).
    """

    cfg: ModelConfig

    def setup(self) -> None:
        self.weights = attention_weights(self, self.cfg)

    def init_state(self, batch: int, capacity: int) -> AttentionState:
        cfg = self.cfg
        shape = (batch, cache_slots(cfg, capacity), cfg.num_kv_heads, cfg.head_width)
        zeros = jnp.zeros(shape, jnp.dtype(cfg.compute_dtype))
        return AttentionState(zeros, zeros)

    def __call__(
        self, state: AttentionState, x_BTD: Array, call: Call
    ) -> tuple[AttentionState, Array]:
        cfg = self.cfg
        q_BTHK = queries(self.weights, x_BTD)
        k_BTGK, v_BTGK = keys_values(self.weights, x_BTD)
        prefix = persistent_prefix(self.weights, q_BTHK)
        if not cfg.kind.gpt2:  # whose positions are added to the embeddings
            q_BTHK = rotary(q_BTHK, call.position_BT, cfg)
            k_BTGK = rotary(k_BTGK, call.position_BT, cfg)
        state, k_BUGK, v_BUGK = self._remember(state, k_BTGK, v_BTGK, call)
        y_BTHK = self._attend(call)(
            kernel(cfg, call), q_BTHK, k_BUGK, v_BUGK, call.mask, score_scale(cfg), prefix
        )
        return state, attention_output(self.weights, y_BTHK)

    def _attend(self, call: Call) -> Callable[..., Array]:
        if self.cfg.window:
            return ops.window_attend
        return ops.causal_attend if fills_cache(call) else ops.attend

    def _remember(
        self, state: AttentionState, k_BTGK: Array, v_BTGK: Array, call: Call
    ) -> tuple[AttentionState, Array, Array]:
        """Return the next state, and the keys and values that this call's queries may see."""
        tokens = k_BTGK.shape[1]
        if self.cfg.window:
            k = jnp.concatenate([state.k_BUGK, k_BTGK], axis=1)
            v = jnp.concatenate([state.v_BUGK, v_BTGK], axis=1)
            keep = lambda x: ops.last(x, self.cfg.window, call.rows.lengths_B, tokens)  # noqa: E731
            return AttentionState(keep(k), keep(v)), k, v
        if fills_cache(call):
            return AttentionState(k_BTGK, v_BTGK), k_BTGK, v_BTGK
        k = ops.place(state.k_BUGK, k_BTGK, call.slots_B, call.rows.lengths_B)
        v = ops.place(state.v_BUGK, v_BTGK, call.slots_B, call.rows.lengths_B)
        return AttentionState(k, v), k, v
