"""The inverse of a unit lower triangular matrix, in parallel and with matrix products only."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nested_jax.ops.precision import full_precision
from nested_jax.types import Array


def unit_lower_inverse(lower_CC: Array) -> Array:
    """Return (I + L)^-1, L strictly lower triangular; only what is below its diagonal is read."""
    if lower_CC.shape[0] == 1:
        # A constant: a custom derivative of it fails under vmap (jax 0.10).
        return jnp.ones_like(lower_CC)
    return _unit_lower_inverse(lower_CC)


@jax.custom_jvp
@full_precision
def _unit_lower_inverse(lower_CC: Array) -> Array:
    """Return (I + L)^-1 for a strictly lower triangular L; only what is below its diagonal is read.

    Inverses of diagonal blocks are joined in pairs, [[A, 0], [B, D]]^-1 = [[a, 0], [-d B a, d]]
    with a, d those of A, D: log2(C) steps, as accurate as forward substitution. (The product
    (I - L)(I + L^2)(I + L^4)... is not: the powers of L outgrow the inverse.)

    Not `solve_triangular`: its batched LAPACK kernel on CPU (jaxlib 0.10.2) waits for XLA's thread
    pool from inside that pool, so that two solves at once on two cores never return.
    """
    size = lower_CC.shape[0]
    width, full = 1, 1 << (size - 1).bit_length()
    lower_CC = jnp.pad(lower_CC, (0, full - size))
    inverse_XMM = jnp.ones((full, 1, 1), lower_CC.dtype)
    while width < full:
        early_XMM, late_XMM = inverse_XMM[0::2], inverse_XMM[1::2]
        cross_XMM = -(late_XMM @ _below(lower_CC, width) @ early_XMM)
        upper_XMM = jnp.concatenate([early_XMM, jnp.zeros_like(early_XMM)], axis=2)
        joined_XMM = jnp.concatenate([cross_XMM, late_XMM], axis=2)
        inverse_XMM = jnp.concatenate([upper_XMM, joined_XMM], axis=1)
        width *= 2
    return inverse_XMM[0, :size, :size]


def _below(lower_CC: Array, width: int) -> Array:
    """The blocks B of all pairs of diagonal blocks of `width`, [pairs, width, width]."""
    pairs = lower_CC.shape[0] // (2 * width)
    blocks = lower_CC.reshape(pairs, 2, width, pairs, 2, width)[:, 1, :, :, 0]
    own = jnp.eye(pairs, dtype=bool)[:, None, :, None]
    return jnp.sum(jnp.where(own, blocks, 0.0), axis=2)


@_unit_lower_inverse.defjvp
@full_precision
def _unit_lower_inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """d(I + L)^-1 = -(I + L)^-1 dL (I + L)^-1."""
    inverse_CC = unit_lower_inverse(*primals)
    return inverse_CC, -(inverse_CC @ jnp.tril(tangents[0], -1) @ inverse_CC)
