"""Causal self-attention with rotary positions: full over a cache, or in a sliding window."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from nested_jax.config import ModelConfig
from nested_jax.layers.basic import Layer, constant, fan_in, residual_scale, rotary
from nested_jax.ops import attention as ops
from nested_jax.ops.normalize import l2_normalize
from nested_jax.types import Array, Span


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


def attention_mask(cfg: ModelConfig, span: Span) -> Array | None:
    """The mask of a call. Every layer of a model has the same one, so it is made once."""
    if not cfg.attends:
        return None
    if cfg.window:
        return ops.window_mask(span.segment_BT, span.slot_segment_BU)
    tokens = span.segment_BT.shape[1]
    slot_BT = jnp.arange(tokens, dtype=jnp.int32)[None, :] + span.slots_B[:, None]
    return ops.full_mask(slot_BT, span.segment_BT, next_slot_segments(cfg, span))


def next_slot_segments(cfg: ModelConfig, span: Span) -> Array:
    """Documents of the cache's slots after the call, [B, U]."""
    if not cfg.attends:
        return span.slot_segment_BU
    if cfg.window:
        joined_BU = jnp.concatenate([span.slot_segment_BU, span.segment_BT], axis=1)
        return ops.last(joined_BU, cfg.window, span.lengths_B, span.segment_BT.shape[1])
    if fills_cache(span):
        return span.segment_BT
    return ops.place(span.slot_segment_BU, span.segment_BT, span.slots_B, span.lengths_B)


def fills_cache(span: Span) -> bool:
    """A fresh state whose cache the call fills: it holds the call's own tokens and no others."""
    return span.origin == "fresh" and span.slot_segment_BU.shape[1] == span.segment_BT.shape[1]


class Attention(Layer):
    """Multi-head attention (Vaswani et al. 2017) with grouped key heads and optional qk-norm.

    qk-norm: queries and keys are L2-normalised and the cosine is multiplied by a learned
    temperature a head, which starts at sqrt(K) (Henry et al. 2020).
    """

    cfg: ModelConfig

    def setup(self) -> None:
        cfg = self.cfg
        d, h, g, k = cfg.dim, cfg.heads, cfg.num_kv_heads, cfg.head_width
        self.q_DHK = self.weight("q", (d, h, k), ("embed", "heads", "head_width"), init=fan_in(d))
        self.k_DGK = self.weight(
            "k", (d, g, k), ("embed", "kv_heads", "head_width"), init=fan_in(d)
        )
        self.v_DGK = self.weight(
            "v", (d, g, k), ("embed", "kv_heads", "head_width"), init=fan_in(d)
        )
        out = fan_in(d, residual_scale(cfg.layers))
        self.o_HKD = self.weight("o", (h, k, d), ("heads", "head_width", "embed"), init=out)
        if cfg.qk_norm:
            self.temperature_H = self.weight(
                "temperature", (h,), ("heads",), kind="vector", init=constant(math.sqrt(k))
            )

    def init_state(self, batch: int, capacity: int) -> AttentionState:
        cfg = self.cfg
        shape = (batch, cache_slots(cfg, capacity), cfg.num_kv_heads, cfg.head_width)
        zeros = jnp.zeros(shape, jnp.dtype(cfg.compute_dtype))
        return AttentionState(zeros, zeros)

    def __call__(
        self, state: AttentionState, x_BTD: Array, span: Span, mask: Array
    ) -> tuple[AttentionState, Array]:
        cfg, dtype = self.cfg, x_BTD.dtype
        q_BTHK = jnp.einsum("btd,dhk->bthk", x_BTD, self.q_DHK.astype(dtype))
        k_BTGK = jnp.einsum("btd,dgk->btgk", x_BTD, self.k_DGK.astype(dtype))
        v_BTGK = jnp.einsum("btd,dgk->btgk", x_BTD, self.v_DGK.astype(dtype))
        scale = 1.0 / math.sqrt(cfg.head_width)
        if cfg.qk_norm:
            temperature = self.temperature_H[None, None, :, None]
            q_BTHK = (l2_normalize(q_BTHK) * temperature).astype(dtype)
            k_BTGK, scale = l2_normalize(k_BTGK).astype(dtype), 1.0
        q_BTHK = rotary(q_BTHK, span.position_BT, cfg.rope_theta)
        k_BTGK = rotary(k_BTGK, span.position_BT, cfg.rope_theta)
        state, k_BUGK, v_BUGK = self._remember(state, k_BTGK, v_BTGK, span)
        attend = (
            partial(ops.window_attend, cfg.attention)
            if cfg.window
            else ops.ATTENTION[cfg.attention]
        )
        y_BTHK = attend(q_BTHK, k_BUGK, v_BUGK, mask, scale)
        return state, jnp.einsum("bthk,hkd->btd", y_BTHK, self.o_HKD.astype(dtype))

    def _remember(
        self, state: AttentionState, k_BTGK: Array, v_BTGK: Array, span: Span
    ) -> tuple[AttentionState, Array, Array]:
        """Return the next state, and the keys and values that this call's queries may see."""
        tokens = k_BTGK.shape[1]
        if self.cfg.window:
            k = jnp.concatenate([state.k_BUGK, k_BTGK], axis=1)
            v = jnp.concatenate([state.v_BUGK, v_BTGK], axis=1)
            keep = lambda x: ops.last(x, self.cfg.window, span.lengths_B, tokens)  # noqa: E731
            return AttentionState(keep(k), keep(v)), k, v
        if fills_cache(span):
            return AttentionState(k_BTGK, v_BTGK), k_BTGK, v_BTGK
        k = ops.place(state.k_BUGK, k_BTGK, span.slots_B, span.lengths_B)
        v = ops.place(state.v_BUGK, v_BTGK, span.slots_B, span.lengths_B)
        return AttentionState(k, v), k, v
