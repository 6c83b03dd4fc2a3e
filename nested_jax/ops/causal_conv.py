"""A causal depthwise convolution over a stream of documents, cut into calls anywhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nested_jax.ops.normalize import widen
from nested_jax.types import Array


def causal_conv(
    kernel: Array, tail: Array, x: Array, position_BT: Array, lengths_B: Array | None = None
) -> tuple[Array, Array]:
    """Return the next tail and y_t = sum_j kernel_j x_{t-j}, the taps of the token's own document.

    Sums in float32 (float64 for float64) and returns the dtype of `x`.

    Args:
      kernel: [W, ...], `kernel[j]` weighs the token j steps back.
      tail: [B, W - 1, ...], the last inputs of the calls before; 0 where the document has none.
      x: [B, T, ...].
      position_BT: int32, tokens of the document before each token: a tap that would reach further
        back is left out, so that no document reads another.
      lengths_B: int32, tokens of each row that exist; None is all T.
    """
    reach, tokens = kernel.shape[0] - 1, x.shape[1]
    joined = jnp.concatenate([tail, x], axis=1)

    def tap(lag: int) -> Array:
        earlier = jax.lax.slice_in_dim(joined, reach - lag, reach - lag + tokens, axis=1)
        own_BT = position_BT >= lag
        own = own_BT.reshape(own_BT.shape + (1,) * (x.ndim - 2))
        wide = widen(earlier)
        return jnp.where(own, wide * kernel[lag].astype(wide.dtype)[None, None], 0.0)

    y = sum((tap(lag) for lag in range(1, reach + 1)), tap(0))
    return _next_tail(joined, reach, position_BT, lengths_B), y.astype(x.dtype)


def _next_tail(joined: Array, reach: int, position_BT: Array, lengths_B: Array | None) -> Array:
    """The last `reach` inputs of every row, without those of earlier documents."""
    batch, tokens = position_BT.shape
    count_B = jnp.full((batch,), tokens, jnp.int32) if lengths_B is None else lengths_B
    if lengths_B is None:
        tail = joined[:, joined.shape[1] - reach :]
        last_B = position_BT[:, -1]
    else:
        cut = jax.vmap(lambda row, i: jax.lax.dynamic_slice_in_dim(row, i, reach))
        tail = cut(joined, count_B)
        last_B = jnp.take_along_axis(position_BT, jnp.maximum(count_B - 1, 0)[:, None], axis=1)[
            :, 0
        ]
    age = jnp.arange(reach - 1, -1, -1, dtype=jnp.int32)
    # A row without a token keeps its tail: its positions say nothing about the tokens before.
    own = (age[None, :] <= last_B[:, None]) | (count_B == 0)[:, None]
    return jnp.where(own.reshape(own.shape + (1,) * (tail.ndim - 2)), tail, jnp.zeros_like(tail))
