"""Which axes of a parameter are the matrix that Muon and its kin work on, and which are a batch.

Layers apply a weight as ``x @ W``: the input axes come first. `matrix_dims` reads the logical axes:

1. "layers", "levels" and "gates" are batch axes: one matrix for each of their indices.
2. Of two axes left, the first is the input and the second the output:
   ("layers", "embed", "mlp") is a batch of [embed, mlp].
3. Of more than two left, "embed" (the residual stream) is one side and must be the first or the
   last of them; the others together are the other side: ("embed", "heads", "head_width") is
   [embed, heads * head_width] and ("heads", "head_width", "embed") is [heads * head_width, embed].
4. Three left, one an axis of heads and none "embed", is one matrix a head (block diagonal).

Everything else is a `ValueError`: a weight is never orthogonalised along guessed axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nested_jax.types import Array, ParamInfo, PyTree

BATCH_AXES = ("layers", "levels", "gates")
HEAD_AXES = ("heads", "kv_heads")


@dataclass(frozen=True)
class MatrixDims:
    """The axes of one parameter, each in exactly one of three roles. A leaf in a pytree."""

    batch: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        return self.batch + self.inputs + self.outputs

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return (inputs, outputs) of each matrix of a parameter of this shape."""
        rows = math.prod(shape[axis] for axis in self.inputs)
        return rows, math.prod(shape[axis] for axis in self.outputs)


def matrix_dims(info: ParamInfo) -> MatrixDims:
    """Return the dimension numbers of a `matrix` by the rule of this module.

    Raises:
      ValueError: axes that the rule does not resolve.
    """
    batch = [i for i, axis in enumerate(info.axes) if axis in BATCH_AXES]
    left = [i for i in range(len(info.axes)) if i not in batch]
    head_axes = [i for i in left if info.axes[i] in HEAD_AXES]
    embed = [i for i in left if info.axes[i] == "embed"]
    if len(left) == 3 and not embed:
        batch += head_axes
        left = [i for i in left if i not in head_axes]
    if len(left) == 2 or (len(left) > 2 and embed == left[:1]):
        inputs, outputs = left[:1], left[1:]
    elif len(left) > 2 and embed == left[-1:]:
        inputs, outputs = left[:-1], left[-1:]
    else:
        raise ValueError(
            f"axes={info.axes!r} of a matrix {info.shape}: wants two axes beside "
            f"{', '.join(BATCH_AXES)}, or 'embed' once, as the first or last of more"
        )
    return MatrixDims(tuple(batch), tuple(inputs), tuple(outputs))


def last_two(ndim: int) -> MatrixDims:
    """Return the dimension numbers of a plain [..., inputs, outputs] array."""
    if ndim < 2:
        raise ValueError(f"{ndim=}: a matrix wants 2 axes or more")
    return MatrixDims(tuple(range(ndim - 2)), (ndim - 2,), (ndim - 1,))


def tree_dims(info: PyTree) -> PyTree:
    """Return a tree with `MatrixDims` for every leaf of kind "matrix" and None for the others.

    Raises:
      ValueError: a matrix that the rule does not resolve, naming the parameter.
    """

    def one(path: Any, leaf: ParamInfo) -> MatrixDims | None:
        if leaf.kind != "matrix":
            return None
        try:
            return matrix_dims(leaf)
        except ValueError as error:
            raise ValueError(f"parameter {jax.tree_util.keystr(path)}: {error}") from error

    return jax.tree_util.tree_map_with_path(one, info)


def to_matrices(x: Array, dims: MatrixDims) -> Array:
    """Return `x` as [batch axes..., inputs, outputs]."""
    batch = tuple(x.shape[axis] for axis in dims.batch)
    return x.transpose(dims.order).reshape(*batch, *dims.matrix_shape(x.shape))


def from_matrices(x: Array, dims: MatrixDims, shape: tuple[int, ...]) -> Array:
    """Undo `to_matrices`; `shape` is the parameter's."""
    order = dims.order
    back = tuple(order.index(axis) for axis in range(len(shape)))
    return x.reshape([shape[axis] for axis in order]).transpose(back)


def map_matrices(
    fn: Callable[..., Array], dims: PyTree | None, tree: PyTree, *rest: PyTree
) -> PyTree:
    """Apply `fn` to the matrices [..., inputs, outputs] of every leaf, in float32.

    Args:
      fn: from float32 matrices of one leaf of each tree to matrices of the same shape.
      dims: tree of `MatrixDims`, which may hold more leaves than `tree` where `optax.masked` cut
        some out of it; None takes the last two axes of every leaf.
      rest: trees of the structure of `tree`.
    """
    if dims is None:
        dims = jax.tree.map(lambda x: last_two(x.ndim), tree)

    def one(d: MatrixDims | None, x: Any, *others: Any) -> Any:
        if isinstance(x, optax.MaskedNode):
            return x
        if d is None:
            raise ValueError(f"dims=None for a leaf of shape {x.shape}: wants MatrixDims")
        leaves = [to_matrices(leaf.astype(jnp.float32), d) for leaf in (x, *others)]
        return from_matrices(fn(*leaves), d, x.shape)

    return jax.tree.map(one, dims, tree, *rest, is_leaf=lambda d: d is None)


def frobenius(x: Array) -> Array:
    """Return the norm of each matrix of [..., inputs, outputs] as [..., 1, 1]."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True))


def unit_frobenius(x: Array, eps: float = 1e-20) -> Array:
    """Return each matrix of [..., inputs, outputs] divided by its norm; zero stays zero."""
    return x / jnp.maximum(frobenius(x), eps)


def project(key: Array, x: Array) -> Array:
    """Return key key^T x for [..., n, m] matrices, through the smaller of the two products."""
    if key.shape[-2] < key.shape[-1]:
        return (key @ key.mT) @ x
    return key @ (key.mT @ x)
