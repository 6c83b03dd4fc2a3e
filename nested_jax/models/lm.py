"""The language model: embedding, a stack of equal blocks, head, and the state of its sequences.

The last `cms.fast_layers` blocks are the *suffix*: their CMS carries fast weights, and the teach
loop reads them chunk by chunk. All blocks below are the *prefix*, which runs over all tokens of a
call at once. So does the *entry*, the mixer of the first taught block: no fast weight lies before
it (models/stacks.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from nested_jax.config import ModelConfig
from nested_jax.layers.attention import choose_attention
from nested_jax.layers.basic import (
    Declared,
    is_declared,
    layer_norm,
    matrix_init,
    normal,
    param_info,
    rms_norm,
    unbox,
)
from nested_jax.layers.call import Call
from nested_jax.losses import logits_of
from nested_jax.models.blocks import Block
from nested_jax.models.decoder import declare_decoder, decode_last
from nested_jax.models.stacks import block_of, layers_second, run_prefix, run_suffix, same_bits
from nested_jax.models.state import OpenChunk, State, StreamPosition
from nested_jax.models.stream import empty_context, make_call, started
from nested_jax.ops.chunking import RowOptions, Rows, per_row, where_rows
from nested_jax.ops.fast_weights import init_level, into_loop
from nested_jax.sharding import constrain
from nested_jax.types import Array, PyTree

HEAD_STD = 0.5  # of a logit at initialisation: the first loss is ln(S) + HEAD_STD² / 2


@dataclass(frozen=True)
class LanguageModel:
    """A nested-learning language model. Hashable; everything that changes is an argument.

    Public methods: `init`, `init_state`, `apply`, `param_info`. The rest are the parts from which
    `nested_jax.teach` builds the inner loop.
    """

    cfg: ModelConfig

    # --- parameters ---

    def init(self, key: Array) -> PyTree:
        """Return the float32 parameters, a nested dict; blocks are stacked on a leading axis L."""
        return unbox(self._declare(key))

    def param_info(self) -> PyTree:
        """Return the tree of ParamInfo: shape, logical axes, kind and level of every parameter."""
        return param_info(jax.eval_shape(self._declare, jax.random.key(0)))

    def _declare(self, key: Array) -> PyTree:
        cfg = self.cfg
        keys = jax.random.split(key, 4)
        start = normal(HEAD_STD / math.sqrt(cfg.dim))
        if cfg.kind.gpt2:
            start = matrix_init(cfg, cfg.dim)

        def table(key: Array, kind: str, axis: str = "vocab", rows: int = cfg.vocab_size) -> Any:
            return Declared(start(key, (rows, cfg.dim)), (axis, "embed"), kind)

        params: dict[str, Any] = {
            "embed": table(keys[0], "embed"),
            "norm": Declared(jnp.ones((cfg.dim,), jnp.float32), (None,), "vector"),
        }
        if cfg.kind.gpt2:
            where = jax.random.fold_in(key, 2)
            params["positions"] = table(where, "embed", "length", cfg.max_len)
            zeros_D = jnp.zeros((cfg.dim,), jnp.float32)
            params["norm_bias"] = Declared(zeros_D, (None,), "vector")
        if not cfg.tie_embeddings:
            params["head"] = table(keys[1], "head")
        if cfg.cms.surprise:
            params["surprise"] = {
                f"level_{i}": Declared(
                    jnp.zeros((cfg.dim, cfg.dim), jnp.float32), ("embed", None), "head", level=i + 1
                )
                for i in range(len(cfg.cms.periods))
            }
        if cfg.answers == "last":
            params["decoder"] = declare_decoder(jax.random.fold_in(key, 1), cfg.dim)
        for name, fast, layers, stack_key in (
            ("prefix", False, cfg.layers - cfg.fast_layers, keys[2]),
            ("suffix", True, cfg.fast_layers, keys[3]),
        ):
            if layers:
                params[name] = self._declare_stack(stack_key, layers, fast)
        return params

    def _declare_stack(self, key: Array, layers: int, fast: bool) -> PyTree:
        block = Block(self.cfg, fast)

        def declare(key: Array) -> PyTree:
            return block.init(key, method="declare")["params"]

        stacked = jax.vmap(declare)(jax.random.split(key, layers))
        return jax.tree.map(lambda d: d.add_axis(0, LAYERS), stacked, is_leaf=is_declared)

    # --- state ---

    def init_state(self, params: PyTree, batch_size: int, capacity: int | None = None) -> State:
        """Return the state of `batch_size` sequences that have read nothing.

        Args:
          params: of this model.
          batch_size: sequences.
          capacity: tokens that full attention has to hold; None takes ``max_len``. Attention in a
            window, and every memory, is of constant size and ignores it.
        Raises:
          ValueError: a batch size or capacity below 1.
        """
        capacity = self.cfg.max_len if capacity is None else capacity
        for name, value in (("batch_size", batch_size), ("capacity", capacity)):
            if value < 1:
                raise ValueError(f"{name}={value!r}: wants 1 or more")
        context = empty_context(self.cfg, batch_size, capacity)
        prefix, suffix = (
            self._init_mixers(params, name, batch_size, capacity) for name in ("prefix", "suffix")
        )
        if not self.cfg.fast_layers:
            return State(prefix, (), StreamPosition(context, ()), (), ())
        entry = jax.tree.map(lambda x: x[:, :1], suffix)
        later = jax.tree.map(lambda x: x[:, 1:], suffix) if self.cfg.fast_layers > 1 else ()
        now = StreamPosition(context, later)
        deltas = self._over_layers(params, "suffix", "init_deltas", batch_size)
        fast = tuple(
            init_level(self.cfg.cms, i, layers_second(delta), batch_size)
            for i, delta in enumerate(deltas)
        )
        return State(prefix, entry, now, fast, self._open_chunk(now, batch_size))

    def _init_mixers(self, params: PyTree, name: str, batch: int, capacity: int) -> PyTree:
        if name not in params:
            return ()
        return layers_second(self._over_layers(params, name, "init_state", batch, capacity))

    def _open_chunk(self, boundary: StreamPosition, batch: int) -> OpenChunk:
        # No teach chunk is longer than the fastest period, so the buffer fits every teach config.
        size = self.cfg.cms.periods[0]
        return OpenChunk(
            boundary=boundary,
            x_BCD=jnp.zeros((batch, size, self.cfg.dim), jnp.dtype(self.cfg.compute_dtype)),
            targets_BC=jnp.zeros((batch, size), jnp.int32),
            weights_BC=jnp.zeros((batch, size), jnp.float32),
            start_B=jnp.zeros((batch,), jnp.bool_),
            count_B=jnp.zeros((batch,), jnp.int32),
        )

    def _over_layers(self, params: PyTree, name: str, method: str, *args: int) -> PyTree:
        """Call a method of the block with the parameters of every layer; results stacked on L."""
        block = self.block(name)
        call = lambda p: block.apply({"params": p}, *args, method=method)  # noqa: E731
        return jax.vmap(call)(params[name])

    def block(self, name: str) -> Block:
        return block_of(self.cfg, name)

    def rates(self, params: PyTree) -> tuple[PyTree, ...]:
        """Return the inner rate of every fast matrix, leaves [L], a tree for each CMS level."""
        return self._over_layers(params, "suffix", "rates")

    def change(self, params: PyTree, state: State) -> tuple[Array, ...]:
        """Return |delta| / |slow weights|, float32 [B, L], for each CMS level."""
        block, deltas = self.block("suffix"), self.deltas(state)

        def one(p: PyTree, deltas: PyTree) -> Any:
            return block.apply({"params": p}, deltas, method="change")

        return jax.vmap(one, in_axes=(0, 1), out_axes=1)(params["suffix"], deltas)

    # --- reading ---

    def embed(self, params: PyTree, tokens_BT: Array) -> Array:
        """Look tokens up, scaled so that the residual stream starts with entries of order 1.

        GPT-2 does not scale them. Its positions are added where a call begins, in run_prefix.
        """
        # Rows are gathered over fsdp, as a product would: the lookup then moves tokens only.
        table = constrain(
            params["embed"].astype(jnp.dtype(self.cfg.compute_dtype)), ("vocab", None)
        )
        x_BTD = table[tokens_BT]
        if not self.cfg.kind.gpt2:
            x_BTD = x_BTD * jnp.asarray(math.sqrt(self.cfg.dim), table.dtype)
        return constrain(x_BTD, ("batch", None, None))

    def final_norm(self, params: PyTree, x_BTD: Array) -> Array:
        if self.cfg.kind.gpt2:
            return layer_norm(x_BTD, params["norm"], params["norm_bias"], self.cfg.norm_eps)
        return rms_norm(x_BTD, params["norm"], self.cfg.norm_eps)

    def head(self, params: PyTree) -> Array:
        """Return the output embedding, [S, D]."""
        return params["embed" if self.cfg.tie_embeddings else "head"]

    def read(
        self,
        params: PyTree,
        state: State,
        inputs: Array,
        **options: Unpack[RowOptions],
    ) -> tuple[State, Array]:
        """Return the next state and the normalised output of the last block, [B, T, D].

        With ``model.answers="last"`` it is the decoder's, and the tokens are a whole row. Arguments
        as `apply`.
        """
        x_BTD = self.inputs(params, inputs)
        state, h_BTD, _ = self.read_rows(params, state, x_BTD, Rows.of(x_BTD, **options))
        return state, h_BTD

    def read_rows(
        self, params: PyTree, state: State, x_BTD: Array, rows: Rows
    ) -> tuple[State, Array, Array | tuple[()]]:
        """Return what `read` does of embeddings, and what the CMS of each block of the prefix read.

        The latter, [L, B, T, D], is for models with surprise objectives; without them it is ().
        """
        call = make_call(self.cfg, state.now.context, rows)
        collect = bool(self.cfg.cms.surprise)
        state, prefix = run_prefix(self.cfg, params, state, x_BTD, call, collect=collect)
        x_BTD = prefix.x_BTD
        # Deltas of zeros are the slow model: its bits, whatever has been read before.
        deltas = None if rows.start == "fresh" else self.deltas(state)
        read = partial(run_suffix, self.cfg, params, state.now, x_BTD, call)
        if deltas is None:
            now, out = read(None)
        else:
            deltas = tuple(into_loop(delta) for delta in deltas)
            written = jnp.any(jnp.stack([jnp.any(x != 0) for x in jax.tree.leaves(deltas)]))
            now, out = jax.lax.cond(
                written, lambda: read(deltas), lambda: same_bits(read(None), read(deltas))
            )
        h_BTD = out.x_BTD
        if rows.starts_BT is not None and deltas is not None:
            # A document that starts reads with the slow weights. It sees no token before it, so the
            # slow model's outputs from there on are those of a run of its own.
            slow, slow_out = run_suffix(self.cfg, params, state.now, x_BTD, call, None)
            after_BT = started(call)
            h_BTD = jnp.where(after_BT[..., None], slow_out.x_BTD, h_BTD)
            now = where_rows(after_BT[:, -1], slow, now)
            state = _forget(state, after_BT[:, -1])
        if isinstance(state.open, OpenChunk):
            boundary = where_rows(state.open.count_B == 0, now, state.open.boundary)
            state = state._replace(open=state.open._replace(boundary=boundary))
        state = state._replace(now=now)
        if self.cfg.answers == "last":
            h_BTD = decode_last(params["decoder"], h_BTD, self.cfg.norm_eps)
        h_BTD = self.nan_where_cache_overflows(self.final_norm(params, h_BTD), call)
        return state, h_BTD, prefix.cms_in_LBTD

    def inputs(self, params: PyTree, inputs: Array) -> Array:
        """Return embeddings of tokens; embeddings pass as they are, in the compute dtype."""
        self._check_inputs(inputs)
        if inputs.ndim == 3:
            return inputs.astype(jnp.dtype(self.cfg.compute_dtype))
        return self.embed(params, inputs)

    def _check_inputs(self, inputs: Array) -> None:
        if inputs.ndim == 3:
            if inputs.shape[-1] != self.cfg.dim:
                raise ValueError(f"embeddings: width {inputs.shape[-1]}, wants dim={self.cfg.dim}")
        elif inputs.ndim != 2 or not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise ValueError(
                f"tokens: got {inputs.dtype}{list(inputs.shape)}, wants integers [B, T], "
                "or embeddings [B, T, D]"
            )
        if self.cfg.kind.gpt2 and inputs.shape[1] > self.cfg.max_len:
            raise ValueError(
                f"tokens: {inputs.shape[1]} per sequence, but there are positions for "
                f"model.max_len={self.cfg.max_len}"
            )

    def deltas(self, state: State) -> tuple[PyTree, ...] | None:
        return tuple(level.delta for level in state.fast) if state.fast else None

    def nan_where_cache_overflows(self, x_BT: Array, call: Call) -> Array:
        """Make rows NaN that full attention, or learned positions, have no room for.

        Sizes are checked before a run; this catches, under jit, what could not be checked.
        """
        if not uses_slots(self.cfg) or not jnp.issubdtype(x_BT.dtype, jnp.inexact):
            return x_BT
        over_B = call.slots_B + call.rows.count_B > call.slot_segment_BU.shape[1]
        if self.cfg.kind.gpt2:
            place_BT = call.rows.mask(call.position_BT)
            over_B = over_B | jnp.any(place_BT >= self.cfg.max_len, axis=1)
        return jnp.where(per_row(over_B, x_BT), jnp.asarray(jnp.nan, x_BT.dtype), x_BT)

    def apply(
        self,
        params: PyTree,
        state: State,
        tokens_BT: Array,
        **options: Unpack[RowOptions],
    ) -> tuple[State, Array]:
        """Read tokens; return the next state and float32 logits [B, T, S].

        The memories of the sequence are written as they go; the fast weights of the CMS levels are
        read only (`nested_jax.teach` writes them). Splitting a sequence anywhere and carrying the
        state gives the same logits and state.

        Args:
          params: from `init`.
          state: from `init_state`, or from a call before.
          tokens_BT: int32 tokens, or embeddings [B, T, D].
          options: by keyword. ``starts_BT``, bool: tokens that begin a document; their sequence's
            state is reset before them. They lie on the boundaries of the model's chunks, as the
            data pipeline aligns them. ``lengths_B``, int32: how many tokens of each row exist; the
            others change no state. ``start``: "any", or a promise that saves work: "aligned", every
            chunk grid of the state is at a boundary, or "fresh", the state has read nothing.
        Raises:
          ValueError: tokens, lengths or starts of a wrong type or shape, an unknown start, a state
            of another model or batch size, more tokens than full attention can hold.
        """
        self.check(state, tokens_BT)
        state, h_BTD = self.read(params, state, tokens_BT, **options)
        return state, logits_of(h_BTD, self.head(params))

    def check(self, state: State, tokens_BT: Array) -> None:
        """Raise unless the state is of this model and of the batch size of the tokens.

        A state that is only read needs no open chunk, and may then be without fast weights too.
        """
        self._check_inputs(tokens_BT)
        batch = tokens_BT.shape[0]
        capacity = state.now.context.slot_segment_BU.shape[1]
        want = _abstract_state(self, batch, max(capacity, 1))
        if not state.open:
            want = want._replace(open=(), fast=want.fast if state.fast else ())
        got_leaves = jax.tree_util.tree_leaves_with_path(state)
        want_leaves = jax.tree_util.tree_leaves_with_path(want)
        same: bool = jax.tree.structure(state) == jax.tree.structure(want)  # type: ignore[operator]
        if not same:
            raise ValueError(
                f"state: is of another model; it has {len(got_leaves)} arrays, "
                f"{self.cfg.block} with {self.cfg.layers} layers wants {len(want_leaves)}"
            )
        for (path, got), (_, wanted) in zip(got_leaves, want_leaves, strict=True):
            if got.shape != wanted.shape:
                raise ValueError(
                    f"state{jax.tree_util.keystr(path)}: shape {got.shape}, "
                    f"wants {wanted.shape} for this model and {batch} sequences of tokens"
                )
        if uses_slots(self.cfg) and tokens_BT.shape[1] > capacity:
            raise ValueError(
                f"tokens: {tokens_BT.shape[1]} per sequence, but full attention holds {capacity}; "
                "raise model.max_len, or give init_state a larger capacity"
            )


LAYERS = {"partition_name": "layers"}


def uses_slots(cfg: ModelConfig) -> bool:
    """Full attention, whose cache grows with the text and therefore has an end."""
    return cfg.attends and not cfg.window


@lru_cache(maxsize=64)
def _abstract_state(model: LanguageModel, batch: int, capacity: int) -> State:
    params = jax.eval_shape(model.init, jax.random.key(0))
    return jax.eval_shape(lambda p: model.init_state(p, batch, capacity), params)


def _forget(state: State, rows_B: Array) -> State:
    """Clear the fast weights and the open chunk of the rows."""
    old = (state.fast, state.open)
    fast, open_chunk = where_rows(rows_B, jax.tree.map(jnp.zeros_like, old), old)
    return state._replace(fast=fast, open=open_chunk)


def build_model(cfg: ModelConfig, device: jax.Device | None = None) -> LanguageModel:
    """Return the model of a configuration; nothing is allocated before `init`.

    Args:
      cfg: the model; what it leaves to choose (``attention="auto"``) is chosen here.
      device: one of those that it is to run on, None takes the first of this process.
    """
    kernel: Any = choose_attention(cfg, jax.devices()[0] if device is None else device)
    return LanguageModel(replace(cfg, attention=kernel))
