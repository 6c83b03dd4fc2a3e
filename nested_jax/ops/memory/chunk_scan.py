"""The scan over chunks that the chunk-parallel memories share: layout, carry, anchors, starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.ops.chunking import (
    ChunkGrid,
    from_chunks,
    remat_scan,
    split_slots,
    to_chunks,
    where_rows,
)
from nested_jax.ops.memory.arch import Matrices
from nested_jax.ops.memory.chunk_weights import ChunkGates
from nested_jax.ops.memory.state import MemoryInputs, MemoryState
from nested_jax.types import Array


class Chunk(NamedTuple):
    """The tokens of one head of one chunk; batched leaves have B, H or N, B, H in front."""

    q_CK: Array
    k_CK: Array
    v_CV: Array
    gates: ChunkGates


class Memory(NamedTuple):
    """What the scan carries. `anchor` is () while it equals `fast`: one copy instead of two."""

    fast: Matrices
    anchor: Matrices
    momentum: Matrices


class ChunkForm(NamedTuple):
    """One head of one chunk, in two parts: what needs no memory, and what does.

    prepare: chunk -> anything, run for many chunks in parallel.
    write: (memory before the chunk, fresh memory or None, prepared) -> (fast, momentum, y_CV). The
      backward pass recomputes it: reading what it kept took up to 1.3 times as long (CPU, C = 64).
    """

    prepare: Callable[[Chunk], Any]
    write: Callable[[Memory, Memory | None, Any], tuple[Matrices, Matrices, Array]]


class _Step(NamedTuple):
    chunk: Any  # Chunk, or what `prepare` made of it
    start_B: Array | None
    complete_B: Array | None


def carried(grid: ChunkGrid, state: MemoryState) -> Memory:
    """Return what a scan over the grid carries of a state."""
    return Memory(state.fast, () if grid.complete_BN is None else state.anchor, state.momentum)


def memory_after(grid: ChunkGrid, memory: Memory, chunk: int) -> MemoryState:
    """Return the state that a scan over the grid leaves."""
    anchor = memory.anchor or memory.fast
    return MemoryState(memory.fast, anchor, memory.momentum, grid.end_B % chunk)


def chunk_tokens(grid: ChunkGrid, inputs: MemoryInputs, starts_BT: Array | None = None) -> Chunk:
    """Lay the inputs out as chunks, leaves [N, B, H, W, ...]; slots without a token write nothing.

    Args:
      starts_BT: documents that start inside of chunks; None where documents start chunks.
    """
    exists_NBW = None if grid.exists_BS is None else split_slots(grid, grid.exists_BS)

    def gate(x_BTH: Array, neutral: float) -> Array:
        x_NBWH = to_chunks(grid, x_BTH)
        if exists_NBW is not None:
            x_NBWH = jnp.where(exists_NBW[..., None], x_NBWH, neutral)
        return jnp.moveaxis(x_NBWH, -1, 2)

    def vectors(x_BTHK: Array) -> Array:
        return jnp.moveaxis(to_chunks(grid, x_BTHK), -2, 2)

    ones_BTH = jnp.ones_like(inputs.rate_BTH)
    momentum_BTH, start_BTH = inputs.momentum_BTH, None
    if starts_BT is not None:
        start_BTH = ones_BTH * starts_BT[..., None].astype(ones_BTH.dtype)
    gates = ChunkGates(
        rate_C=gate(inputs.rate_BTH, 0.0),
        keep_C=gate(ones_BTH if inputs.keep_BTH is None else inputs.keep_BTH, 1.0),
        momentum_C=None if momentum_BTH is None else gate(momentum_BTH, 1.0),
        live_C=None if exists_NBW is None else gate(ones_BTH, 0.0),
        start_C=None if start_BTH is None else gate(start_BTH, 0.0),
        erase_C=None if inputs.erase_BTH is None else gate(inputs.erase_BTH, 0.0),
    )
    return Chunk(vectors(inputs.q_BTHK), vectors(inputs.k_BTHK), vectors(inputs.v_BTHV), gates)


def chunk_starts(grid: ChunkGrid, starts_BT: Array | None) -> Array | None:
    """Return [N, B]: whether a document starts in the chunk (with its first token, by contract)."""
    if starts_BT is None:
        return None
    starts_NBW = to_chunks(grid, starts_BT)
    if grid.exists_BS is not None:
        starts_NBW = starts_NBW & split_slots(grid, grid.exists_BS)
    return jnp.any(starts_NBW, axis=-1)


def scan_chunks(
    form: ChunkForm,
    grid: ChunkGrid,
    memory: Memory,
    chunks: Chunk,
    starts_NB: Array | None,
    fresh: Memory | None,
    remat: bool,
) -> tuple[Memory, Array]:
    """Run the form over all chunks; return the memory after them and y_BTHV.

    Args:
      starts_NB: chunks before which the memory becomes `fresh`.
    """
    write = jax.vmap(jax.vmap(form.write))

    def prepare(steps: _Step) -> _Step:
        return steps._replace(chunk=jax.vmap(jax.vmap(jax.vmap(form.prepare)))(steps.chunk))

    def body(memory: Memory, step: _Step) -> tuple[Memory, Array]:
        if step.start_B is not None:
            assert fresh is not None
            memory = where_rows(step.start_B, fresh, memory)
        fast, momentum, y_BHCV = write(memory, fresh, step.chunk)
        anchor = memory.anchor
        if step.complete_B is not None:
            anchor = where_rows(step.complete_B, fast, anchor)
        return Memory(fast, anchor, momentum), y_BHCV

    complete_NB = None if grid.complete_BN is None else grid.complete_BN.T
    steps = _Step(chunks, starts_NB, complete_NB)
    body = jax.checkpoint(body, prevent_cse=False)
    memory, y_NBHWV = remat_scan(body, memory, steps, remat=remat, prepare=prepare)
    return memory, from_chunks(grid, jnp.moveaxis(y_NBHWV, 2, 3))
