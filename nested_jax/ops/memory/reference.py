"""Memories token by token, `jax.grad` inside `lax.scan`: slow, and the definition of correct."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.ops.chunking import Rows, where_rows
from nested_jax.ops.memory.arch import Matrices, memory_apply, memory_forward
from nested_jax.ops.memory.objectives import OBJECTIVES
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.memory.state import MemoryInputs, MemoryState, cast_inputs, check_call
from nested_jax.ops.memory.update_rules import RETAIN, TokenGates, increment
from nested_jax.ops.normalize import l2_normalize
from nested_jax.ops.precision import full_precision
from nested_jax.types import Array


class HeadToken(NamedTuple):
    """One token as one head sees it."""

    q_K: Array
    k_K: Array
    v_V: Array
    gates: TokenGates


@full_precision
def write_token(
    spec: MemorySpec, fast: Matrices, anchor: Matrices, momentum: Matrices, token: HeadToken
) -> tuple[Matrices, Matrices]:
    """Return the memory and the momentum of one head after one write (rules: `MemorySpec`)."""

    def loss(memory: Matrices) -> Array:
        return OBJECTIVES[spec.objective](memory_apply(spec, memory, token.k_K), token.v_V)

    if spec.gradient_at == "decayed":
        anchor = jax.tree.map(lambda w_IO: token.gates.keep * w_IO, anchor)
    grads = jax.grad(loss)(anchor)
    inputs = memory_forward(spec, anchor, token.k_K)[1]
    written, surprise = [], []
    for i, (w_IO, grad_IO) in enumerate(zip(fast, grads, strict=True)):
        step_IO = increment(momentum[i] if spec.momentum else None, grad_IO, token.gates)
        unit_I = inputs[i] if i == 0 else l2_normalize(inputs[i])
        kept_IO = RETAIN[spec.rule](w_IO, token.gates, unit_I if spec.erases else None)
        written.append(kept_IO + step_IO)
        surprise.append(step_IO)
    return tuple(written), tuple(surprise) if spec.momentum else ()


def step_token(
    spec: MemorySpec, state: MemoryState, tokens: HeadToken
) -> tuple[MemoryState, Array]:
    """Write one token in every head of every row; return the state and the answers [B, H, V]."""
    over_heads = partial(jax.vmap, in_axes=0)
    write = over_heads(over_heads(partial(write_token, spec)))
    read = over_heads(over_heads(partial(memory_apply, spec)))

    fast, momentum = write(state.fast, state.anchor, state.momentum, tokens)
    token_read = fast if spec.order == "write_read" else state.fast
    y_BHV = read(token_read if spec.read == "token" else state.anchor, tokens.q_K)

    phase_B = (state.phase_B + 1) % spec.chunk
    running = MemoryState(fast, state.anchor, momentum, phase_B)
    return where_rows(phase_B == 0, running._replace(anchor=fast), running), y_BHV


def memory_reference(
    spec: MemorySpec,
    state: MemoryState,
    inputs: MemoryInputs,
    rows: Rows | None = None,
    initial: MemoryState | None = None,
) -> tuple[MemoryState, Array]:
    """Write and read T tokens, one after the other; the arguments are those of `memory_chunked`.

    Raises:
      ValueError: shapes or gates that do not belong to the spec.
    """
    rows = check_call(spec, state, inputs, rows, initial)
    exists_BT = rows.exists_BT
    starts_BT = jnp.zeros_like(exists_BT) if rows.starts_BT is None else rows.starts_BT & exists_BT
    fresh = state if initial is None else initial

    def body(
        carry: MemoryState, xs: tuple[MemoryInputs, Array, Array]
    ) -> tuple[MemoryState, Array]:
        x, exists_B, start_B = xs
        carry = where_rows(start_B, fresh, carry)
        gates = TokenGates(x.rate_BTH, x.keep_BTH, x.momentum_BTH, x.erase_BTH)
        after, y_BHV = step_token(spec, carry, HeadToken(x.q_BTHK, x.k_BTHK, x.v_BTHV, gates))
        y_BHV = jnp.where(exists_B[:, None, None], y_BHV, 0.0)
        return where_rows(exists_B, after, carry), y_BHV

    time_first = jax.tree.map(
        lambda x: jnp.moveaxis(x, 1, 0), (cast_inputs(state, inputs), exists_BT, starts_BT)
    )
    state, y_TBHV = jax.lax.scan(body, state, time_first)
    return state, jnp.moveaxis(y_TBHV, 0, 1).astype(inputs.q_BTHK.dtype)
