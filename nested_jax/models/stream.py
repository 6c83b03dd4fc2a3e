"""Where a stream stands: documents, positions and cache slots of the tokens of a call."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from nested_jax.config import ModelConfig
from nested_jax.layers.attention import attention_mask, cache_slots, next_slot_segments
from nested_jax.layers.call import Call
from nested_jax.models.state import Context
from nested_jax.ops.chunking import Rows
from nested_jax.types import Array


def empty_context(cfg: ModelConfig, batch: int, capacity: int) -> Context:
    """Return the context of streams that have read nothing."""
    zeros_B = jnp.zeros((batch,), jnp.int32)
    slots_BU = jnp.zeros((batch, cache_slots(cfg, capacity)), jnp.int32)
    return Context(zeros_B, zeros_B, zeros_B, slots_BU)


def make_call(cfg: ModelConfig, context: Context, rows: Rows, *, twice: bool = False) -> Call:
    """Return what the blocks need to know about the next tokens of each stream."""
    offset_BT = jnp.broadcast_to(
        jnp.arange(rows.tokens, dtype=jnp.int32)[None, :], (rows.batch, rows.tokens)
    )
    # The first token of a stream begins a document, whether or not it is marked as a start.
    begins_BT = (context.segment_B == 0)[:, None] & (offset_BT == 0)
    if rows.starts_BT is not None:
        begins_BT = begins_BT | rows.starts_BT
    segment_BT = context.segment_B[:, None] + jnp.cumsum(begins_BT, axis=1, dtype=jnp.int32)
    begun_BT = jax.lax.cummax(jnp.where(begins_BT, offset_BT, -1), axis=1)
    position_BT = jnp.where(
        begun_BT >= 0, offset_BT - begun_BT, context.position_B[:, None] + offset_BT
    )
    call = Call(
        replace(rows, fresh_B=context.slots_B == 0),
        position_BT,
        rows.mask(segment_BT),
        context.slot_segment_BU,
        context.slots_B,
        twice=twice,
    )
    return replace(call, mask=attention_mask(cfg, call))


def advance(cfg: ModelConfig, context: Context, call: Call) -> Context:
    """Return the context after the tokens of a call."""
    count_B = call.rows.count_B
    last_B1 = jnp.maximum(count_B - 1, 0)[:, None]
    moved = Context(
        jnp.take_along_axis(call.position_BT, last_B1, axis=1)[:, 0] + 1,
        jnp.take_along_axis(call.segment_BT, last_B1, axis=1)[:, 0],
        context.slots_B + count_B,
        next_slot_segments(cfg, call),
    )
    return call.rows.keep_idle(moved, context)


def started(call: Call) -> Array:
    """Return which token comes after a start inside the call, bool [B, T], itself included."""
    assert call.rows.starts_BT is not None
    return jnp.cumsum(call.rows.starts_BT & (call.segment_BT > 0), axis=1) > 0
