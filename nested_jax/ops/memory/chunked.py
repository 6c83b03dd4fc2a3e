"""Memories chunk by chunk: the dual form of `memory_reference`, which it equals.

Inside a chunk every gradient is taken at the same anchor, so one backward pass gives all of them,
and each is of rank one for every matrix. A memory of any depth is then, matrix by matrix, (decayed
start) + (sum of rank-one terms), and a query passes through it with [C, C] and [C, I] products.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from nested_jax.ops.chunking import Rows
from nested_jax.ops.memory.arch import ACTIVATIONS, Matrices, memory_apply, memory_deltas
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
from nested_jax.ops.memory.chunk_weights import ChunkWeights, Mix, chunk_weights
from nested_jax.ops.memory.chunk_write import (
    Scores,
    Writes,
    erase_inverse,
    erased,
    mixed,
    recall,
    scores,
)
from nested_jax.ops.memory.delta_rule import delta_rule
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.memory.state import MemoryInputs, MemoryState, cast_inputs, check_call
from nested_jax.ops.normalize import l2_normalize
from nested_jax.ops.precision import full_precision
from nested_jax.types import Array


class Prepared(NamedTuple):
    """A chunk and what needs no memory: its weights, and the products of its keys and queries."""

    chunk: Chunk
    weights: ChunkWeights
    scores: Scores | None  # of the queries, as the first matrix meets them; None: read at the start
    inverse_CC: Array | None  # `erase_inverse` of the keys, if the first matrix erases along them


def read_mix(spec: MemorySpec, weights: ChunkWeights) -> Mix:
    """Return the memories that answer the queries."""
    return {"write_read": weights.after, "read_write": weights.before}[spec.order]


def prepare_chunk(spec: MemorySpec, chunk: Chunk) -> Prepared:
    return prepare_writes(spec, chunk, chunk_weights(spec, chunk.gates))


@full_precision
def prepare_writes(spec: MemorySpec, chunk: Chunk, weights: ChunkWeights) -> Prepared:
    direction_CK = chunk.k_CK if spec.erases else None
    score = inverse_CC = None
    if spec.read == "token":
        score = scores(read_mix(spec, weights), chunk.q_CK, chunk.k_CK, direction_CK)
    if direction_CK is not None:
        inverse_CC = erase_inverse(weights, direction_CK)
    return Prepared(chunk, weights, score, inverse_CC)


@full_precision
def write_chunk(
    spec: MemorySpec, memory: Memory, fresh: Memory | None, prepared: Prepared
) -> tuple[Matrices, Matrices, Array]:
    """Write a chunk into one head and answer its queries: (fast, momentum, y_CV)."""
    del fresh  # documents start chunks: the scan has put it in place
    chunk, weights = prepared.chunk, prepared.weights
    anchor = memory.anchor or memory.fast
    inputs, deltas = memory_deltas(spec, anchor, chunk.k_CK, chunk.v_CV)
    read = read_mix(spec, weights)
    fast, momentum, answer = [], [], chunk.q_CK
    for i, (x_CI, d_CO) in enumerate(zip(inputs, deltas, strict=True)):
        sources = (memory.fast[i], *memory.momentum[i : i + 1])
        writes = Writes(x_CI, d_CO)
        if spec.erases:
            u_CI = x_CI if i == 0 else l2_normalize(x_CI)
            inverse_CC = erase_inverse(weights, u_CI) if i else prepared.inverse_CC
            assert inverse_CC is not None
            writes = writes._replace(direction_CI=u_CI)
            writes = writes._replace(erased_CO=erased(weights, inverse_CC, sources, writes))
        if spec.read == "token":
            probe_CI = ACTIVATIONS[spec.activation](answer) if i else answer
            score = scores(read, probe_CI, x_CI, writes.direction_CI) if i else prepared.scores
            assert score is not None
            answer = recall(read, score, probe_CI, sources, writes)
        fast.append(mixed(weights.end, sources, writes))
        if weights.end_momentum is not None:
            momentum.append(mixed(weights.end_momentum, sources, writes))
    if spec.read == "chunk":
        answer = memory_apply(spec, anchor, chunk.q_CK)
    elif spec.is_residual:
        answer = chunk.q_CK + answer
    return tuple(fast), tuple(momentum), answer


def memory_chunked(
    spec: MemorySpec,
    state: MemoryState,
    inputs: MemoryInputs,
    rows: Rows | None = None,
    initial: MemoryState | None = None,
    *,
    remat: bool = True,
) -> tuple[MemoryState, Array]:
    """Write and read T tokens in every row and head; return the state after them and y_BTHV.

    Splitting T anywhere and carrying the state changes nothing. Computed at the precision of the
    state; y has the dtype of q. A linear memory of chunk 1 has no gradient boundary to wait for
    and goes to `delta_rule`.

    Args:
      rows: tokens that do not exist change nothing and their y is 0. Where a document starts, the
        row's state becomes `initial` before the token: on the row's own chunk boundary, or at the
        first token of the call; a linear memory of chunk 1 has a boundary at every token. A promise
        (phase 0, so that anchor is fast) makes chunks a reshape instead of a gather.
      initial: fresh memories (`init_state`), given with `rows.starts_BT`.
      remat: keep about sqrt(T / chunk) states for the backward pass and recompute the others.
    Raises:
      ValueError: shapes or gates that do not belong to the spec.
    """
    if spec.is_online_linear:
        return delta_rule(spec, state, inputs, rows, initial, remat=remat)
    rows = check_call(spec, state, inputs, rows, initial)
    grid = rows.grid(spec.chunk, rows.phase(state.phase_B))
    memory, y_BTHV = scan_chunks(
        ChunkForm(partial(prepare_chunk, spec), partial(write_chunk, spec)),
        grid,
        carried(grid, state),
        chunk_tokens(grid, cast_inputs(state, inputs)),
        chunk_starts(grid, rows.starts_BT),
        None if initial is None else carried(grid, initial),
        remat,
    )
    return memory_after(grid, memory, spec.chunk), rows.mask(y_BTHV).astype(inputs.q_BTHK.dtype)
