"""Where a stream stands: documents, positions and cache slots of the tokens of a call."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nested_jax.config import ModelConfig
from nested_jax.layers.attention import cache_slots, next_slot_segments
from nested_jax.models.state import Context
from nested_jax.ops.fast_weights import select
from nested_jax.types import Array, Span


def empty_context(cfg: ModelConfig, batch: int, capacity: int) -> Context:
    """Return the context of streams that have read nothing."""
    zeros_B = jnp.zeros((batch,), jnp.int32)
    slots_BU = jnp.zeros((batch, cache_slots(cfg, capacity)), jnp.int32)
    return Context(zeros_B, zeros_B, zeros_B, slots_BU)


def make_span(
    context: Context,
    tokens: int,
    *,
    starts_BT: Array | None = None,
    lengths_B: Array | None = None,
    origin: str = "any",
) -> Span:
    """Return what the blocks need to know about the next `tokens` tokens of each stream."""
    batch = context.position_B.shape[0]
    offset_BT = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[None, :], (batch, tokens))
    # The first token of a stream begins a document, whether or not it is marked as a start.
    begins_BT = (context.segment_B == 0)[:, None] & (offset_BT == 0)
    if starts_BT is not None:
        begins_BT = begins_BT | starts_BT
    segment_BT = context.segment_B[:, None] + jnp.cumsum(begins_BT, axis=1, dtype=jnp.int32)
    begun_BT = jax.lax.cummax(jnp.where(begins_BT, offset_BT, -1), axis=1)
    position_BT = jnp.where(
        begun_BT >= 0, offset_BT - begun_BT, context.position_B[:, None] + offset_BT
    )
    if lengths_B is not None:
        segment_BT = jnp.where(offset_BT < lengths_B[:, None], segment_BT, 0)
    return Span(
        position_BT,
        segment_BT,
        context.slot_segment_BU,
        context.slots_B,
        context.slots_B == 0,
        starts_BT,
        lengths_B,
        origin,
    )


def count(span: Span) -> Array:
    """Return how many tokens of each row exist, int32 [B]."""
    batch, tokens = span.segment_BT.shape
    return jnp.full((batch,), tokens, jnp.int32) if span.lengths_B is None else span.lengths_B


def advance(cfg: ModelConfig, context: Context, span: Span) -> Context:
    """Return the context behind the tokens of a call."""
    count_B = count(span)
    last_B1 = jnp.maximum(count_B - 1, 0)[:, None]
    moved = Context(
        jnp.take_along_axis(span.position_BT, last_B1, axis=1)[:, 0] + 1,
        jnp.take_along_axis(span.segment_BT, last_B1, axis=1)[:, 0],
        context.slots_B + count_B,
        next_slot_segments(cfg, span),
    )
    return moved if span.lengths_B is None else select(count_B > 0, moved, context)


def started(span: Span) -> Array:
    """Return which token comes after a start inside the call, bool [B, T], itself included."""
    assert span.starts_BT is not None
    return jnp.cumsum(span.starts_BT & (span.segment_BT > 0), axis=1) > 0
