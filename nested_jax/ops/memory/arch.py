"""The functions that a memory can be. Its fast weights are a tuple of matrices, key side first.

I and O are the input and output width of one matrix; it acts on the right, y_O = x_I @ W_IO.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp

from nested_jax.ops.memory.objectives import OBJECTIVES
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.precision import full_precision
from nested_jax.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"gelu": jax.nn.gelu, "silu": jax.nn.silu}

Matrices = tuple[Array, ...]


def matrix_shapes(
    spec: MemorySpec, key_width: int, value_width: int, hidden_width: int
) -> tuple[tuple[int, int], ...]:
    """Return (I, O) of every matrix of the memory, the one that keys feed first."""
    widths = [key_width, *[hidden_width] * (spec.num_matrices - 1), value_width]
    return tuple(pairwise(widths))


@full_precision
def memory_forward(
    spec: MemorySpec, fast: Matrices, x: Array, probes: Sequence[Array] | None = None
) -> tuple[Array, Matrices]:
    """Return M(x) and the input of every matrix. `x` is [..., K] and no axis of `fast` is batched.

    Args:
      probes: added to the output of each matrix; the gradient with respect to them is the delta of
        that matrix, and its weight gradient is input^T delta.
    """
    inputs, hidden = [], x
    for i, matrix in enumerate(fast):
        if i:
            hidden = ACTIVATIONS[spec.activation](hidden)
        inputs.append(hidden)
        hidden = hidden @ matrix
        if probes is not None:
            hidden = hidden + probes[i]
    return (x + hidden if spec.is_residual else hidden), tuple(inputs)


def memory_apply(spec: MemorySpec, fast: Matrices, x: Array) -> Array:
    """Return M(x) for x [..., K]; the fast weights are those of one head of one sequence."""
    return memory_forward(spec, fast, x)[0]


def memory_deltas(
    spec: MemorySpec, fast: Matrices, k_CK: Array, v_CV: Array
) -> tuple[Matrices, Matrices]:
    """Return each matrix's inputs [C, I] and deltas [C, O]; token s has the gradient x_s delta_s^T.

    One backward pass serves all tokens, because they share `fast` and no token's loss sees another.
    """

    def loss(probes: Matrices) -> tuple[Array, Matrices]:
        prediction_CV, inputs = memory_forward(spec, fast, k_CK, probes)
        return OBJECTIVES[spec.objective](prediction_CV, v_CV), inputs

    probes = tuple(jnp.zeros((k_CK.shape[0], w.shape[-1]), w.dtype) for w in fast)
    deltas, inputs = jax.grad(loss, has_aux=True)(probes)
    return inputs, deltas


def memory_read(spec: MemorySpec, fast: Matrices, x_BTHK: Array) -> Array:
    """Return M(x) [B, T, H, V] for fast weights [B, H, I, O], at their precision, in x's dtype."""
    x_BHTK = jnp.moveaxis(x_BTHK, 1, 2).astype(fast[0].dtype)
    per_head = jax.vmap(jax.vmap(lambda w, x_TK: memory_apply(spec, w, x_TK)))
    return jnp.moveaxis(per_head(fast, x_BHTK), 1, 2).astype(x_BTHK.dtype)
