"""The memories as parts of other people's Flax models: see docs/layers.md.

A sequence memory is a linen module with ``init_state(batch, capacity)`` and a call
``(state, x_BTD, call) -> (state, y_BTD)``, where the call is `reading`. A `CMS` is an MLP chain
whose levels are written from outside: `init_levels`, `deltas_of`, `write_levels`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nested_jax.config import CMSConfig, MemoryConfig, ModelConfig
from nested_jax.layers.call import Call
from nested_jax.layers.cms import CMS
from nested_jax.layers.deltanet import DeltaNet
from nested_jax.layers.selfmod import SelfModifying
from nested_jax.layers.titans import NeuralMemory
from nested_jax.ops.chunking import Rows
from nested_jax.ops.fast_weights import (
    LevelState,
    cut_layers,
    enter,
    gather,
    init_level,
    into_loop,
    leave,
    write_level,
)
from nested_jax.types import Array, PyTree

__all__ = [
    "CMS",
    "CMSConfig",
    "DeltaNet",
    "MemoryConfig",
    "ModelConfig",
    "NeuralMemory",
    "SelfModifying",
    "deltas_of",
    "init_levels",
    "reading",
    "write_levels",
]


def reading(x_BTD: Array, read_B: Array | int = 0, lengths_B: Array | None = None) -> Call:
    """Return what a memory has to know to read the next tokens of each row.

    Args:
      x_BTD: the tokens, as the memory gets them.
      read_B: int32 [B], or one number: the tokens that each row has read before; a row that has
        read none starts from the learned memory.
      lengths_B: int32 [B]; only so many tokens of a row exist. None: all.
    """
    rows = x_BTD.shape[0]
    read_B = jnp.broadcast_to(jnp.asarray(read_B, jnp.int32), (rows,))
    one_row = Rows.of(x_BTD, lengths_B=lengths_B)
    position_BT = read_B[:, None] + jnp.arange(x_BTD.shape[1], dtype=jnp.int32)[None, :]
    empty_BU = jnp.zeros((rows, 0), jnp.int32)
    known = Rows(rows, x_BTD.shape[1], lengths_B, fresh_B=read_B == 0)
    return Call(known, position_BT, one_row.mask(jnp.ones_like(position_BT)), empty_BU, read_B)


def init_levels(cfg: CMSConfig, deltas: tuple[PyTree, ...]) -> tuple[LevelState, ...]:
    """Return levels that were never written, from ``cms.init_deltas(batch)``."""
    batch = jax.tree.leaves(deltas)[0].shape[0]
    return tuple(init_level(cfg, i, _stacked(delta), batch) for i, delta in enumerate(deltas))


def deltas_of(levels: tuple[LevelState, ...]) -> tuple[PyTree, ...]:
    """Return what the chain reads with: ``cms(x_BTD, deltas_of(levels))``."""
    return tuple(jax.tree.map(lambda x: x[:, 0], level.delta) for level in levels)


def write_levels(
    cfg: CMSConfig,
    levels: tuple[LevelState, ...],
    grads: tuple[PyTree, ...],
    rates: tuple[PyTree, ...],
    tokens: int,
) -> tuple[LevelState, ...]:
    """Gather the gradients of a chunk, and write the levels whose period is over (NL Eq. 71).

    Args:
      cfg: the periods and inner optimizers.
      levels: the state before.
      grads: of the loss of the chunk, summed over its tokens (and of the recall of the call, for
        the optimizer dgd), for `deltas_of`.
      rates: ``cms.rates()``.
      tokens: of the chunk; it divides the fastest period.
    """
    batch = levels[0].tokens_B.shape[0]
    tokens_B, yes_B = jnp.full((batch,), tokens, jnp.int32), jnp.ones((batch,), bool)
    after = []
    for i, (before, grad, rate) in enumerate(zip(levels, grads, rates, strict=True)):
        level = gather(enter(before), into_loop(_stacked(grad)), tokens_B, yes_B, yes_B)
        ended_B = level.tokens_B >= cfg.periods[i]
        one: Any = jax.tree.map(lambda x: jnp.asarray(x)[None], rate)
        after.append(leave(write_level(cfg, i, level, cut_layers(one), ended_B)[0], before))
    return tuple(after)


def _stacked(tree: PyTree) -> PyTree:
    """Return leaves [B, 1, ...]: the levels of one layer."""
    return jax.tree.map(lambda x: x[:, None], tree)
