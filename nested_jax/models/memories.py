"""What sequences have learned, apart from what they have read; kept in a file that names its model.

The fast weights of the CMS levels, and the memories of the mixers that have one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nested_jax.errors import require
from nested_jax.files import whole_file
from nested_jax.models.lm import LanguageModel
from nested_jax.models.state import OpenChunk, State, StreamPosition
from nested_jax.types import PyTree

ABOUT = "about"
NAMED = ("model", "tokenizer")  # hashes without which a memory means nothing


def keep_memories(state: State, sequence: bool) -> State:
    """Return the state with nothing but its memories: what was read can only be known from them.

    Fast weights of the CMS levels always stay (levels that may not be written hold zeros); the
    sequence memory stays where `sequence` says so. Attention caches, convolution tails and open
    chunks are cleared.
    """
    zeros = jax.tree.map(jnp.zeros_like, state)
    return memories_into(state, zeros) if sequence else zeros._replace(fast=state.fast)


def memories_into(state: State, other: State) -> State:
    """Return `other`, which has read nothing, with the memories of `state`.

    Its rows count as begun, so that their memories do not start anew. Its attention caches are
    empty, with the room of `other`.
    """
    context = state.now.context
    # Slot 0 is left empty: a row that has used no slot would be a new one.
    slots_B = jnp.minimum(context.slots_B, 1) if context.slot_segment_BU.size else context.slots_B
    context = context._replace(
        slots_B=slots_B, slot_segment_BU=jnp.zeros_like(other.now.context.slot_segment_BU)
    )
    now = StreamPosition(context, _memory_into(state.now.suffix, other.now.suffix))
    kept = other._replace(
        prefix=_memory_into(state.prefix, other.prefix),
        entry=_memory_into(state.entry, other.entry),
        now=now,
        fast=state.fast,
    )
    if isinstance(kept.open, OpenChunk):
        kept = kept._replace(open=kept.open._replace(boundary=now))
    return kept


def _memory_into(mixers: Any, other: Any) -> Any:
    """Return stacked mixer states `other` with the memories of `mixers`; () has no layers."""
    return mixers.memory_into(other) if hasattr(mixers, "memory_into") else other


def learned(model: LanguageModel, params: PyTree, state: State) -> State:
    """Return what was learned, in a state that is as small as possible and has no open chunk."""
    rows = state.now.context.slots_B.shape[0]
    fresh = jax.jit(model.init_state, static_argnums=(1, 2))(params, rows, 1)
    return begin(model, fresh, state)._replace(open=())


def begin(model: LanguageModel, fresh: State, memory: State) -> State:
    """Return `fresh`, which has read nothing, with what `memory` has learned.

    A memory of one row serves every row.
    """
    rows = fresh.now.context.slots_B.shape[0]
    memory = jax.tree.map(lambda x: jnp.repeat(x, rows, 0) if x.shape[0] == 1 else x, memory)
    if model.cfg.kind.memory:
        return memories_into(memory, fresh)
    return fresh._replace(fast=memory.fast)


def save_memory(path: Path, memory: State, about: Mapping[str, Any]) -> None:
    """Write what `learned` returned to one .npz file (atomically); zeros take no room.

    Args:
      about: names of the model, the tokenizer and the readers, as `load_memory` wants them.
    """
    leaves = {name: np.asarray(x) for name, x in _named(memory).items()}
    shapes = {name: [list(x.shape), x.dtype.name] for name, x in leaves.items()}
    text = json.dumps({**about, "arrays": shapes}).encode()
    # bfloat16 is stored as float32, which holds it exactly.
    arrays: dict[str, Any] = {
        name: x.astype(np.float32) if x.dtype.name == "bfloat16" else x
        for name, x in leaves.items()
        if x.any()
    }
    arrays[ABOUT] = np.frombuffer(text, np.uint8)
    with whole_file(path) as file:
        np.savez(file, **arrays)


def load_memory(
    path: Path, model: LanguageModel, params: PyTree, wanted: Mapping[str, str], flag: str
) -> tuple[State, dict[str, Any]]:
    """Return a memory, and what its file says about it.

    Args:
      wanted: "model" and "tokenizer", the hashes of what it is to be used with.
      flag: what named the file, for messages.
    Raises:
      ValueError: no such file, or one that is no memory, or of another model or tokenizer.
    """
    try:
        with np.load(path) as file:
            stored = dict(file)
        about = json.loads(stored.pop(ABOUT).tobytes())
        readers = len(about["readers"])
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        want = f"is no memory that `python -m nested_jax.read` wrote ({error})"
        raise ValueError(f"{flag}={str(path)!r}: {want}") from error
    for name in NAMED:
        want = (
            f"was learned with {name} {about[name][:12]} ({about['from']}); this checkpoint has "
            f"{wanted[name][:12]}"
        )
        require(about[name] == wanted[name], flag, str(path), want)
    like = jax.eval_shape(lambda p: model.init_state(p, readers, 1), params)._replace(open=())
    shapes = {name: [list(x.shape), x.dtype.name] for name, x in _named(like).items()}
    odd = sorted(
        k for k in {**shapes, **about["arrays"]} if shapes.get(k) != about["arrays"].get(k)
    )
    want = f"was learned with other levels; it differs in {', '.join(odd[:3])}"
    require(not odd, flag, str(path), want)
    values = [
        jnp.asarray(stored[name], x.dtype) if name in stored else jnp.zeros(x.shape, x.dtype)
        for name, x in _named(like).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), values), about


def _named(state: State) -> dict[str, Any]:
    return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(state)}


def pick(memory: State, about: Mapping[str, Any], reader: str | None, flag: str) -> State:
    """Return the memory of one reader of a file.

    Raises:
      ValueError: no such reader, or several and none was named.
    """
    names = list(about["readers"])
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    want = f"wants one of the {len(names)} readers of the file: {shown}"
    require(reader in names or (reader is None and len(names) == 1), flag, reader, want)
    row = 0 if reader is None else names.index(reader)
    return jax.tree.map(lambda x: x[row : row + 1], memory)
