"""The LSTM as a mixer: a recurrent state that a stream carries from call to call."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from nested_jax.config import ModelConfig
from nested_jax.layers.basic import Layer, constant, fan_in, residual_scale
from nested_jax.layers.call import Call
from nested_jax.ops.linear import linear
from nested_jax.ops.lstm import GATES, lstm_scan
from nested_jax.ops.normalize import state_dtype
from nested_jax.types import Array

FORGET_BIAS = 1.0  # the cell starts by remembering (Jozefowicz et al. 2015)


class LSTMState(NamedTuple):
    h_BF: Array  # float32
    c_BF: Array  # float32


class LSTM(Layer):
    """y_t = h_t W_out with h an LSTM over the tokens of the stream, reset where a document starts.

    The input's part of all gates is one product outside the recurrence; gates and state are
    float32. `model.lstm_hidden` is the width F of the state.
    """

    cfg: ModelConfig

    def setup(self) -> None:
        dim, hidden = self.cfg.dim, self.cfg.lstm_width
        self.input_GDF = self.weight(
            "input", (GATES, dim, hidden), ("gates", "embed", "mlp"), init=fan_in(dim)
        )
        self.recurrent_GFF = self.weight(
            "recurrent", (GATES, hidden, hidden), ("gates", None, "mlp"), init=fan_in(hidden)
        )
        self.bias_GF = self.weight(
            "bias", (GATES, hidden), ("gates", "mlp"), kind="vector", init=_forget_bias
        )
        self.out_FD = self.weight(
            "out",
            (hidden, dim),
            ("mlp", "embed"),
            init=fan_in(hidden, residual_scale(self.cfg.layers)),
        )

    def init_state(self, batch: int, capacity: int) -> LSTMState:
        del capacity
        zeros_BF = jnp.zeros((batch, self.cfg.lstm_width), state_dtype(self.cfg.compute_dtype))
        return LSTMState(zeros_BF, zeros_BF)

    def __call__(self, state: LSTMState, x_BTD: Array, call: Call) -> tuple[LSTMState, Array]:
        wide = state.h_BF.dtype
        w_DG = _side_by_side(self.input_GDF).astype(x_BTD.dtype)
        z_TBG = linear(jnp.swapaxes(x_BTD, 0, 1), w_DG).astype(wide)
        z_TBG = z_TBG + self.bias_GF.reshape(1, 1, -1).astype(wide)
        keep_BT, live_BT = call.position_BT > 0, call.segment_BT > 0
        h_BF, c_BF, y_TBF = lstm_scan(
            _side_by_side(self.recurrent_GFF).astype(wide),
            *state,
            z_TBG,
            keep_BT.T.astype(wide),
            live_BT.T.astype(wide),
        )
        y_BTF = jnp.swapaxes(y_TBF, 0, 1).astype(x_BTD.dtype)
        return LSTMState(h_BF, c_BF), linear(y_BTF, self.out_FD.astype(x_BTD.dtype))


def _side_by_side(w_GDF: Array) -> Array:
    """[4, D, F] as [D, 4 F], so that all gates are one product."""
    gates, dim, hidden = w_GDF.shape
    return jnp.swapaxes(w_GDF, 0, 1).reshape(dim, gates * hidden)


def _forget_bias(key: Array, shape: tuple[int, ...]) -> Array:
    return constant(0.0)(key, shape).at[1].set(FORGET_BIAS)
