"""Self-modifying Titans (NL Eq. 83-93): a memory whose projections are memories, also written.

Every generator M_g (g: k, v, q, rate, keep) and the memory M_mem are read and differentiated at the
state M̄ that their last chunk boundary left. For token t with input x_t,

    k_t = unit(M̄_k(x_t))     v_t = M̄_v(x_t)     q_t = unit(M̄_q(x_t)), or a slow projection of x_t
    eta_t = max_rate sigmoid(<r_eta, M̄_rate(x_t)> + b_eta) (1 - mu_t)
    a_t = sigmoid(<r_a, M̄_keep(x_t)> + b_a)
    every memory M, M_mem too, is written with key k_t, target unit(M̄(v_t)), rate eta_t, keep a_t
    y_t = M_mem(q_t)

A generator g with a pace p_g in (0, 1] is written with rate p_g eta_t and keep 1 - p_g (1 - a_t): a
token moves it p_g times as far as M_mem. NL writes all memories with one rate and keep, p = 1. But
delta rates of the order of 1, which recall wants of M_mem, replace what M_k and M_v have learned.

NL makes eta and a scalars and leaves open how; here M_rate and M_keep are memories like the others,
read out by slow vectors r, so that their self-made targets are unit vectors too. The target is
normalised because M̄(v) written into M makes the update quadratic in M, and it diverges.

Generators and memory may have chunks of different sizes, one dividing the other. The scan goes over
the smaller; the memory of the larger chunk is written piece by piece and keeps its anchor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.config import require
from nested_jax.ops.chunk_scan import Chunk, Memory
from nested_jax.ops.chunk_weights import ChunkGates, ChunkWeights, chunk_weights
from nested_jax.ops.chunking import (
    ChunkGrid,
    aligned_grid,
    from_chunks,
    phased_grid,
    remat_scan,
    split_slots,
    to_chunks,
)
from nested_jax.ops.memory_arch import Matrices, memory_apply
from nested_jax.ops.memory_chunked import Prepared, write_chunk
from nested_jax.ops.memory_spec import MemorySpec
from nested_jax.ops.memory_state import MemoryState, mask_tokens, where_rows
from nested_jax.ops.normalize import l2_normalize, widen
from nested_jax.types import Array

GENERATORS = ("k", "v", "q", "rate", "keep")


@dataclass(frozen=True)
class SelfModSpec:
    """Which projections are memories, and how they and M_mem are written.

    Raises:
      ValueError: an unknown generator, or two memories that cannot be written together.
    """

    memory: MemorySpec  # M_mem
    generator: MemorySpec  # all generators; what differs from `memory` is the chunk
    generators: tuple[str, ...]  # in the order of the generator axis
    max_rate: float = 1.0
    targets: Literal["self", "value"] = "self"  # unit(M̄(v_t)), or v_t itself
    writes: Literal["all", "memory", "none"] = "all"  # which memories are not only read
    remat: bool = (
        True  # keep about sqrt(T / step) states for the backward pass, recompute the others
    )

    def __post_init__(self) -> None:
        unknown = [g for g in self.generators if g not in GENERATORS]
        require(not unknown, "generators", unknown, f"known: {', '.join(GENERATORS)}")
        large, small = sorted((self.memory.chunk, self.generator.chunk), reverse=True)
        require(
            large % small == 0,
            "memory.generator_chunk",
            self.generator.chunk,
            f"must divide memory.chunk={self.memory.chunk}, or be a multiple of it",
        )
        for name in ("rule", "momentum", "gradient_at"):
            value, want = getattr(self.generator, name), getattr(self.memory, name)
            require(value == want, f"generator.{name}", value, f"wants {want!r}, as the memory")
        require(
            self.memory.gradient_at == "previous",
            "memory.gradient_at",
            self.memory.gradient_at,
            "a self-modifying memory wants 'previous'",
        )

    @property
    def specs(self) -> tuple[MemorySpec, MemorySpec]:
        """In the order of `SelfModState`."""
        return self.generator, self.memory

    @property
    def step(self) -> int:
        """Tokens of one step of the scan."""
        return min(self.memory.chunk, self.generator.chunk)


class SelfModState(NamedTuple):
    generators: MemoryState  # leaves [B, H, generators, I, O]
    memory: MemoryState


class SelfModInputs(NamedTuple):
    """Tokens, leaves [B, T, H, K] and [B, T, H]; a projection that a generator makes is None."""

    x: Array  # unit vectors that the generators read; [B, T, H, G, K] gives each its own
    q: Array | None
    k: Array | None
    v: Array | None
    momentum: Array | None


class GateReadout(NamedTuple):
    """The slow parameters of the gates; `keep` parts are None where nothing is forgotten."""

    rate_HV: Array
    rate_bias_H: Array
    keep_HV: Array | None
    keep_bias_H: Array | None
    pace_HG: Array | None = None  # of the generators, in their order; None: all 1


class HeadTokens(NamedTuple):
    """What one head sees of the C slots of a step."""

    inputs: SelfModInputs  # leaves [C, K] and [C]
    live_C: Array | None  # 1 where the slot holds a token; None: everywhere


class Generated(NamedTuple):
    q_CK: Array
    k_CK: Array
    v_CV: Array
    rate_C: Array
    keep_C: Array


def init_self_modifying(
    spec: SelfModSpec, generators0: Matrices, memory0: Matrices, batch: int
) -> SelfModState:
    """Return fresh memories from the learned [H, generators, I, O] and [H, I, O]."""

    def fresh(spec: MemorySpec, fast0: Matrices) -> MemoryState:
        fast = tuple(jnp.broadcast_to(widen(w)[None], (batch, *w.shape)) for w in fast0)
        momentum = tuple(jnp.zeros_like(w) for w in fast) if spec.momentum else ()
        return MemoryState(fast, fast, momentum, jnp.zeros((batch,), jnp.int32))

    return SelfModState(fresh(spec.generator, generators0), fresh(spec.memory, memory0))


def generate(
    spec: SelfModSpec, readout: GateReadout, anchors: Matrices, tokens: SelfModInputs
) -> Generated:
    """Read the generators of one head, leaves [generators, I, O], for its C tokens."""
    own = None if tokens.x.ndim == 2 else 1
    read = jax.vmap(partial(memory_apply, spec.generator), in_axes=(0, own))
    made_GCV = read(anchors, tokens.x)
    made = dict(zip(spec.generators, made_GCV, strict=True))
    rate_C = spec.max_rate * jax.nn.sigmoid(made["rate"] @ readout.rate_HV + readout.rate_bias_H)
    if tokens.momentum is not None:
        rate_C = rate_C * (1.0 - tokens.momentum)
    keep_C = jnp.ones_like(rate_C)
    if "keep" in made:
        keep_C = jax.nn.sigmoid(made["keep"] @ readout.keep_HV + readout.keep_bias_H)
    given: dict[str, Array] = {"q": tokens.q, "k": tokens.k, "v": tokens.v}  # type: ignore[dict-item]
    q_CK, k_CK, v_CV = (made[name] if name in made else given[name] for name in ("q", "k", "v"))
    return Generated(l2_normalize(q_CK), l2_normalize(k_CK), v_CV, rate_C, keep_C)


def make_target(spec: SelfModSpec, memory: MemorySpec, anchor: Matrices, v_CV: Array) -> Array:
    """Return what one memory of one head is written with, [C, V]."""
    if spec.targets == "value":
        return v_CV
    return l2_normalize(memory_apply(memory, anchor, v_CV))


def write_step(
    spec: SelfModSpec,
    readout: GateReadout,
    memories: tuple[Memory, Memory],
    tokens: HeadTokens,
) -> tuple[tuple[Memory, Memory], Array]:
    """Generate, write and read the C slots of one head; the anchors are returned as they were."""
    generators, memory = memories
    made = generate(spec, readout, generators.anchor or generators.fast, tokens.inputs)
    gates = _mask(ChunkGates(made.rate_C, made.keep_C, tokens.inputs.momentum, tokens.live_C, None))
    weights = chunk_weights(spec.memory, gates)

    def write(
        memory_spec: MemorySpec, m: Memory, gates: ChunkGates, weights: ChunkWeights
    ) -> tuple[Memory, Array]:
        target_CV = make_target(spec, memory_spec, m.anchor or m.fast, made.v_CV)
        chunk = Chunk(made.q_CK, made.k_CK, target_CV, gates)
        fast, momentum, y_CV = write_chunk(memory_spec, m, None, Prepared(chunk, weights))
        return Memory(fast, m.anchor, momentum), y_CV

    if spec.writes == "none":
        return memories, memory_apply(spec.memory, memory.fast, made.q_CK)
    pace_G = readout.pace_HG  # of this head
    if spec.writes == "all" and pace_G is None:
        generators = jax.vmap(lambda m: write(spec.generator, m, gates, weights)[0])(generators)
    elif spec.writes == "all" and pace_G is not None:

        def write_slowly(m: Memory, pace: Array) -> Memory:
            paced = gates._replace(
                rate_C=pace * gates.rate_C, keep_C=1.0 - pace * (1.0 - gates.keep_C)
            )
            return write(spec.generator, m, paced, chunk_weights(spec.memory, paced))[0]

        generators = jax.vmap(write_slowly)(generators, pace_G)
    memory, y_CV = write(spec.memory, memory, gates, weights)
    return (generators, memory), y_CV


def _mask(gates: ChunkGates) -> ChunkGates:
    """Give slots without a token the gates that change nothing."""
    if gates.live_C is None:
        return gates
    live_C = gates.live_C > 0
    momentum_C = gates.momentum_C
    if momentum_C is not None:
        momentum_C = jnp.where(live_C, momentum_C, 1.0)
    return gates._replace(
        rate_C=jnp.where(live_C, gates.rate_C, 0.0),
        keep_C=jnp.where(live_C, gates.keep_C, 1.0),
        momentum_C=momentum_C,
    )


class _Step(NamedTuple):
    tokens: HeadTokens  # leaves [B, H, C, ...]
    start_B: Array | None
    complete_B: tuple[Array | None, Array | None]  # of generators and memory; None: always


def self_modifying_chunked(
    spec: SelfModSpec,
    readout: GateReadout,
    state: SelfModState,
    inputs: SelfModInputs,
    *,
    lengths_B: Array | None = None,
    starts_BT: Array | None = None,
    initial: SelfModState | None = None,
    aligned: bool = False,
) -> tuple[SelfModState, Array]:
    """Write and read T tokens in every row and head; return the state behind them and y_BTHV.

    Arguments as `memory_chunked`; a start lies on a boundary of the larger chunk, or is the first
    token of the call. Computed at the precision of the state; y has the dtype of x.

    Raises:
      ValueError: inputs or a state that do not belong to the spec.
    """
    check_self_modifying(spec, state, inputs)
    inputs_wide = jax.tree.map(lambda x: x.astype(state.memory.fast[0].dtype), inputs)
    batch, tokens = inputs.x.shape[:2]
    phases = [jnp.zeros_like(m.phase_B) if aligned else m.phase_B for m in state]
    if starts_BT is not None:
        phases = [jnp.where(starts_BT[:, 0], 0, phase_B) for phase_B in phases]
    if aligned:
        grid = aligned_grid(batch, tokens, spec.step, lengths_B)
    else:
        grid = phased_grid(tokens, spec.step, phases[0] % spec.step, lengths_B)
    generator_ends, memory_ends = (
        _completes(grid, m.chunk // spec.step, phase_B // spec.step)
        for m, phase_B in zip(spec.specs, phases, strict=True)
    )
    complete = generator_ends, memory_ends

    def carried(states: SelfModState) -> tuple[Memory, Memory]:
        generators, memory = (
            Memory(m.fast, () if done is None else m.anchor, m.momentum)
            for m, done in zip(states, complete, strict=True)
        )
        return generators, memory

    fresh = None if initial is None else carried(initial)
    over_heads = jax.vmap(partial(write_step, spec))
    over_rows = jax.vmap(over_heads, in_axes=(None, 0, 0))

    def body(memories: tuple[Memory, Memory], step: _Step) -> tuple[tuple[Memory, Memory], Array]:
        if step.start_B is not None and fresh is not None:
            memories = where_rows(step.start_B, fresh, memories)
        after, y_BHCV = over_rows(readout, memories, step.tokens)
        generators, memory = (
            m if done_B is None else m._replace(anchor=where_rows(done_B, m.fast, m.anchor))
            for m, done_B in zip(after, step.complete_B, strict=True)
        )
        return (generators, memory), y_BHCV

    steps = _Step(_lay_out(grid, inputs_wide), _starts(grid, starts_BT), complete)
    memories, y_NBHCV = remat_scan(body, carried(state), steps, grid.chunks, remat=spec.remat)
    y_BTHV = from_chunks(grid, jnp.moveaxis(y_NBHCV, 2, 3))
    count = tokens if lengths_B is None else lengths_B
    generators, memory = (
        MemoryState(m.fast, m.anchor or m.fast, m.momentum, (phase_B + count) % s.chunk)
        for m, s, phase_B in zip(memories, spec.specs, phases, strict=True)
    )
    y_BTHV = mask_tokens(y_BTHV, lengths_B).astype(inputs.x.dtype)
    return SelfModState(generators, memory), y_BTHV


def _completes(grid: ChunkGrid, steps: int, begun_B: Array) -> Array | None:
    """Return [N, B]: whether a chunk of `steps` steps ends with the step; None: each step ends one.

    `begun_B` steps of the open chunk lie before the call.
    """
    if grid.complete_BN is None and steps == 1:
        return None
    step_N = jnp.arange(1, grid.chunks + 1, dtype=jnp.int32)
    ends_NB = (step_N[:, None] + begun_B[None, :]) % steps == 0
    return ends_NB if grid.complete_BN is None else ends_NB & grid.complete_BN.T


def _starts(grid: ChunkGrid, starts_BT: Array | None) -> Array | None:
    """Return [N, B]: whether a document starts with the step."""
    if starts_BT is None:
        return None
    starts_NBW = to_chunks(grid, starts_BT)
    if grid.exists_BS is not None:
        starts_NBW = starts_NBW & split_slots(grid, grid.exists_BS)
    return jnp.any(starts_NBW, axis=-1)


def _lay_out(grid: ChunkGrid, inputs: SelfModInputs) -> HeadTokens:
    """[B, T, H, ...] -> [N, B, H, C, ...]."""
    laid = jax.tree.map(lambda x: jnp.moveaxis(to_chunks(grid, x), 3, 2), inputs)
    if grid.exists_BS is None:
        return HeadTokens(laid, None)
    live_NBC = split_slots(grid, grid.exists_BS).astype(inputs.x.dtype)
    heads = inputs.x.shape[2]
    live_NBHC = jnp.broadcast_to(live_NBC[:, :, None], (*live_NBC.shape[:2], heads, grid.width))
    return HeadTokens(laid, live_NBHC)


def check_self_modifying(spec: SelfModSpec, state: SelfModState, inputs: SelfModInputs) -> None:
    """Raise `ValueError` unless state and inputs belong to the spec."""
    b, _, h, *own, k = inputs.x.shape
    require(
        own in ([], [len(spec.generators)]),
        "inputs.x",
        inputs.x.shape,
        f"wants [B, T, H, K], or [B, T, H, G, K] with a vector for each of {spec.generators}",
    )
    for name in ("q", "k", "v"):
        given = getattr(inputs, name)
        require(
            (given is None) == (name in spec.generators),
            f"inputs.{name}",
            None if given is None else given.shape,
            f"wants None where a generator makes it, of {spec.generators}",
        )
    require(
        (inputs.momentum is None) == (not spec.memory.momentum),
        "inputs.momentum",
        None if inputs.momentum is None else inputs.momentum.shape,
        f"wants an array exactly if memory.momentum={spec.memory.momentum}",
    )
    shape, want = state.generators.fast[0].shape, (b, h, len(spec.generators), k)
    require(shape[:4] == want, "state.generators", shape, f"wants {want} in front")
    shape = state.memory.fast[0].shape
    require(shape[:3] == (b, h, k), "state.memory", shape, f"wants {(b, h, k)} in front")
