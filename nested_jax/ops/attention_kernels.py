"""Three kernels of softmax attention: written out, in blocks of keys, and fused.

All have the arguments of `softmax_attention`, which is the definition of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.ops.normalize import state_dtype
from nested_jax.types import Array, PyTree

Kernel = Callable[..., Array]  # (q, k, v, mask, scale, prefix) -> [B, T, H, V]
KEY_BLOCK = 1024  # keys whose scores `blockwise_attention` holds at once


class Prefix(NamedTuple):
    """Keys and values that every token sees before all others: persistent tokens.

    They have no position, so queries meet them before rotary.
    """

    q_BTHK: Array
    k_PGK: Array
    v_PGV: Array


def softmax_attention(
    q_BTHK: Array,
    k_BUGK: Array,
    v_BUGV: Array,
    mask_BTU: Array,
    scale: float,
    prefix: Prefix | None = None,
) -> Array:
    """softmax(scale · q kᵀ) v where the mask is true; H = G · R (GQA).

    The tokens of `prefix` are seen by every query beside those of the mask. Products in the
    caller's dtype, sums and softmax in float32 (float64 for float64). Written out because
    `jax.nn.dot_product_attention` takes a float64 softmax in float32. Heads stand before tokens in
    every product, and the sum is divided by at the end, [T, V] numbers per head instead of [T, U].
    """
    batch, tokens, heads, _ = q_BTHK.shape
    groups, precise = k_BUGK.shape[2], state_dtype(q_BTHK.dtype.name)
    per_group = (batch, groups, heads // groups, tokens)
    k_BGUK, v_BGUV = k_BUGK.swapaxes(1, 2), v_BUGV.swapaxes(1, 2)
    score_BGNU = jnp.einsum(
        "bgnk,bguk->bgnu", _rows(q_BTHK, groups), k_BGUK, preferred_element_type=precise
    )
    score_BGRTU = scale * score_BGNU.reshape(*per_group, -1)
    score_BGRTU = jnp.where(mask_BTU[:, None, None], score_BGRTU, jnp.finfo(precise).min)
    top_BGRT = jnp.max(score_BGRTU, axis=-1)
    if prefix is not None:
        score_BGNP = jnp.einsum(
            "bgnk,pgk->bgnp",
            _rows(prefix.q_BTHK, groups),
            prefix.k_PGK,
            preferred_element_type=precise,
        )
        score_BGRTP = scale * score_BGNP.reshape(*per_group, -1)
        top_BGRT = jnp.maximum(top_BGRT, jnp.max(score_BGRTP, axis=-1))
    top_BGRT = jax.lax.stop_gradient(top_BGRT)  # it cancels

    def weigh(score_BGRTU: Array, values: str, v: Array) -> tuple[Array, Array]:
        p_BGRTU = jnp.exp(score_BGRTU - top_BGRT[..., None])
        p_BGNU = p_BGRTU.reshape(batch, groups, -1, p_BGRTU.shape[-1]).astype(v.dtype)
        y_BGNV = jnp.einsum(f"bgnu,{values}->bgnv", p_BGNU, v, preferred_element_type=precise)
        return y_BGNV, jnp.sum(p_BGRTU, axis=-1)

    y_BGNV, total_BGRT = weigh(score_BGRTU, "bguv", v_BGUV)
    if prefix is not None:
        more_BGNV, more_BGRT = weigh(score_BGRTP, "ugv", prefix.v_PGV)
        y_BGNV, total_BGRT = y_BGNV + more_BGNV, total_BGRT + more_BGRT
    y_BGRTV = y_BGNV.reshape(*per_group, -1) / total_BGRT[..., None]
    y_BTHV = jnp.moveaxis(y_BGRTV, 3, 1).reshape(batch, tokens, heads, -1)
    return y_BTHV.astype(v_BUGV.dtype)


def _rows(q_BTHK: Array, groups: int) -> Array:
    """[B, T, H, K] -> [B, G, R·T, K]: the rows of all R query heads of every key head."""
    batch, tokens, heads, width = q_BTHK.shape
    q_BTGRK = q_BTHK.reshape(batch, tokens, groups, heads // groups, width)
    return jnp.moveaxis(q_BTGRK, 1, 3).reshape(batch, groups, -1, width)


def blockwise_attention(
    q_BTHK: Array,
    k_BUGK: Array,
    v_BUGV: Array,
    mask_BTU: Array,
    scale: float,
    prefix: Prefix | None = None,
) -> Array:
    """The same, holding the scores of `KEY_BLOCK` keys at a time: FlashAttention's recurrences.

    Source: Dao 2023 (arXiv 2307.08691). No derivative of first or second order holds [T, U] numbers
    per head: the gradient is written by hand, as a scan whose steps are recomputed.
    """
    batch, tokens, heads, _ = q_BTHK.shape
    groups = k_BUGK.shape[2]
    y_BGMV, total_BGM = _blocks(_rows(q_BTHK, groups), k_BUGK, v_BUGV, mask_BTU, scale)
    if prefix is not None:
        q_BGMK, precise = _rows(prefix.q_BTHK, groups), y_BGMV.dtype
        product = partial(jnp.einsum, preferred_element_type=precise)
        score_BGMP = scale * product("bgmk,pgk->bgmp", q_BGMK, prefix.k_PGK)
        first_BGM = jax.nn.logsumexp(score_BGMP, axis=-1)
        p_BGMP = jnp.exp(score_BGMP - first_BGM[..., None]).astype(prefix.v_PGV.dtype)
        first_BGMV = product("bgmp,pgv->bgmv", p_BGMP, prefix.v_PGV)
        share_BGM = jax.nn.sigmoid(total_BGM - first_BGM)[..., None]  # of the other keys
        y_BGMV = share_BGM * y_BGMV + (1.0 - share_BGM) * first_BGMV
    y_BTGRV = jnp.moveaxis(y_BGMV.reshape(batch, groups, -1, tokens, y_BGMV.shape[-1]), 3, 1)
    return y_BTGRV.reshape(batch, tokens, heads, -1).astype(v_BUGV.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blocks(
    q_BGMK: Array, k_BUGK: Array, v_BUGV: Array, mask_BTU: Array, scale: float
) -> tuple[Array, Array]:
    """Return the outputs of the M = R·T rows of queries, and the log of their sums of weights."""

    def add(
        carry: tuple[Array, Array, Array], block: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array, Array], None]:
        top_BGM, sum_BGM, y_BGMV = carry
        k_BUGK, v_BUGV, mask_BTU = block
        score_BGMU = _scores(q_BGMK, k_BUGK, mask_BTU, scale)
        next_BGM = jnp.maximum(top_BGM, jnp.max(score_BGMU, axis=-1))
        p_BGMU, keep_BGM = jnp.exp(score_BGMU - next_BGM[..., None]), jnp.exp(top_BGM - next_BGM)
        more_BGMV = jnp.einsum(
            "bgmu,bugv->bgmv", p_BGMU.astype(v_BUGV.dtype), v_BUGV, preferred_element_type=precise
        )
        sum_BGM = keep_BGM * sum_BGM + jnp.sum(p_BGMU, axis=-1)
        return (next_BGM, sum_BGM, keep_BGM[..., None] * y_BGMV + more_BGMV), None

    precise = state_dtype(q_BGMK.dtype.name)
    zero_BGM = jnp.zeros(q_BGMK.shape[:3], precise)
    y_BGMV = jnp.zeros((*zero_BGM.shape, v_BUGV.shape[-1]), precise)
    start = (zero_BGM + jnp.finfo(precise).min, zero_BGM, y_BGMV)
    blocks = _key_blocks(k_BUGK, 1), _key_blocks(v_BUGV, 1), _key_blocks(mask_BTU, 2)
    (top_BGM, sum_BGM, y_BGMV), _ = jax.lax.scan(add, start, blocks)
    return y_BGMV / sum_BGM[..., None], top_BGM + jnp.log(sum_BGM)


def _scores(q_BGMK: Array, k_BUGK: Array, mask_BTU: Array, scale: float) -> Array:
    batch, groups, rows, _ = q_BGMK.shape
    precise, tokens = state_dtype(q_BGMK.dtype.name), mask_BTU.shape[1]
    score_BGMU = scale * jnp.einsum(
        "bgmk,bugk->bgmu", q_BGMK, k_BUGK, preferred_element_type=precise
    )
    mask_BGMU = jnp.broadcast_to(
        mask_BTU[:, None, None], (batch, groups, rows // tokens, *mask_BTU.shape[1:])
    ).reshape(score_BGMU.shape)
    return jnp.where(mask_BGMU, score_BGMU, jnp.finfo(precise).min)


def _blocks_forward(
    q_BGMK: Array, k_BUGK: Array, v_BUGV: Array, mask_BTU: Array, scale: float
) -> PyTree:
    out = _blocks(q_BGMK, k_BUGK, v_BUGV, mask_BTU, scale)
    return out, _kept((q_BGMK, k_BUGK, v_BUGV, mask_BTU, out))


def _blocks_backward(scale: float, saved: PyTree, cotangents: tuple[Array, Array]) -> PyTree:
    q_BGMK, k_BUGK, v_BUGV, mask_BTU, (y_BGMV, total_BGM) = _taken(saved)
    dy_BGMV, dtotal_BGM = cotangents
    precise, dtype = dy_BGMV.dtype, q_BGMK.dtype
    product = partial(jnp.einsum, preferred_element_type=precise)
    inner_BGM = jnp.sum(dy_BGMV * y_BGMV, axis=-1) - dtotal_BGM  # of a row of p and its gradient
    dout_BGMV = dy_BGMV.astype(dtype)

    @partial(jax.checkpoint, prevent_cse=False)
    def add(dq_BGMK: Array, block: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        k_BUGK, v_BUGV, mask_BTU = block
        score_BGMU = _scores(q_BGMK, k_BUGK, mask_BTU, scale)
        p_BGMU = jnp.exp(score_BGMU - total_BGM[..., None])
        dp_BGMU = product("bgmv,bugv->bgmu", dout_BGMV, v_BUGV)
        ds_BGMU = (scale * p_BGMU * (dp_BGMU - inner_BGM[..., None])).astype(dtype)
        dk_BUGK = product("bgmu,bgmk->bugk", ds_BGMU, q_BGMK).astype(dtype)
        dv_BUGV = product("bgmu,bgmv->bugv", p_BGMU.astype(dtype), dout_BGMV).astype(dtype)
        return dq_BGMK + product("bgmu,bugk->bgmk", ds_BGMU, k_BUGK), (dk_BUGK, dv_BUGV)

    blocks = _key_blocks(k_BUGK, 1), _key_blocks(v_BUGV, 1), _key_blocks(mask_BTU, 2)
    dq_BGMK, (dk, dv) = jax.lax.scan(add, jnp.zeros(q_BGMK.shape, precise), blocks)
    dk_BUGK, dv_BUGV = (
        jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, : k_BUGK.shape[1]]
        for x in (dk, dv)
    )
    return dq_BGMK.astype(dtype), dk_BUGK, dv_BUGV, None


_blocks.defvjp(_blocks_forward, _blocks_backward)


def _key_blocks(x: Array, axis: int) -> Array:
    """Cut the axis of keys into blocks of equal size, stacked in front; zeros at the end."""
    count = -(-x.shape[axis] // KEY_BLOCK)
    size = -(-x.shape[axis] // count)
    pad = [(0, count * size - n if i == axis else 0) for i, n in enumerate(x.shape)]
    cut = jnp.pad(x, pad).reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(cut, axis, 0)


def fused_attention(
    q_BTHK: Array,
    k_BUGK: Array,
    v_BUGV: Array,
    mask_BTU: Array,
    scale: float,
    prefix: Prefix | None = None,
) -> Array:
    """The same by cuDNN's flash kernel: NVIDIA GPU, bfloat16 or float16, differentiable once."""
    assert prefix is None, "the configuration refuses persistent tokens with cudnn"
    tokens = q_BTHK.shape[1]
    q, k, v = (_even(x, 1) for x in (q_BTHK, k_BUGK, v_BUGV))  # the kernel wants even lengths
    mask = _even(_even(mask_BTU, 1), 2)[:, None]
    with jax.numpy_dtype_promotion("standard"):  # the library mixes bfloat16 with its float32
        y_BTHV = jax.nn.dot_product_attention(
            q, k, v, mask=mask, scale=scale, implementation="cudnn"
        )
    return y_BTHV[:, :tokens]


def _even(x: Array, axis: int) -> Array:
    """Append zeros where the axis has an odd length."""
    return jnp.pad(x, [(0, x.shape[axis] % 2 if i == axis else 0) for i in range(x.ndim)])


def twice(once: Kernel, plain: Kernel) -> Kernel:
    """Make a kernel that has one derivative have two, without a prefix.

    The value and the gradients are those of `once`. The derivatives of these gradients are those of
    the gradients of `plain`, which computes the same.
    """

    def gradients_of(kernel: Kernel, scale: float, args: PyTree, dy_BTHV: Array) -> PyTree:
        q_BTHK, k_BUGK, v_BUGV, mask_BTU = args
        value = lambda q, k, v: kernel(q, k, v, mask_BTU, scale)  # noqa: E731
        return jax.vjp(value, q_BTHK, k_BUGK, v_BUGV)[1](dy_BTHV)

    @partial(jax.custom_vjp, nondiff_argnums=(4,))
    def attend(q: Array, k: Array, v: Array, mask: Array, scale: float) -> Array:
        return once(q, k, v, mask, scale)

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def gradients(scale: float, args: PyTree, dy_BTHV: Array) -> PyTree:
        return gradients_of(once, scale, args, dy_BTHV)

    def second(scale: float, saved: PyTree, tangents: PyTree) -> PyTree:
        (q, k, v, mask), dy_BTHV = _taken(saved)

        def first(q: Array, k: Array, v: Array, dy: Array) -> PyTree:
            return gradients_of(plain, scale, (q, k, v, mask), dy)

        *of_args, of_dy = jax.vjp(first, q, k, v, dy_BTHV)[1](tangents)
        return (*of_args, None), of_dy

    attend.defvjp(
        lambda q, k, v, mask, scale: (attend(q, k, v, mask, scale), _kept((q, k, v, mask))),
        lambda scale, saved, dy: (*gradients(scale, _taken(saved), dy), None),
    )
    gradients.defvjp(
        lambda scale, args, dy: (gradients(scale, args, dy), _kept((args, dy))),
        second,
    )

    def kernel(
        q: Array, k: Array, v: Array, mask: Array, scale: float, prefix: Prefix | None = None
    ) -> Array:
        assert prefix is None
        return attend(q, k, v, mask, scale)

    return kernel


def _kept(arrays: PyTree) -> PyTree:
    """Return what a rule keeps for its backward pass, each with a new axis.

    So none of it is an argument itself. jax 0.10 looks those up among the arguments, and finds the
    wrong ones in a function that has constants and is differentiated inside of a loop.
    """
    return jax.tree.map(lambda x: x[None], arrays)


def _taken(kept: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], kept)


KERNELS: dict[str, Kernel] = {
    "xla": softmax_attention,
    "blockwise": blockwise_attention,
    "cudnn": fused_attention,
}
TWICE = KERNELS | {"cudnn": twice(fused_attention, blockwise_attention)}
