"""What a memory is given and what it carries, with the checks at the door."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.errors import require
from nested_jax.ops.chunking import Rows
from nested_jax.ops.memory.arch import Matrices
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.normalize import widen
from nested_jax.types import Array


class MemoryInputs(NamedTuple):
    """What a layer hands to its memory for T tokens.

    Keys and queries come L2-normalised (the layer's job, `l2_normalize`). A gate that the spec does
    not have (`spec.has_keep`, `spec.momentum`) is None.
    """

    q_BTHK: Array
    k_BTHK: Array
    v_BTHV: Array
    rate_BTH: Array  # eta >= 0; up to 2 is stable for a delta rule with unit keys
    keep_BTH: Array | None = None  # a in (0, 1]
    momentum_BTH: Array | None = None  # mu in [0, 1]
    erase_BTH: Array | None = None  # epsilon in [0, 2], of rule dgd; None: eta


class MemoryState(NamedTuple):
    """What a sequence carries. Leaves are [B, H, ...], float32 (float64 for float64 memories)."""

    fast: Matrices  # the running memory W_t
    anchor: Matrices  # the memory at the last chunk boundary, where gradients are taken
    momentum: Matrices  # S_t; empty when the spec has no momentum
    phase_B: Array  # int32: tokens since the boundary, in [0, chunk)


def init_state(spec: MemorySpec, fast0: Matrices, batch: int) -> MemoryState:
    """Return fresh memories: every sequence starts from the learned `fast0`, leaves [H, I, O].

    Raises:
      ValueError: another number of matrices than the spec has.
    """
    check_matrices(spec, "fast0", fast0, rank=3)

    def spread(w_HIO: Array) -> Array:
        return jnp.broadcast_to(widen(w_HIO)[None], (batch, *w_HIO.shape))

    fast = tuple(spread(w) for w in fast0)
    momentum = tuple(jnp.zeros_like(w) for w in fast) if spec.momentum else ()
    return MemoryState(fast, fast, momentum, jnp.zeros((batch,), jnp.int32))


def cast_inputs(state: MemoryState, inputs: MemoryInputs) -> MemoryInputs:
    """Return the inputs at the precision of the state, which is that of the computation."""
    dtype = state.fast[0].dtype
    return jax.tree.map(lambda x: x.astype(dtype), inputs)


def check_matrices(spec: MemorySpec, name: str, matrices: Matrices, rank: int) -> None:
    require(
        isinstance(matrices, tuple) and len(matrices) == spec.num_matrices,
        name,
        jax.tree.map(jnp.shape, matrices),
        f"wants a tuple of {spec.num_matrices} matrices for arch={spec.arch!r}, depth={spec.depth}",
    )
    require(
        all(w.ndim == rank for w in matrices),
        name,
        jax.tree.map(jnp.shape, matrices),
        f"wants leaves of {rank} axes",
    )


def check_call(
    spec: MemorySpec,
    state: MemoryState,
    inputs: MemoryInputs,
    rows: Rows | None,
    initial: MemoryState | None,
) -> Rows:
    """Return the rows, by default whole ones; raise `ValueError` unless all belongs together."""
    b, t, h, k = inputs.q_BTHK.shape
    v = inputs.v_BTHV.shape[-1]
    require(t >= 1, "inputs.q_BTHK", inputs.q_BTHK.shape, "wants at least 1 token")
    wanted = {
        "k_BTHK": (b, t, h, k),
        "v_BTHV": (b, t, h, v),
        "rate_BTH": (b, t, h),
        "keep_BTH": (b, t, h) if spec.has_keep else None,
        "momentum_BTH": (b, t, h) if spec.momentum else None,
    }
    for name, want in wanted.items():
        got = getattr(inputs, name)
        shape = None if got is None else got.shape
        require(
            shape == want, f"inputs.{name}", shape, f"wants {want} beside q {inputs.q_BTHK.shape}"
        )
    erase = inputs.erase_BTH
    require(
        erase is None or (spec.rule == "dgd" and erase.shape == (b, t, h)),
        "inputs.erase_BTH",
        None if erase is None else erase.shape,
        f"wants None, or {(b, t, h)} with rule 'dgd', got {spec.rule!r}",
    )
    check_state(spec, state, (b, h, k, v))
    rows = check_rows(rows, inputs.q_BTHK, initial)
    if initial is not None:
        check_state(spec, initial, (b, h, k, v), "initial")
    return rows


def check_rows(rows: Rows | None, x_BT: Array, initial: object) -> Rows:
    """Return the rows of a call whose inputs are [B, T, ...], by default whole ones.

    Raises:
      ValueError: rows of another size, or `initial` without starts or the other way round.
    """
    rows = Rows.of(x_BT) if rows is None else rows
    got, want = (rows.batch, rows.tokens), x_BT.shape[:2]
    require(got == want, "rows", got, f"wants {want}, as the inputs")
    require(
        (initial is None) == (rows.starts_BT is None),
        "initial",
        "None" if initial is None else "given",
        "belongs to starts_BT: give both or neither",
    )
    return rows


def check_state(
    spec: MemorySpec, state: MemoryState, sizes: tuple[int, int, int, int], name: str = "state"
) -> None:
    """Raise `ValueError` unless the state fits `sizes` = (B, H, K, V)."""
    b, h, k, v = sizes
    check_matrices(spec, f"{name}.fast", state.fast, rank=4)
    shapes = [w.shape for w in state.fast]
    fits = all(s[:2] == (b, h) for s in shapes) and shapes[0][2] == k and shapes[-1][3] == v
    require(
        fits and all(a[3] == c[2] for a, c in pairwise(shapes)),
        f"{name}.fast",
        shapes,
        f"wants B={b}, H={h}, from K={k} to V={v}",
    )
    require(
        not spec.is_residual or k == v,
        "memory.arch",
        spec.arch,
        f"M(x) = x + ... wants equal key and value widths, got K={k}, V={v}",
    )
    for part, want in (("anchor", shapes), ("momentum", shapes if spec.momentum else [])):
        got = [w.shape for w in getattr(state, part)]
        require(got == want, f"{name}.{part}", got, f"wants {want}")
    require(state.phase_B.shape == (b,), f"{name}.phase_B", state.phase_B.shape, f"wants {(b,)}")
