"""What is measured of next-token predictions, in float32 and without ever holding all logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from nested_jax.ops.linear import linear
from nested_jax.ops.normalize import state_dtype
from nested_jax.types import Array

TreeT = TypeVar("TreeT")


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
    # Not a gather: its gradient is a scatter into all logits.
    return jnp.sum(logits_NS * _one_hot(logits_NS, targets_N), axis=-1)


def _one_hot(logits_NS: Array, targets_N: Array) -> Array:
    # Not an iota of two axes, nor a choice of 0.0: XLA takes such arrays of all logits out of the
    # loop over blocks, and reads them from memory.
    symbols_S = jnp.arange(logits_NS.shape[-1], dtype=targets_N.dtype)
    return (symbols_S[None, :] == targets_N[:, None]).astype(logits_NS.dtype)


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


# What is kept of a call that is recomputed (`jax.checkpoint_policies`): measures and gradient are
# small beside the logits, and the products with the output embedding are not made again.
MEASURED = "measured"


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
    return _measure(chunk, tuple(names), head_SD, _Text(h_BTD, targets_BT, None))[0]


def measure_and_pull(
    h_BTD: Array,
    head_SD: Array,
    targets_BT: Array,
    weights_BT: Array,
    chunk: int,
    names: Sequence[str] = ("loss",),
) -> tuple[dict[str, Array], Array]:
    """Return the measures of each token, and the gradient of the summed loss with respect to `h`.

    An outer loss differentiates both again. They cost two products with the output embedding and
    five backwards; autodiff of `measure` makes the logits once more for each derivative.

    Args:
      weights_BT: of each token's loss in the sum; the others as in `measure`.
    Returns:
      float32 [B, T] each, and [B, T, D] in the dtype of `h`.
    """
    text = _Text(h_BTD, targets_BT, weights_BT)
    found, pulled = _measure(chunk, tuple(names), head_SD, text)
    assert pulled is not None
    return found, pulled


# --- with derivatives written by hand ---
#
# With p the prediction, y the target (one-hot), w the weight and s the output embedding, the
# gradient of the summed loss is g = w (p - y) s. With the cotangents l of the losses and dg of that
# gradient, and u = s dg, the cotangent of the logits is
#
#     p (l + w (u - <p, u>)) - y l


class _Text(NamedTuple):
    """What predictions are made of and measured against; leaves [N, ...] or [B, T, ...]."""

    h: Array
    targets: Array
    weights: Array | None  # of the losses in the sum whose gradient is asked for; None: none is


Measured = tuple[dict[str, Array], Array | None]  # measures, and the gradient


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _measure(chunk: int, names: tuple[str, ...], head_SD: Array, text: _Text) -> Measured:
    return _forward(chunk, names, head_SD, text)[0]


def _forward(
    chunk: int, names: tuple[str, ...], head_SD: Array, text: _Text
) -> tuple[Measured, tuple[Array, _Text, Array]]:
    """Return the values, and what the backward pass keeps of them."""
    cut = _Blocks.of(text.targets.shape, chunk)

    def block(part: _Text) -> tuple[Measured, Array]:
        # One axis of tokens: [B, T, S] logits would be written once more by the reshape.
        flat = _flat(part)
        logits_NS = logits_of(flat.h, head_SD)
        log_sum_N = jax.nn.logsumexp(logits_NS, axis=-1)
        found, pulled = _values(names, logits_NS, flat.targets), None
        if "loss" in found:
            found["loss"] = log_sum_N - _at(flat.targets, logits_NS)
        if part.weights is not None:
            error_NS = _weighted_error(flat, logits_NS, log_sum_N)
            pulled_ND = linear(error_NS, head_SD.astype(flat.h.dtype))
            pulled = pulled_ND.reshape(part.h.shape)
        to_tokens = partial(jnp.reshape, shape=part.targets.shape)
        found, log_sum = jax.tree.map(to_tokens, (found, log_sum_N))
        return (found, pulled), log_sum

    values, log_sum = checkpoint_name(
        block(text) if cut.parts == 1 else cut.map(block, text), MEASURED
    )
    return values, (head_SD, text, log_sum)


def _weighted_error(flat: _Text, logits_NS: Array, log_sum_N: Array) -> Array:
    """Return w (p - y), in the dtype of `h`."""
    assert flat.weights is not None
    error_NS = jnp.exp(logits_NS - log_sum_N[:, None]) - _one_hot(logits_NS, flat.targets)
    return (flat.weights.astype(error_NS.dtype)[:, None] * error_NS).astype(flat.h.dtype)


def _backward(
    chunk: int,
    names: tuple[str, ...],
    saved: tuple[Array, _Text, Array],
    cotangents: Measured,
) -> tuple[Array, _Text]:
    del names
    head_SD, text, log_sum = saved
    cut = _Blocks.of(text.targets.shape, chunk)
    dfound = {n: x for n, x in cotangents[0].items() if jnp.issubdtype(x.dtype, jnp.floating)}

    @jax.checkpoint  # of the second derivative of `measure`
    def block(dhead_SD: Array, part: _Part) -> tuple[Array, tuple[Array, Array | None]]:
        flat, log_sum_N, dfound_N, dpulled_ND = _flat(part)
        narrow, head = flat.h.dtype, head_SD.astype(flat.h.dtype)
        logits_NS = logits_of(flat.h, head_SD)
        y_NS = _one_hot(logits_NS, flat.targets)
        p_NS = jnp.exp(logits_NS - log_sum_N[:, None])
        dloss_N1 = dfound_N.pop("loss", jnp.zeros_like(log_sum_N))[:, None]
        share_NS, added_SD, dweights = dloss_N1, jnp.zeros((), narrow), None
        if dpulled_ND is not None:
            assert flat.weights is not None
            u_NS = linear(dpulled_ND, head.T).astype(logits_NS.dtype)
            mean_u_N1 = jnp.sum(p_NS * u_NS, axis=-1, keepdims=True)
            weight_N1 = flat.weights.astype(logits_NS.dtype)[:, None]
            share_NS = dloss_N1 + weight_N1 * (u_NS - mean_u_N1)
            error_NS = _weighted_error(flat, logits_NS, log_sum_N)
            added_SD = jnp.matmul(error_NS.T, dpulled_ND)
            dweights_N = (mean_u_N1[:, 0] - _at(flat.targets, u_NS)).astype(flat.weights.dtype)
            dweights = dweights_N.reshape(part.text.targets.shape)
        dlogits_NS = p_NS * share_NS - dloss_N1 * y_NS
        if dfound_N:
            _, back = jax.vjp(lambda x: _values(tuple(dfound_N), x, flat.targets), logits_NS)
            dlogits_NS = dlogits_NS + back(dfound_N)[0]
        d_NS = dlogits_NS.astype(narrow)
        added_SD = jnp.matmul(d_NS.T, flat.h) + added_SD
        dh = linear(d_NS, head).reshape(part.text.h.shape)
        return dhead_SD + added_SD.astype(dhead_SD.dtype), (dh, dweights)

    whole, none = _Part(text, log_sum, dfound, cotangents[1]), jnp.zeros_like(head_SD)
    if text.weights is None:
        whole = whole._replace(dpulled=None)
    if cut.parts == 1:
        dhead_SD, (dh, dweights) = block(none, whole)
    else:
        dhead_SD, parts = jax.lax.scan(block, none, jax.tree.map(cut.split, whole))
        dh, dweights = jax.tree.map(cut.join, parts)
    no_targets: Any = np.zeros(text.targets.shape, jax.dtypes.float0)
    return dhead_SD, _Text(dh, no_targets, dweights)


class _Part(NamedTuple):
    """What the backward pass reads of a block of tokens."""

    text: _Text
    log_sum: Array
    dfound: dict[str, Array]
    dpulled: Array | None


_measure.defvjp(_forward, _backward)


def _values(names: Sequence[str], logits_NS: Array, targets_N: Array) -> dict[str, Array]:
    found = {n: find_measure(n) for n in names}
    return {n: each(logits_NS, targets_N) for n, each in found.items() if each is not None}


def _at(targets_N: Array, x_NS: Array) -> Array:
    return jnp.take_along_axis(x_NS, targets_N[:, None], axis=-1, mode="clip")[:, 0]


def _flat(tree: TreeT) -> TreeT:
    """[B, T, ...] -> [N, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


class _Blocks(NamedTuple):
    """How [B, T, ...] is cut along the tokens: the logits of one part exist at a time."""

    batch: int
    tokens: int
    size: int
    parts: int

    @classmethod
    def of(cls, shape: tuple[int, ...], chunk: int) -> _Blocks:
        batch, tokens = shape
        size = min(max(1, chunk // batch), tokens) if chunk else tokens
        return cls(batch, tokens, size, -(-tokens // size))

    def split(self, x: Array) -> Array:
        """[B, T, ...] -> [N, B, size, ...]; the last part is filled with zeros."""
        rest = [(0, 0)] * (x.ndim - 2)
        padded = jnp.pad(x, [(0, 0), (0, self.parts * self.size - self.tokens), *rest])
        return jnp.moveaxis(padded.reshape(self.batch, self.parts, self.size, *x.shape[2:]), 1, 0)

    def join(self, x: Array) -> Array:
        """[N, B, size, ...] -> [B, T, ...]."""
        joined = jnp.moveaxis(x, 0, 1).reshape(self.batch, -1, *x.shape[3:])
        return joined[:, : self.tokens]

    def map(self, function: Callable[[TreeT], Any], tree: TreeT) -> Any:
        """Apply a function to one part after the other."""
        found = jax.lax.map(function, jax.tree.map(self.split, tree))
        return jax.tree.map(self.join, found)
