"""Online linear memories (chunk 1) in parallel over blocks of tokens: the delta-rule family.

With one linear matrix and the gradient at W_{t-1} itself, every rule is affine in the memory. With
e_t = k_t^T W_{t-1} and the delta d_t = c_t e_t - v_t (c = 1 for `l2`, 0 for `dot`, a_t or 0 for
gradients at a_t W_{t-1}),

    W_t = a_t W_{t-1} + U_t - [dgd] eps_t k_t e_t^T,    U_t = -eta_t k_t d_t^T (momentum: S_t),

so e solves one unit-triangular system a block (the WY form: DeltaNet, arXiv 2406.06484; with gates
2412.06464; here with momentum and the erase term of NL Eq. 88 too):

    (I + L) e = (sources) + R v,   R_ts = E_{t-1,s} eta_s <k_t, k_s>,
    L_ts = R_ts c_s + [dgd] D_{t-1,s} eps_s <k_t, k_s>,   s < t.

D and E: `chunk_weights`. Named members, with unit keys: DeltaNet is `gd` + `l2`; Gated DeltaNet is
`titans` + `l2` + `gradient_at="decayed"`; linear attention is `gd` + `dot`; RetNet and Mamba-2 are
`titans` + `dot`. Rates up to 2 give negative eigenvalues.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from nested_jax.errors import require
from nested_jax.ops.chunking import Rows, aligned_grid
from nested_jax.ops.memory.arch import Matrices
from nested_jax.ops.memory.chunk_scan import Chunk, ChunkForm, Memory, chunk_tokens, scan_chunks
from nested_jax.ops.memory.chunk_weights import ChunkWeights, chunk_weights
from nested_jax.ops.memory.chunk_write import Writes, from_sources, mixed, recall, scores
from nested_jax.ops.memory.objectives import CURVATURE
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.memory.state import MemoryInputs, MemoryState, cast_inputs, check_call
from nested_jax.ops.precision import full_precision
from nested_jax.ops.unit_triangular import unit_lower_inverse
from nested_jax.types import Array


class Block(NamedTuple):
    """A block of tokens and what needs no memory."""

    chunk: Chunk
    weights: ChunkWeights
    curvature_C: Array  # c
    solve_CC: Array  # (I + L)^-1
    target_CV: Array  # R v


@full_precision
def prepare_block(spec: MemorySpec, chunk: Chunk) -> Block:
    weights = chunk_weights(spec, chunk.gates)
    k_CK, before = chunk.k_CK, weights.before
    curvature_C = jnp.full_like(chunk.gates.rate_C, CURVATURE[spec.objective])
    if spec.gradient_at == "decayed":
        curvature_C = curvature_C * chunk.gates.keep_C
    score = scores(before, k_CK, k_CK, k_CK if spec.erases else None)
    lower_CC = score.grad_RC * curvature_C[None, :]
    if score.erase_RC is not None:
        lower_CC = lower_CC + score.erase_RC
    solve_CC = unit_lower_inverse(lower_CC)
    return Block(chunk, weights, curvature_C, solve_CC, score.grad_RC @ chunk.v_CV)


@full_precision
def write_block(
    spec: MemorySpec, memory: Memory, fresh: Memory | None, block: Block
) -> tuple[Matrices, Matrices, Array]:
    """Write a block into one head and answer its queries: (fast, momentum, y_CV)."""
    chunk, weights = block.chunk, block.weights
    sources = (*memory.fast, *memory.momentum)
    if fresh is not None:
        sources += (*fresh.fast, *fresh.momentum)
    start_CV = from_sources(weights.before, chunk.k_CK, sources)
    found_CV = block.solve_CC @ (start_CV + block.target_CV)
    delta_CV = block.curvature_C[:, None] * found_CV - chunk.v_CV
    writes = Writes(chunk.k_CK, delta_CV)
    if spec.erases:
        writes = Writes(chunk.k_CK, delta_CV, chunk.k_CK, found_CV)
    # The anchor of an online rule is the memory of the token before.
    after_write = spec.read == "token" and spec.order == "write_read"
    read = weights.after if after_write else weights.before
    score = scores(read, chunk.q_CK, chunk.k_CK, writes.direction_CI)
    y_CV = recall(read, score, chunk.q_CK, sources, writes)
    momentum: Matrices = ()
    if weights.end_momentum is not None:
        momentum = (mixed(weights.end_momentum, sources, writes),)
    return (mixed(weights.end, sources, writes),), momentum, y_CV


def delta_rule(
    spec: MemorySpec,
    state: MemoryState,
    inputs: MemoryInputs,
    rows: Rows | None = None,
    initial: MemoryState | None = None,
    *,
    block: int = 64,
    remat: bool = True,
) -> tuple[MemoryState, Array]:
    """Return what `memory_reference` does for a linear memory of chunk 1; arguments as there.

    Every token is a boundary, so documents may start anywhere.

    Args:
      block: tokens worked on in parallel; it changes the speed, not the result.
    Raises:
      ValueError: a spec with another memory or chunk, or shapes that do not belong to it.
    """
    require(spec.is_online_linear, "spec", spec, "wants arch='linear' and chunk=1")
    require(block >= 1, "block", block, "wants at least 1 token")
    rows = check_call(spec, state, inputs, rows, initial)
    # Blocks are not chunks: they end at no boundary, and the anchor is always the memory itself.
    grid = aligned_grid(rows, block, min(rows.tokens, block))._replace(complete_BN=None)
    memory, y_BTHV = scan_chunks(
        ChunkForm(partial(prepare_block, spec), partial(write_block, spec)),
        grid,
        Memory(state.fast, (), state.momentum),
        chunk_tokens(grid, cast_inputs(state, inputs), rows.starts_BT),
        None,
        None if initial is None else Memory(initial.fast, (), initial.momentum),
        remat,
    )
    after = MemoryState(memory.fast, memory.fast, memory.momentum, jnp.zeros_like(state.phase_B))
    return after, rows.mask(y_BTHV).astype(inputs.q_BTHK.dtype)
