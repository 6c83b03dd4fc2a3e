"""Next-token losses, in float32 and without ever holding all logits at once."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nested_jax.ops.normalize import state_dtype
from nested_jax.types import Array


def logits_of(h_BTD: Array, head_SD: Array) -> Array:
    """Return float32 logits [B, T, S]: products in the dtype of `h`, sums in float32."""
    return jnp.einsum(
        "btd,sd->bts",
        h_BTD,
        head_SD.astype(h_BTD.dtype),
        preferred_element_type=state_dtype(h_BTD.dtype.name),
    )


def _loss(logits_BTS: Array, targets_BT: Array) -> Array:
    symbols = jax.lax.broadcasted_iota(targets_BT.dtype, logits_BTS.shape, 2)
    # Select and sum, not a gather: the gradient of a gather is a scatter into all logits.
    hit_BTS = jnp.where(symbols == targets_BT[..., None], logits_BTS, 0.0)
    return jax.nn.logsumexp(logits_BTS, axis=-1) - jnp.sum(hit_BTS, axis=-1)


def _entropy(logits_BTS: Array, targets_BT: Array) -> Array:
    del targets_BT
    log_p_BTS = jax.nn.log_softmax(logits_BTS, axis=-1)
    return -jnp.sum(jnp.exp(log_p_BTS) * log_p_BTS, axis=-1)


def token_loss(h_BTD: Array, head_SD: Array, targets_BT: Array, chunk: int) -> Array:
    """Return the cross-entropy of each target in nats, float32 [B, T].

    Args:
      h_BTD: the normalised output of the last block.
      head_SD: the output embedding.
      targets_BT: int32.
      chunk: tokens, of all rows together, whose logits exist at once; 0 is all of them.
    """
    return _by_blocks(_loss, h_BTD, head_SD, targets_BT, chunk)


def token_entropy(h_BTD: Array, head_SD: Array, chunk: int) -> Array:
    """Return the entropy of each prediction in nats, float32 [B, T]; arguments as `token_loss`."""
    return _by_blocks(_entropy, h_BTD, head_SD, jnp.zeros(h_BTD.shape[:2], jnp.int32), chunk)


def _by_blocks(
    measure: Callable[[Array, Array], Array],
    h_BTD: Array,
    head_SD: Array,
    targets_BT: Array,
    chunk: int,
) -> Array:
    batch, tokens = targets_BT.shape
    size = max(1, chunk // batch) if chunk else tokens
    if size >= tokens:
        return measure(logits_of(h_BTD, head_SD), targets_BT)
    blocks = -(-tokens // size)

    def split(x: Array) -> Array:
        rest = [(0, 0)] * (x.ndim - 2)
        padded = jnp.pad(x, [(0, 0), (0, blocks * size - tokens), *rest])
        return jnp.moveaxis(padded.reshape(batch, blocks, size, *x.shape[2:]), 1, 0)

    # Logits are recomputed in the backward pass; only [B, size, S] of them exist at a time.
    body = jax.checkpoint(lambda xs: measure(logits_of(xs[0], head_SD), xs[1]))
    values = jax.lax.map(body, (split(h_BTD), split(targets_BT)))
    return jnp.moveaxis(values, 0, 1).reshape(batch, blocks * size)[:, :tokens]
