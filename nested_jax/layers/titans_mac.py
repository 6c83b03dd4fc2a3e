"""Memory as context (Titans' MAC): retrieve, attend, write, segment by segment.

For every segment of S tokens, with the memory M of the segments before it,

    h = M(q(x))                                  retrieve
    y = attention over [persistent | h | x]      causal: token t sees h_s and x_s of s <= t
    M' = M written with norm(y)                  write
    o = norm(y) * silu(norm(M'(q'(norm(y)))))    the memory's answer gates

M' answers as the memory's own chunk, read and order say, so that o_t depends on no later token.

With `memory.write_from="input"` M is written with x, and M'(q'(x)) gates, as in titans-pytorch. The
memory then waits for no attention, so that all segments of a call retrieve and attend at once.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.config import ModelConfig
from nested_jax.layers.attention import (
    Attention,
    AttentionState,
    AttentionWeights,
    attention_output,
    keys_values,
    persistent_prefix,
    queries,
    score_scale,
)
from nested_jax.layers.basic import Layer, RMSNorm, rms_norm, rotary
from nested_jax.layers.call import Call
from nested_jax.layers.heads import (
    HeadOutput,
    from_heads,
    head_output,
    init_tails,
    project,
    projections,
)
from nested_jax.layers.titans import (
    MemoryWeights,
    NeuralMemory,
    NeuralMemoryState,
    init_memory,
    memory_spec,
    neural_memory,
)
from nested_jax.layers.titans_hybrids import OutputGate, gated, output_gate
from nested_jax.ops import attention as ops
from nested_jax.ops.attention_kernels import KERNELS
from nested_jax.ops.chunking import (
    ChunkGrid,
    Rows,
    Start,
    from_chunks,
    remat_scan,
    segment_grid,
    split_slots,
    to_chunks,
    where_rows,
)
from nested_jax.ops.memory.arch import Matrices, memory_read
from nested_jax.ops.memory.state import init_state
from nested_jax.ops.normalize import l2_normalize, widen
from nested_jax.types import Array


class MemoryAsContextState(NamedTuple):
    """Caches have one slot per token of a segment, in order."""

    memory: NeuralMemoryState
    source: Matrices  # the memory as of the start of the open segment, which answers h
    tokens: AttentionState  # keys and values of the segment's tokens
    retrieved: AttentionState  # and of what was retrieved for each of them
    tails: tuple[Array, ...]  # of the convolution of the retrieving queries
    count_B: Array  # int32, tokens of the open segment

    @property
    def matrices(self) -> Matrices:
        """The memory's matrices, float32."""
        return self.memory.matrices

    def memory_into(self, other: MemoryAsContextState) -> MemoryAsContextState:
        """Return `other`, at the start of a segment, with the memory of this state alone.

        A segment starts on a boundary of the memory's chunks, so its open chunk ends here.
        """
        kept = self.memory.memory_into(other.memory)
        memory = kept.memory
        closed = memory._replace(anchor=memory.fast, phase_B=jnp.zeros_like(memory.phase_B))
        return other._replace(memory=kept._replace(memory=closed))


class Parts(NamedTuple):
    """The parameters that work inside the scan over segments."""

    attention: AttentionWeights
    memory: MemoryWeights
    retrieved: HeadOutput  # heads of h -> D
    retrieved_norm_D: Array
    attended_norm_D: Array
    gate: OutputGate


class Piece(NamedTuple):
    """The tokens of a call that lie in one segment; in front N pieces where they are stacked."""

    probe_BTHK: Array  # unit queries of the retrieval
    q_BTHK: Array  # of attention, before rotary positions
    k_BTGK: Array
    v_BTGK: Array
    position_BT: Array
    x_BTD: Array | None  # what the memory is written with, where it is the input
    start_B: Array | None = None  # bool, the piece begins a document
    lengths_B: Array | None = None  # int32, tokens that exist; None: a whole segment

    @property
    def rows(self) -> Rows:
        """The rows as the memory reads them: a document that starts has its fresh state already."""
        start: Start = "aligned" if self.lengths_B is None else "any"
        return Rows.of(self.position_BT, lengths_B=self.lengths_B, start=start)


class MemoryAsContext(Layer):
    """`titans_mac`. Attention never leaves a segment; what is older comes from the memory."""

    cfg: ModelConfig

    def setup(self) -> None:
        cfg = self.cfg
        self.attention = Attention(cfg)
        self.memory = NeuralMemory(cfg)
        self.probe = projections(self, cfg, ("probe",))
        self.retrieved = head_output(self, cfg, gated=False)
        self.retrieved_norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.attended_norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.gate = output_gate(self, cfg)

    def init_state(self, batch: int, capacity: int) -> MemoryAsContextState:
        del capacity
        return jax.tree.map(jnp.zeros_like, self._fresh(batch))

    def _fresh(self, batch: int) -> MemoryAsContextState:
        """Return the state before the first token: zeros, and the memory's initial value."""
        cfg, weights = self.cfg, self.memory.weights
        memory = init_state(memory_spec(cfg.memory), weights.fast0, batch)
        shape = (batch, cfg.memory_segment, cfg.num_kv_heads, cfg.head_width)
        zeros = jnp.zeros(shape, jnp.dtype(cfg.compute_dtype))
        cache = AttentionState(zeros, zeros)
        return MemoryAsContextState(
            init_memory(cfg, weights, batch)._replace(memory=memory),
            memory.fast,
            cache,
            cache,
            init_tails(cfg, 1, batch),
            jnp.zeros((batch,), jnp.int32),
        )

    def __call__(
        self, state: MemoryAsContextState, x_BTD: Array, call: Call
    ) -> tuple[MemoryAsContextState, Array]:
        cfg, weights, rows = self.cfg, self.attention.weights, call.rows
        fresh = self._fresh(x_BTD.shape[0])
        begun = rows.start_state(fresh, state)
        tails, (probe_BTHK,) = project(self.probe, begun.tails, x_BTD, call.position_BT, rows)
        grid = segment_grid(rows, cfg.memory_segment, rows.phase(begun.count_B))
        tokens = Piece(
            l2_normalize(widen(probe_BTHK)),
            queries(weights, x_BTD),
            *keys_values(weights, x_BTD),
            call.position_BT,
            x_BTD if cfg.memory.write_from == "input" else None,
        )
        parts = Parts(
            weights,
            self.memory.weights,
            self.retrieved,
            self.retrieved_norm.scale_D,
            self.attended_norm.scale_D,
            self.gate,
        )
        cut, run = pieces(grid, tokens, rows.starts_BT), all_pieces
        if tokens.x_BTD is None or cut.lengths_B is not None:
            run = each_piece
        carry, y_NBWD = run(cfg, parts, fresh._replace(tails=()), begun._replace(tails=()), cut)
        return rows.keep_idle(carry._replace(tails=tails), state), from_chunks(grid, y_NBWD)


def pieces(grid: ChunkGrid, tokens: Piece, starts_BT: Array | None) -> Piece:
    """Cut a call's tokens where segments end; leaves [N, B, W, ...]."""
    cut = jax.tree.map(partial(to_chunks, grid), tokens)
    lengths_NB = None
    if grid.exists_BS is not None:
        lengths_NB = jnp.sum(split_slots(grid, grid.exists_BS), axis=-1, dtype=jnp.int32)
    if starts_BT is not None:
        start_NB = to_chunks(grid, starts_BT)[:, :, 0]
        cut = cut._replace(start_B=start_NB if lengths_NB is None else start_NB & (lengths_NB > 0))
    return cut._replace(lengths_B=lengths_NB)


def each_piece(
    cfg: ModelConfig,
    parts: Parts,
    fresh: MemoryAsContextState,
    begun: MemoryAsContextState,
    cut: Piece,
) -> tuple[MemoryAsContextState, Array]:
    """Read one piece after the other; return the state, and [N, B, W, D]."""
    body = partial(run_piece, cfg, parts, fresh)
    state, y_NBWD = remat_scan(body, begun, cut, remat=cfg.remat == "nested")
    return state, y_NBWD


def all_pieces(
    cfg: ModelConfig,
    parts: Parts,
    fresh: MemoryAsContextState,
    begun: MemoryAsContextState,
    cut: Piece,
) -> tuple[MemoryAsContextState, Array]:
    """The same for whole segments whose memory is written with their inputs, side by side.

    The memory alone goes from segment to segment. What it was at the start of each answers h.
    """

    def write(
        memory: NeuralMemoryState, piece: Piece
    ) -> tuple[NeuralMemoryState, tuple[Matrices, Array]]:
        if piece.start_B is not None:
            memory = where_rows(piece.start_B, fresh.memory, memory)
        assert piece.x_BTD is not None
        after, recalled_BWD = neural_memory(
            cfg, parts.memory, memory, piece.x_BTD, piece.position_BT, piece.rows
        )
        return after, (memory.matrices, recalled_BWD)

    memory, (sources, recalled_NBWD) = remat_scan(
        write, begun.memory, cut, remat=cfg.remat == "nested"
    )
    count, batch, width = cut.position_BT.shape
    merge = lambda x: x.reshape(count * batch, *x.shape[2:])  # noqa: E731
    piece, source, recalled = jax.tree.map(
        merge, (cut._replace(start_B=None), sources, recalled_NBWD)
    )
    slot_BW = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), piece.position_BT.shape)
    tokens, retrieved, attended = read_segment(cfg, parts, source, None, piece, slot_BW)
    y_NBWD = gated(parts.gate, attended, recalled, cfg.norm_eps).reshape(recalled_NBWD.shape)
    source, tokens, retrieved = jax.tree.map(
        lambda x: x.reshape(count, batch, *x.shape[1:])[-1], (source, tokens, retrieved)
    )
    zero_B = jnp.zeros_like(begun.count_B)
    return MemoryAsContextState(memory, source, tokens, retrieved, (), zero_B), y_NBWD


def run_piece(
    cfg: ModelConfig,
    parts: Parts,
    fresh: MemoryAsContextState,
    state: MemoryAsContextState,
    piece: Piece,
) -> tuple[MemoryAsContextState, Array]:
    """Retrieve, attend, write and answer for tokens of one segment; return [B, W, D]."""
    begun = state if piece.start_B is None else where_rows(piece.start_B, fresh, state)
    starts_B = begun.count_B == 0
    source = where_rows(starts_B, begun.memory.memory.fast, begun.source)
    slot_BW = begun.count_B[:, None] + jnp.arange(piece.q_BTHK.shape[1], dtype=jnp.int32)[None]
    caches = begun.tokens, begun.retrieved
    tokens, retrieved, attended_BWD = read_segment(cfg, parts, source, caches, piece, slot_BW)
    memory, recalled_BWD = neural_memory(
        cfg,
        parts.memory,
        begun.memory,
        attended_BWD if piece.x_BTD is None else piece.x_BTD,
        piece.position_BT,
        piece.rows,
    )
    count_B = begun.count_B + (slot_BW.shape[1] if piece.lengths_B is None else piece.lengths_B)
    after = MemoryAsContextState(
        memory, source, tokens, retrieved, (), count_B % cfg.memory_segment
    )
    if piece.lengths_B is not None:
        after = where_rows(piece.lengths_B > 0, after, state)
    return after, gated(parts.gate, attended_BWD, recalled_BWD, cfg.norm_eps)


def read_segment(
    cfg: ModelConfig,
    parts: Parts,
    source: Matrices,
    caches: tuple[AttentionState, AttentionState] | None,
    piece: Piece,
    slot_BW: Array,
) -> tuple[AttentionState, AttentionState, Array]:
    """Retrieve and attend; return the caches of tokens and of what was retrieved, and [B, W, D].

    A whole segment needs no caches of what came before it.
    """
    h_BWD = retrieve(cfg, parts, source, piece)
    before = (None, None) if caches is None else caches
    tokens = cached(cfg, before[0], (piece.k_BTGK, piece.v_BTGK), slot_BW, piece)
    retrieved = cached(cfg, before[1], keys_values(parts.attention, h_BWD), slot_BW, piece)
    attended_BWD = attend(cfg, parts.attention, tokens, retrieved, slot_BW, piece.q_BTHK)
    return tokens, retrieved, rms_norm(attended_BWD, parts.attended_norm_D, cfg.norm_eps)


def retrieve(cfg: ModelConfig, parts: Parts, source: Matrices, piece: Piece) -> Array:
    """Return what the memory of the segments before answers to each token, [B, W, D]."""
    answer_BWHV = memory_read(memory_spec(cfg.memory), source, piece.probe_BTHK)
    like_BW1 = piece.q_BTHK[:, :, 0, :1]  # gives the dtype: there is no gate
    h_BWD = from_heads(parts.retrieved, answer_BWHV, like_BW1, cfg.norm_eps)
    return rms_norm(h_BWD, parts.retrieved_norm_D, cfg.norm_eps)


def cached(
    cfg: ModelConfig,
    cache: AttentionState | None,
    keys_and_values: tuple[Array, Array],
    slot_BW: Array,
    piece: Piece,
) -> AttentionState:
    """Return the cache with the piece's keys, which get their rotary positions, and values."""
    k_BWGK, v_BWGK = keys_and_values
    k_BWGK = rotary(k_BWGK, slot_BW, cfg)
    if piece.lengths_B is None:  # a whole segment
        return AttentionState(k_BWGK, v_BWGK)
    assert cache is not None
    put = partial(ops.place, slots_B=slot_BW[:, 0], lengths_B=piece.lengths_B)
    return AttentionState(put(cache.k_BUGK, k_BWGK), put(cache.v_BUGK, v_BWGK))


def attend(
    cfg: ModelConfig,
    weights: AttentionWeights,
    tokens: AttentionState,
    retrieved: AttentionState,
    slot_BW: Array,
    q_BWHK: Array,
) -> Array:
    """Return causal attention over [persistent | retrieved | tokens], [B, W, D]."""
    slots_U = jnp.arange(tokens.k_BUGK.shape[1], dtype=jnp.int32)
    earlier_BWU = slots_U[None, None, :] <= slot_BW[:, :, None]
    k_BUGK, v_BUGK = (jnp.concatenate(pair, 1) for pair in zip(retrieved, tokens, strict=True))
    y_BWHK = KERNELS[cfg.attention](
        rotary(q_BWHK, slot_BW, cfg),
        k_BUGK,
        v_BUGK,
        jnp.concatenate([earlier_BWU, earlier_BWU], axis=-1),
        score_scale(cfg),
        persistent_prefix(weights, q_BWHK),
    )
    return attention_output(weights, y_BWHK)
