"""Everything a sequence carries, as one value: batch first, fixed shapes, zeros when unread."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from nested_jax.files import whole_file
from nested_jax.ops.chunking import per_row
from nested_jax.ops.fast_weights import LevelState
from nested_jax.types import Array, PyTree

StateT = TypeVar("StateT")


class Context(NamedTuple):
    """Where a stream stands, and what its attention caches hold; the same for every layer."""

    position_B: Array  # int32, tokens read of the current document
    segment_B: Array  # int32, the current document, numbered from 1; 0 before the first token
    slots_B: Array  # int32, tokens read since the reset
    slot_segment_BU: Array  # int32, document of each cache slot; 0 is empty


class StreamPosition(NamedTuple):
    """A place in the stream from which what fast weights reach can go on reading."""

    context: Context
    suffix: PyTree  # mixer states of the taught blocks but the first, leaves [B, L, ...]; or ()


class OpenChunk(NamedTuple):
    """A chunk whose last target is not known yet, and the boundary at which it began.

    The gradient of a chunk is taken over all of it at once, so it never depends on the pieces in
    which its tokens arrived.
    """

    boundary: StreamPosition
    x_BCD: Array  # what the first taught CMS read; the first `count_B` tokens are used
    targets_BC: Array
    weights_BC: Array
    start_B: Array  # bool, the chunk begins a document
    count_B: Array  # int32


class State(NamedTuple):
    """The state of a language model; `fast` and `open` are () without CMS levels."""

    prefix: PyTree  # mixer states of the blocks that are never taught, leaves [B, L, ...]
    entry: PyTree  # of the first taught block, leaves [B, 1, ...]: no fast weight lies before it
    now: StreamPosition
    fast: tuple[LevelState, ...]  # CMS levels, the fastest first
    open: OpenChunk | tuple[()]


def reset(state: StateT, mask_B: Array) -> StateT:
    """Return `state` with the sequences of the mask as if they had read nothing.

    Args:
      state: any state of this package: leaves with the batch axis first.
      mask_B: bool, True for the sequences to clear.
    Raises:
      ValueError: the mask is not a bool array with one entry per sequence.
    """
    batch = jax.tree.leaves(state)[0].shape[0]
    mask_B = jnp.asarray(mask_B)
    if mask_B.shape != (batch,) or mask_B.dtype != jnp.bool_:
        raise ValueError(
            f"mask: got {mask_B.dtype}{list(mask_B.shape)}, wants bool[{batch}], one per sequence"
        )
    return jax.tree.map(lambda x: jnp.where(per_row(mask_B, x), jnp.zeros_like(x), x), state)


def detach(state: StateT) -> StateT:
    """Return `state` with no gradient flowing through it."""
    return jax.tree.map(jax.lax.stop_gradient, state)


def save_state(path: str | Path, state: PyTree) -> None:
    """Write a state to one .npz file (atomically)."""
    path = Path(path)
    named = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(state)}
    with whole_file(path) as file:
        # bfloat16 caches are stored as float32, which holds them exactly.
        arrays: dict[str, Any] = {k: _storable(x) for k, x in named.items()}
        np.savez(file, **arrays)


def _storable(x: Array) -> np.ndarray:
    return np.asarray(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x)


def load_state(path: str | Path, like: StateT) -> StateT:
    """Read a state that `save_state` wrote.

    Args:
      path: the file.
      like: a state of the same model and batch size, ``model.init_state(params, batch_size)``.
    Raises:
      ValueError: the file holds a state of another model or batch size, or no state.
      OSError: it cannot be opened.
    """
    with open(path, "rb") as opened:
        try:
            stored = dict(np.load(opened))
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path}: is no state, or a damaged one ({said})") from error
    leaves = jax.tree_util.tree_leaves_with_path(like)
    names = [jax.tree_util.keystr(p) for p, _ in leaves]
    if set(names) != set(stored):
        odd = sorted(set(names) ^ set(stored))[:3]
        raise ValueError(f"{path}: a state of another model; it differs in {', '.join(odd)}")
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if stored[name].shape != leaf.shape:
            raise ValueError(
                f"{path}: {name} has shape {stored[name].shape}, "
                f"this model and batch want {leaf.shape}"
            )
    values = [
        jnp.asarray(stored[name], leaf.dtype) for name, (_, leaf) in zip(names, leaves, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), values)
