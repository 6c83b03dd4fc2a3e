"""Self-modifying Titans chunk by chunk: `self_modifying_reference`, which it equals, in two scans.

No generator reads M_mem. So one scan over the generators' chunks makes the keys, values and gates
of all tokens, and one over the chunks of M_mem, an ordinary memory, writes and reads them. The two
chunks need not have one size, and what a step of one scan costs is not paid in the other.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.ops.chunking import (
    Rows,
    from_chunks,
    remat_scan,
    split_slots,
    to_chunks,
    where_rows,
)
from nested_jax.ops.memory.arch import Matrices, memory_apply
from nested_jax.ops.memory.chunk_scan import (
    Chunk,
    ChunkForm,
    Memory,
    carried,
    chunk_starts,
    chunk_tokens,
    memory_after,
    scan_chunks,
)
from nested_jax.ops.memory.chunk_weights import ChunkGates, ChunkWeights, chunk_weights
from nested_jax.ops.memory.chunked import (
    Prepared,
    prepare_chunk,
    prepare_writes,
    write_chunk,
)
from nested_jax.ops.memory.self_modifying import (
    GateReadout,
    Generated,
    SelfModInputs,
    SelfModSpec,
    SelfModState,
    check_self_modifying,
    generate,
    make_target,
)
from nested_jax.ops.memory.state import MemoryInputs, MemoryState, check_rows
from nested_jax.types import Array


class _Step(NamedTuple):
    """One chunk of the generators' scan."""

    tokens: SelfModInputs  # leaves [B, H, C, ...]
    live_BHC: Array | None  # 1 where the slot holds a token; None: everywhere
    start_B: Array | None
    complete_B: Array | None


def write_generators(
    spec: SelfModSpec,
    readout: GateReadout,
    generators: Memory,
    tokens: SelfModInputs,
    live_C: Array | None,
) -> tuple[Memory, Generated]:
    """Read the generators of one head for the C slots of a chunk, then write the chunk into them.

    The anchor is returned as it was.
    """
    made = generate(spec, readout, generators.anchor or generators.fast, tokens)
    if spec.frozen:
        return generators, made
    gates = ChunkGates(made.rate_C, made.keep_C, tokens.momentum, live_C, None, made.erase_C)
    gates = _mask(gates)

    def write(m: Memory, weights: ChunkWeights) -> Memory:
        target_CV = make_target(spec, spec.generator, m.anchor or m.fast, made.v_CV)
        chunk = Chunk(made.k_CK, made.k_CK, target_CV, gates)
        fast, momentum, _ = write_chunk(
            spec.generator, m, None, prepare_writes(spec.generator, chunk, weights)
        )
        return Memory(fast, m.anchor, momentum)

    if readout.pace_HG is None:
        weights = chunk_weights(spec.generator, gates)
        return jax.vmap(write, in_axes=(0, None))(generators, weights), made

    def write_slowly(m: Memory, pace: Array) -> Memory:
        rate_C, keep_C = pace * gates.rate_C, 1.0 - pace * (1.0 - gates.keep_C)
        erase_C = None if gates.erase_C is None else pace * gates.erase_C
        paced = gates._replace(rate_C=rate_C, keep_C=keep_C, erase_C=erase_C)
        return write(m, chunk_weights(spec.generator, paced))

    return jax.vmap(write_slowly)(generators, readout.pace_HG), made


def _mask(gates: ChunkGates) -> ChunkGates:
    """Give slots without a token the gates that change nothing."""
    if gates.live_C is None:
        return gates
    live_C = gates.live_C > 0

    def masked(gate_C: Array | None, neutral: float) -> Array | None:
        return None if gate_C is None else jnp.where(live_C, gate_C, neutral)

    return gates._replace(
        rate_C=jnp.where(live_C, gates.rate_C, 0.0),
        keep_C=jnp.where(live_C, gates.keep_C, 1.0),
        momentum_C=masked(gates.momentum_C, 1.0),
        erase_C=masked(gates.erase_C, 0.0),
    )


def scan_generators(
    spec: SelfModSpec,
    readout: GateReadout,
    state: MemoryState,
    inputs: SelfModInputs,
    fresh: MemoryState | None,
    rows: Rows,
) -> tuple[MemoryState, Generated]:
    """Return the generators after T tokens, and what they made of them, leaves [B, T, H, ...]."""
    grid = rows.grid(spec.generator.chunk, rows.phase(state.phase_B))
    over_heads = jax.vmap(partial(write_generators, spec))
    over_rows = jax.vmap(over_heads, in_axes=(None, 0, 0, 0))

    def body(memory: Memory, step: _Step) -> tuple[Memory, Generated]:
        if step.start_B is not None:
            assert fresh is not None
            memory = where_rows(step.start_B, carried(grid, fresh), memory)
        after, made = over_rows(readout, memory, step.tokens, step.live_BHC)
        if step.complete_B is not None:
            after = after._replace(anchor=where_rows(step.complete_B, after.fast, after.anchor))
        return after, made

    laid = jax.tree.map(lambda x: jnp.moveaxis(to_chunks(grid, x), 3, 2), inputs)
    live_NBHC = None
    if grid.exists_BS is not None:
        live_NBC = split_slots(grid, grid.exists_BS).astype(inputs.x.dtype)
        live_NBHC = jnp.broadcast_to(live_NBC[:, :, None], laid.x.shape[:4])
    complete_NB = None if grid.complete_BN is None else grid.complete_BN.T
    steps = _Step(laid, live_NBHC, chunk_starts(grid, rows.starts_BT), complete_NB)
    # A chunk's intermediates outweigh its carry: recomputing them is less work than keeping them.
    memory, made = remat_scan(
        jax.checkpoint(body, prevent_cse=False),
        carried(grid, state),
        steps,
        grid.chunks,
        remat=spec.remat,
    )
    made = jax.tree.map(lambda x: from_chunks(grid, jnp.moveaxis(x, 2, 3)), made)
    return memory_after(grid, memory, spec.generator.chunk), made


def write_memory(
    spec: SelfModSpec, memory: Memory, fresh: Memory | None, prepared: Prepared
) -> tuple[Matrices, Matrices, Array]:
    """Write a chunk into M_mem of one head, with targets of its own making."""
    chunk = prepared.chunk
    if spec.frozen:
        return memory.fast, memory.momentum, memory_apply(spec.memory, memory.fast, chunk.q_CK)
    target_CV = make_target(spec, spec.memory, memory.anchor or memory.fast, chunk.v_CV)
    return write_chunk(
        spec.memory, memory, fresh, prepared._replace(chunk=chunk._replace(v_CV=target_CV))
    )


def scan_memory(
    spec: SelfModSpec,
    state: MemoryState,
    inputs: MemoryInputs,
    fresh: MemoryState | None,
    rows: Rows,
) -> tuple[MemoryState, Array]:
    """Return M_mem after T tokens, and its answers y_BTHV."""
    grid = rows.grid(spec.memory.chunk, rows.phase(state.phase_B))
    memory, y_BTHV = scan_chunks(
        ChunkForm(partial(prepare_chunk, spec.memory), partial(write_memory, spec)),
        grid,
        carried(grid, state),
        chunk_tokens(grid, inputs),
        chunk_starts(grid, rows.starts_BT),
        None if fresh is None else carried(grid, fresh),
        spec.remat,
    )
    return memory_after(grid, memory, spec.memory.chunk), y_BTHV


def self_modifying_chunked(
    spec: SelfModSpec,
    readout: GateReadout,
    state: SelfModState,
    inputs: SelfModInputs,
    rows: Rows | None = None,
    initial: SelfModState | None = None,
) -> tuple[SelfModState, Array]:
    """Write and read T tokens in every row and head; return the state after them and y_BTHV.

    Arguments as `memory_chunked`; a start lies on a boundary of the larger chunk, or is the first
    token of the call. Computed at the precision of the state; y has the dtype of x.

    Raises:
      ValueError: inputs or a state that do not belong to the spec.
    """
    check_self_modifying(spec, state, inputs)
    rows = check_rows(rows, inputs.x, initial)
    wide = jax.tree.map(lambda x: x.astype(state.memory.fast[0].dtype), inputs)
    fresh = (None, None) if initial is None else initial
    generators, made = scan_generators(spec, readout, state.generators, wide, fresh[0], rows)
    written = MemoryInputs(
        made.q_CK, made.k_CK, made.v_CV, made.rate_C, made.keep_C, wide.momentum, made.erase_C
    )
    memory, y_BTHV = scan_memory(spec, state.memory, written, fresh[1], rows)
    return SelfModState(generators, memory), rows.mask(y_BTHV).astype(inputs.x.dtype)
