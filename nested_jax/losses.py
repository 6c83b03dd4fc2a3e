"""Next-token losses, in float32 and without ever holding all logits at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nested_jax.ops.linear import linear
from nested_jax.ops.normalize import state_dtype
from nested_jax.types import Array


def perplexity(nats_per_token: float) -> float:
    """Return e to the mean loss; that of a model which has diverged is cut at e^700."""
    return math.exp(min(nats_per_token, 700.0))


def bits_per(nats: float, units: int) -> float:
    """Return bits per byte, or per character, of a text that costs `nats` in all."""
    return nats / math.log(2) / units


def logits_of(h: Array, head_SD: Array) -> Array:
    """Return float32 logits [..., S] of h [..., D]: products in h's dtype, sums in float32."""
    precise = state_dtype(h.dtype.name)
    return linear(h, head_SD.astype(h.dtype).T, preferred_element_type=precise)


def _hit(logits_NS: Array, targets_N: Array) -> Array:
    symbols = jax.lax.broadcasted_iota(targets_N.dtype, logits_NS.shape, 1)
    # Select and sum, not a gather: the gradient of a gather is a scatter into all logits.
    return jnp.sum(jnp.where(symbols == targets_N[:, None], logits_NS, 0.0), axis=-1)


def _loss(logits_NS: Array, targets_N: Array) -> Array:
    return jax.nn.logsumexp(logits_NS, axis=-1) - _hit(logits_NS, targets_N)


def _entropy(logits_NS: Array, targets_N: Array) -> Array:
    del targets_N
    log_p_NS = jax.nn.log_softmax(logits_NS, axis=-1)
    return -jnp.sum(jnp.exp(log_p_NS) * log_p_NS, axis=-1)


def _margin(logits_NS: Array, targets_N: Array) -> Array:
    return _hit(logits_NS, targets_N) - jnp.mean(logits_NS, axis=-1)


def token_loss(h_BTD: Array, head_SD: Array, targets_BT: Array, chunk: int) -> Array:
    """Return the cross-entropy of each target in nats, float32 [B, T].

    Args:
      h_BTD: the normalised output of the last block.
      head_SD: the output embedding.
      targets_BT: int32.
      chunk: tokens, of all rows together, whose logits exist at once; 0 is all of them.
    """
    return _by_blocks(_loss, h_BTD, head_SD, targets_BT, chunk)


def token_margin(h_BTD: Array, head_SD: Array, targets_BT: Array, chunk: int) -> Array:
    """Return by how much the logit of each target exceeds the mean logit, float32 [B, T].

    A target that gives the share e of its mass to all symbols alike (label smoothing, Szegedy et
    al., arXiv 1512.00567, Sec. 7) has the cross-entropy `token_loss` + e * `token_margin`.
    Arguments as `token_loss`.
    """
    return _by_blocks(_margin, h_BTD, head_SD, targets_BT, chunk)


def token_entropy(h_BTD: Array, head_SD: Array, chunk: int) -> Array:
    """Return the entropy of each prediction in nats, float32 [B, T]; arguments as `token_loss`."""
    return _by_blocks(_entropy, h_BTD, head_SD, jnp.zeros(h_BTD.shape[:2], jnp.int32), chunk)


def token_prediction(h_BTD: Array, head_SD: Array, chunk: int) -> Array:
    """Return the most likely symbol after each token, int32 [B, T]; arguments as `token_loss`."""

    def best(logits_BTS: Array, _: Array) -> Array:
        return jnp.argmax(logits_BTS, axis=-1).astype(jnp.int32)

    return _by_blocks(best, h_BTD, head_SD, jnp.zeros(h_BTD.shape[:2], jnp.int32), chunk)


def _by_blocks(
    measure: Callable[[Array, Array], Array],
    h_BTD: Array,
    head_SD: Array,
    targets_BT: Array,
    chunk: int,
) -> Array:
    batch, tokens = targets_BT.shape
    size = max(1, chunk // batch) if chunk else tokens

    def values_of(h_BTD: Array, targets_BT: Array) -> Array:
        # One axis of tokens: [B, T, S] logits would be written once more by the reshape.
        logits_NS = logits_of(h_BTD.reshape(-1, h_BTD.shape[-1]), head_SD)
        return measure(logits_NS, targets_BT.reshape(-1)).reshape(targets_BT.shape)

    if size >= tokens:
        return values_of(h_BTD, targets_BT)
    blocks = -(-tokens // size)

    def split(x: Array) -> Array:
        rest = [(0, 0)] * (x.ndim - 2)
        padded = jnp.pad(x, [(0, 0), (0, blocks * size - tokens), *rest])
        return jnp.moveaxis(padded.reshape(batch, blocks, size, *x.shape[2:]), 1, 0)

    # Logits are recomputed in the backward pass; only [B, size, S] of them exist at a time.
    body = jax.checkpoint(lambda xs: values_of(*xs))
    values = jax.lax.map(body, (split(h_BTD), split(targets_BT)))
    return jnp.moveaxis(values, 0, 1).reshape(batch, blocks * size)[:, :tokens]
