"""Digests of what a checkpoint holds: a bit that flips on disk must not train on unnoticed.

Measured with Orbax 0.12: cut or missing files raise on reading, but 3 of 3 single bits flipped in
the arrays' data were restored without a word.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nested_jax.train.state import HOST, on_device
from nested_jax.types import Array, PyTree


def seal(body: dict[str, Any]) -> dict[str, Any]:
    """Return `body` beside its digest."""
    return {"sha256": digest(body), "body": body}


def unseal(sealed: dict[str, Any]) -> dict[str, Any]:
    if sealed["sha256"] != digest(sealed["body"]):
        raise ValueError("a JSON item does not match its digest")
    return sealed["body"]


def digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def fingerprint(tree: PyTree) -> list[int]:
    """Return one number of 32 bits a leaf, of all its bits and their places.

    Integer sums do not depend on their order, so the number is the same on every mesh.
    """
    leaves = jax.tree.leaves(tree)
    if any(
        isinstance(x, jax.Array) and x.sharding.memory_kind == HOST for x in leaves
    ):  # one by one through the device
        return [int(BIT_SUMS([on_device(x)])[0]) for x in leaves]
    return [int(x) for x in jax.device_get(BIT_SUMS(leaves))]


def bit_sum(x: Array) -> Array:
    """Return sum_i (2 i + 1) bits(x_i) mod 2^32: odd factors, so that no single change cancels."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}") if x.dtype != bool else x
    bits = bits.astype(jnp.uint32)
    place = jnp.ones(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = int(np.prod(x.shape[axis + 1 :], dtype=np.int64)) * 2 % 2**32
        place += jnp.uint32(stride) * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return (bits * place).sum(dtype=jnp.uint32)


def bit_sums(leaves: list[Array]) -> list[Array]:
    return [bit_sum(x) for x in leaves]


BIT_SUMS = jax.jit(bit_sums)  # one function for the whole process: compiled once a tree
