"""Run the stacks of a model over the tokens of a call: what no fast weight reaches, and the rest.

The prefix and the entry run over all tokens of a call at once; the suffix, from the CMS of the
first taught block on, runs over those of a teach chunk, or over all where nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from nested_jax.config import ModelConfig
from nested_jax.layers.call import Call
from nested_jax.layers.cms import no_recall
from nested_jax.models.blocks import Block, BlockOutput
from nested_jax.models.state import State, StreamPosition
from nested_jax.models.stream import advance
from nested_jax.sharding import constrain
from nested_jax.types import Array, PyTree


def _products(primitive: Any, *args: Any, **params: Any) -> Any:
    """Keep products with parameters, and what cuDNN's attention returns."""
    if primitive.name.startswith("dot_product_attention_fwd"):
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params)


REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "dots": _products,
    "full": jax.checkpoint_policies.nothing_saveable,
    "nested": jax.checkpoint_policies.nothing_saveable,
}


class StackOutput(NamedTuple):
    states: PyTree  # mixer states, leaves [B, L, ...]
    x_BTD: Array
    recall_B: Array
    cms_in_LBTD: Array | tuple[()]  # inputs of the CMS chains, when they were asked for


def block_of(cfg: ModelConfig, name: str) -> Block:
    """Return the block of a stack, "prefix" or "suffix"."""
    return Block(cfg, fast=name == "suffix")


def run_stack(
    block: Block,
    stack: PyTree,
    states: PyTree,
    x_BTD: Array,
    call: Call,
    deltas: tuple[PyTree, ...] | None = None,
    taps_LBTD: Array | None = None,
    *,
    collect: bool = False,
) -> StackOutput:
    """Run a stack of blocks over the tokens of a call; one scan over the layers.

    Args:
      block: of the stack.
      stack: parameters of the blocks, leaves [L, ...].
      states: mixer states, leaves [B, L, ...].
      deltas: fast weights of every CMS level, leaves [L, B, ...]; None runs the slow model.
      taps_LBTD: added to the output of every block; its gradient is the teach signal of a
      block.
      collect: also return the inputs of the CMS chains.
    """

    def body(x_BTD: Array, layer: Any) -> tuple[Array, Any]:
        p, state, delta, tap_BTD = layer
        out = cast(BlockOutput, block.apply({"params": p}, state, x_BTD, call, delta))
        x_BTD = constrain(out.x_BTD, ("batch", None, None))
        if tap_BTD is not None:
            x_BTD = x_BTD + tap_BTD
        return x_BTD, (out.state, out.recall_B, out.cms_in_BTD if collect else ())

    xs = (stack, layers_first(states), deltas, taps_LBTD)
    x_BTD, (states, recall_LB, cms_in) = jax.lax.scan(_remat(block.cfg, body), x_BTD, xs)
    return StackOutput(layers_second(states), x_BTD, jnp.sum(recall_LB, axis=0), cms_in)


def run_prefix(
    cfg: ModelConfig,
    params: PyTree,
    state: State,
    x_BTD: Array,
    call: Call,
    *,
    collect: bool = False,
) -> tuple[State, StackOutput]:
    """Run all that no fast weight reaches: learned positions, the prefix, the entry after it.

    Returns the state with `prefix` and `entry` after the tokens, and in `x_BTD` what the first
    taught CMS reads, or the output of the last block where none is taught.
    """
    x_BTD = add_positions(params, x_BTD, call)
    out = StackOutput((), x_BTD, no_recall(x_BTD), ())
    if "prefix" in params:
        block = block_of(cfg, "prefix")
        out = run_stack(block, params["prefix"], state.prefix, x_BTD, call, collect=collect)
        state = state._replace(prefix=out.states)
    if "suffix" in params:
        first, x_BTD = _layer(params["suffix"], 0), out.x_BTD
        if "prefix" not in params:
            # Fused with the embedding, the block would round otherwise than inside a scan.
            x_BTD = jax.lax.optimization_barrier(x_BTD)
        entry, x_BTD = _run_entry(cfg, first, state.entry, x_BTD, call)
        state, out = state._replace(entry=entry), out._replace(x_BTD=x_BTD)
    return state, out


def add_positions(params: PyTree, x_BTD: Array, call: Call) -> Array:
    """Add the learned vector of each token's place in its document, where the model has them."""
    if "positions" not in params:
        return x_BTD
    table_UD = constrain(params["positions"].astype(x_BTD.dtype), ("length", None))
    # A place after the last takes the last one; `LanguageModel` makes its row NaN.
    place_BT = jnp.minimum(call.position_BT, table_UD.shape[0] - 1)
    return x_BTD + table_UD[place_BT]


def _run_entry(
    cfg: ModelConfig, params: PyTree, entry: PyTree, x_BTD: Array, call: Call
) -> tuple[PyTree, Array]:
    """Run the mixer of the first taught block."""
    block = block_of(cfg, "suffix")

    def mix(params: PyTree, state: PyTree, x_BTD: Array) -> Any:
        return block.apply({"params": params}, state, x_BTD, call, method="mix")

    state, x_BTD = _remat(cfg, mix)(params, jax.tree.map(lambda x: x[:, 0], entry), x_BTD)
    return jax.tree.map(lambda x: x[:, None], state), constrain(x_BTD, ("batch", None, None))


def _remat(cfg: ModelConfig, function: Callable[..., Any]) -> Callable[..., Any]:
    """Recompute in the backward pass what `model.remat` does not keep."""
    policy = REMAT[cfg.remat]
    if policy is None:
        return function
    return jax.checkpoint(function, policy=policy, prevent_cse=False)


def run_suffix(
    cfg: ModelConfig,
    params: PyTree,
    at: StreamPosition,
    x_BTD: Array,
    call: Call,
    deltas: tuple[tuple[PyTree, ...], ...] | None,
    taps_LBTD: Array | None = None,
    *,
    collect: bool = False,
) -> tuple[StreamPosition, StackOutput]:
    """Run all that fast weights reach: the first taught CMS, then whole blocks.

    Arguments as `run_stack`, but the deltas of a level are in pieces of layers, see
    ops/fast_weights.py; `x_BTD` comes from the entry. Without fast layers it passes as it is.
    """
    context = advance(cfg, at.context, call)
    if "suffix" not in params:
        return StreamPosition(context, ()), StackOutput((), x_BTD, no_recall(x_BTD), ())
    pieces = [None] if deltas is None else list(zip(*deltas, strict=True))  # of all levels
    out = _first_cms(cfg, params, x_BTD, pieces[0], taps_LBTD, collect=collect)
    if cfg.fast_layers == 1:
        return StreamPosition(context, ()), out
    outputs, start = [out], 1
    for piece in pieces[1:] or [None]:
        end = cfg.fast_layers if piece is None else start + jax.tree.leaves(piece)[0].shape[0]
        out = run_stack(
            block_of(cfg, "suffix"),
            _layers(params["suffix"], start, end),
            jax.tree.map(lambda x: x[:, start - 1 : end - 1], at.suffix),  # noqa: B023
            out.x_BTD,
            call,
            piece,
            None if taps_LBTD is None else taps_LBTD[start:end],
            collect=collect,
        )
        outputs.append(out)
        start = end
    states = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *(o.states for o in outputs[1:]))
    cms_in = jax.tree.map(lambda *x: jnp.concatenate(x), *(o.cms_in_LBTD for o in outputs))
    recall_B = sum((o.recall_B for o in outputs[1:]), outputs[0].recall_B)
    return StreamPosition(context, states), StackOutput(states, out.x_BTD, recall_B, cms_in)


def _first_cms(
    cfg: ModelConfig,
    params: PyTree,
    x_BTD: Array,
    deltas: tuple[PyTree, ...] | None,
    taps_LBTD: Array | None,
    *,
    collect: bool,
) -> StackOutput:
    """Run the CMS of the first taught block; it has no mixer state of its own."""
    block = block_of(cfg, "suffix")

    def read(params: PyTree, x_BTD: Array, deltas: PyTree) -> Any:
        return block.apply({"params": params}, x_BTD, deltas, method="read_cms")

    own = None if deltas is None else _layer(deltas, 0)
    y_BTD, recall_B = _remat(cfg, read)(_layer(params["suffix"], 0), x_BTD, own)
    y_BTD = constrain(y_BTD, ("batch", None, None))
    if taps_LBTD is not None:
        y_BTD = y_BTD + taps_LBTD[0]
    return StackOutput((), y_BTD, recall_B, x_BTD[None] if collect else ())


def _layer(stack: PyTree, index: int) -> PyTree:
    """Return the parameters of one block of a stack."""
    return jax.tree.map(lambda p: p[index], stack)


def _layers(stack: PyTree, start: int, end: int) -> PyTree:
    return jax.tree.map(lambda p: p[start:end], stack)


def layers_first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tree)


def layers_second(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), tree)


def same_bits(value: PyTree, derivatives: PyTree) -> PyTree:
    """Return `value` with the derivatives of another way to compute the same."""

    def one(x: Array, y: Array) -> Array:
        exact = not jnp.issubdtype(x.dtype, jnp.inexact)
        return x if exact else jax.lax.stop_gradient(x) + (y - jax.lax.stop_gradient(y))

    return jax.tree.map(one, value, derivatives)
