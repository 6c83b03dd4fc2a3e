"""What is measured of next-token predictions, in float32 and without ever holding all logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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
    """Return float32 logits [..., S] of h [..., D]: products in h's dtype, sums in float32.

    Those of the gradient too: autodiff alone multiplies by the float32 gradient of the logits, at
    half of the rate and twice the bytes of bfloat16.
    """
    narrow = jnp.finfo(h.dtype).bits < 32
    return (_narrow_logits if narrow else _logits)(h, head_SD.astype(h.dtype))


def _logits(h: Array, head_SD: Array) -> Array:
    return linear(h, head_SD.T, preferred_element_type=state_dtype(h.dtype.name))


_narrow_logits = jax.custom_vjp(_logits)


def _logits_backward(saved: tuple[Array, Array], dlogits: Array) -> tuple[Array, Array]:
    h, head_SD = saved
    d = dlogits.astype(h.dtype)
    d_NS, h_ND = d.reshape(-1, d.shape[-1]), h.reshape(-1, h.shape[-1])
    return linear(d, head_SD), jnp.matmul(d_NS.T, h_ND)


_narrow_logits.defvjp(
    lambda h, head_SD: (_narrow_logits(h, head_SD), (h, head_SD)), _logits_backward
)


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


def _prediction(logits_NS: Array, targets_N: Array) -> Array:
    del targets_N
    return jnp.argmax(logits_NS, axis=-1).astype(jnp.int32)


Measure = Callable[[Array, Array], Array]  # of logits [N, S] and targets [N]
MEASURES: dict[str, Measure] = {
    "loss": _loss,  # cross-entropy of the target in nats
    # By how much the logit of the target exceeds the mean logit. A target that gives the share e of
    # its mass to all symbols alike (label smoothing, Szegedy et al., arXiv 1512.00567, Sec. 7) has
    # the cross-entropy loss + e * margin.
    "margin": _margin,
    "entropy": _entropy,  # of the prediction, in nats
    "prediction": _prediction,  # the most likely symbol, int32
}


def prediction_below(symbols: int) -> str:
    """Return the name of a measure: the most likely of the first `symbols` ids (0: of all).

    A model may have ids that stand for nothing; those are no answer.
    """
    return f"prediction<{symbols}" if symbols else "prediction"


def find_measure(name: str) -> Measure | None:
    """Return one of `MEASURES`, or what `prediction_below` names."""
    kind, _, symbols = name.partition("<")
    if kind == "prediction" and symbols.isdecimal():
        return lambda logits_NS, targets_N: _prediction(logits_NS[:, : int(symbols)], targets_N)
    return MEASURES.get(name)


def measure(
    h_BTD: Array,
    head_SD: Array,
    targets_BT: Array,
    chunk: int,
    names: Sequence[str] = ("loss",),
) -> dict[str, Array]:
    """Return the named `MEASURES` of each token, float32 [B, T]; the logits are made once.

    Args:
      h_BTD: the normalised output of the last block.
      head_SD: the output embedding.
      targets_BT: int32.
      chunk: tokens, of all rows together, whose logits exist at once; 0 is all of them.
    """
    batch, tokens = targets_BT.shape
    size = max(1, chunk // batch) if chunk else tokens

    def values_of(h_BTD: Array, targets_BT: Array) -> dict[str, Array]:
        # One axis of tokens: [B, T, S] logits would be written once more by the reshape.
        logits_NS = logits_of(h_BTD.reshape(-1, h_BTD.shape[-1]), head_SD)
        targets_N = targets_BT.reshape(-1)
        found = {n: find_measure(n) for n in names}
        return {
            n: each(logits_NS, targets_N).reshape(targets_BT.shape)
            for n, each in found.items()
            if each is not None
        }

    if size >= tokens:
        return values_of(h_BTD, targets_BT)
    blocks = -(-tokens // size)

    def split(x: Array) -> Array:
        rest = [(0, 0)] * (x.ndim - 2)
        padded = jnp.pad(x, [(0, 0), (0, blocks * size - tokens), *rest])
        return jnp.moveaxis(padded.reshape(batch, blocks, size, *x.shape[2:]), 1, 0)

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(batch, blocks * size)[:, :tokens]

    # Logits are recomputed in the backward pass; only [B, size, S] of them exist at a time.
    body = jax.checkpoint(lambda xs: values_of(*xs))
    return jax.tree.map(join, jax.lax.map(body, (split(h_BTD), split(targets_BT))))
