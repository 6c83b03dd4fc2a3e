"""Self-modifying Titans token by token, on `memory_reference`: the definition of correct."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from nested_jax.ops.chunking import Rows, where_rows
from nested_jax.ops.memory.arch import memory_apply
from nested_jax.ops.memory.reference import HeadToken, step_token
from nested_jax.ops.memory.self_modifying import (
    GateReadout,
    SelfModInputs,
    SelfModSpec,
    SelfModState,
    check_self_modifying,
    generate,
    make_target,
)
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.memory.state import MemoryState, check_rows
from nested_jax.ops.memory.update_rules import TokenGates
from nested_jax.types import Array

# The generators of a state lie on axis 2; their phase is one.
EACH = MemoryState(fast=2, anchor=2, momentum=2, phase_B=None)  # type: ignore[arg-type]


def count_token(chunk: int, state: MemoryState) -> MemoryState:
    """Return the state of a memory that a token was not written into."""
    counted = state._replace(phase_B=(state.phase_B + 1) % chunk)
    return where_rows(counted.phase_B == 0, counted._replace(anchor=state.fast), counted)


def step_self_modifying(
    spec: SelfModSpec, readout: GateReadout, state: SelfModState, token: SelfModInputs
) -> tuple[SelfModState, Array]:
    """Read and write one token, leaves [B, H, ...], in every memory; return y_BHV."""
    one = jax.tree.map(lambda x: x[:, :, None], token)  # a token axis for `generate`
    over_heads = jax.vmap(partial(generate, spec))
    made = jax.vmap(over_heads, in_axes=(None, 0, 0))(readout, state.generators.anchor, one)
    q_BHK, k_BHK, v_BHV, rate_BH, keep_BH, erase_BH = jax.tree.map(lambda x: x[:, :, 0], made)
    gates = TokenGates(rate_BH, keep_BH if spec.memory.has_keep else None, token.momentum, erase_BH)

    def write(memory: MemorySpec, s: MemoryState, gates: TokenGates) -> tuple[MemoryState, Array]:
        target = jax.vmap(jax.vmap(partial(make_target, spec, memory)))
        target_BHV = target(s.anchor, v_BHV[:, :, None])[:, :, 0]
        return step_token(memory, s, HeadToken(q_BHK, k_BHK, target_BHV, gates))

    if spec.frozen:
        generators, memory = (
            count_token(m.chunk, s) for m, s in zip(spec.specs, state, strict=True)
        )
        read = jax.vmap(jax.vmap(partial(memory_apply, spec.memory)))
        return SelfModState(generators, memory), read(state.memory.fast, q_BHK)
    pace_HG = readout.pace_HG
    if pace_HG is None:
        pace_HG = jnp.ones((rate_BH.shape[1], len(spec.generators)), rate_BH.dtype)

    def write_slowly(s: MemoryState, pace_H: Array) -> MemoryState:
        paced = gates._replace(rate=rate_BH * pace_H[None])
        if gates.keep is not None:
            paced = paced._replace(keep=1.0 - (1.0 - keep_BH) * pace_H[None])
        if gates.erase is not None:
            paced = paced._replace(erase=erase_BH * pace_H[None])
        return write(spec.generator, s, paced)[0]

    each = jax.vmap(write_slowly, in_axes=(EACH, 1), out_axes=EACH)
    generators = each(state.generators, pace_HG)
    memory, y_BHV = write(spec.memory, state.memory, gates)
    return SelfModState(generators, memory), y_BHV


def self_modifying_reference(
    spec: SelfModSpec,
    readout: GateReadout,
    state: SelfModState,
    inputs: SelfModInputs,
    rows: Rows | None = None,
    initial: SelfModState | None = None,
) -> tuple[SelfModState, Array]:
    """Write and read T tokens one after the other; arguments as `self_modifying_chunked`."""
    check_self_modifying(spec, state, inputs)
    rows = check_rows(rows, inputs.x, initial)
    exists_BT = rows.exists_BT
    starts_BT = jnp.zeros_like(exists_BT) if rows.starts_BT is None else rows.starts_BT & exists_BT
    fresh = state if initial is None else initial

    def body(
        carry: SelfModState, xs: tuple[SelfModInputs, Array, Array]
    ) -> tuple[SelfModState, Array]:
        token, exists_B, start_B = xs
        carry = where_rows(start_B, fresh, carry)
        after, y_BHV = step_self_modifying(spec, readout, carry, token)
        return where_rows(exists_B, after, carry), y_BHV

    wide = jax.tree.map(lambda x: x.astype(state.memory.fast[0].dtype), inputs)
    time_first = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (wide, exists_BT, starts_BT))
    state, y_TBHV = jax.lax.scan(body, state, time_first)
    return state, rows.mask(jnp.moveaxis(y_TBHV, 0, 1)).astype(inputs.x.dtype)
