"""What the scorer needs of a model: states of rows, and steps that read, score and decode.

`Reader` is the seam: a checkpoint is a `ModelReader`; tests put hand-made models in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nested_jax.config import MeshConfig, TeachConfig
from nested_jax.losses import logits_of, prediction_below
from nested_jax.models.decode import Sampling, sample
from nested_jax.models.lm import LanguageModel, uses_slots
from nested_jax.models.memories import begin
from nested_jax.models.state import State
from nested_jax.sharding import batch_sharding, make_mesh, param_shardings, to_host
from nested_jax.teach import teach
from nested_jax.types import Array, PyTree

READ = TeachConfig(mode="off")


@dataclass(frozen=True)
class Draw:
    """How decoded tokens are drawn: greedily, or token i of a stream with key ``first + i``."""

    how: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))
    seed: int = 0
    first: int = 0


class Span(NamedTuple):
    """Tokens to read, the one after each, and how many of each row count."""

    tokens_BT: Array
    targets_BT: Array
    lengths_B: Array


class Reader(Protocol):
    """A language model over rows of tokens. States are opaque; tokens and lengths are int32."""

    limit: int | None  # tokens that one row can hold; None has no end
    row_multiple: int  # batches have a multiple of so many rows

    def fresh(self, rows: int, capacity: int) -> Any:
        """Return the state of rows that have read nothing and will read `capacity` tokens.

        Nothing will be written into it.
        """

    def take(self, state: Any, rows: np.ndarray) -> Any:
        """Return the state whose row i is row ``rows[i]`` of `state`."""

    def read(self, state: Any, tokens_BT: np.ndarray, lengths_B: np.ndarray) -> Any:
        """Return the state after the first `lengths_B` tokens of each row."""

    def score(
        self, state: Any, tokens_BT: np.ndarray, targets_BT: np.ndarray, lengths_B: np.ndarray
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        """Read; return also nats [B, T] of each target, and whether it is the likeliest token."""

    def score_last(
        self, state: Any, tokens_BT: np.ndarray, targets_BT: np.ndarray, lengths_B: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return nats and likeliest as `score`, where nothing is read after these tokens."""

    def decode(
        self, state: Any, last_B: np.ndarray, count: int, draw: Draw
    ) -> tuple[Any, np.ndarray]:
        """Write `count` tokens after `last_B`, which is read first; int32 [B, count]."""


class ModelReader:
    """A `Reader` of a model of ours, on any mesh. Steps are compiled once for each shape.

    Args:
      symbols: ids from this one on stand for nothing: they are never written and never the
        likeliest (0: all ids stand for something).
      never: control tokens that are never written.
      memory: of one row, that every row begins with (models/memories.py); None is fresh.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: PyTree,
        mesh: Mesh | None = None,
        symbols: int = 0,
        never: tuple[int, ...] = (),
        memory: State | None = None,
    ) -> None:
        self.model, self.symbols, self.never, self.memory = model, symbols, never, memory
        self.mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
        self.limit = model.cfg.max_len if uses_slots(model.cfg) else None
        self.row_multiple = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        self.params = jax.device_put(params, param_shardings(self.mesh, model.param_info()))
        self.rows = batch_sharding(self.mesh)
        self._fresh = jax.jit(
            partial(read_only, model), static_argnums=(2, 3), out_shardings=self.rows
        )
        self._writable = jax.jit(
            partial(writable, model), static_argnums=(2, 3), out_shardings=self.rows
        )
        self._take = jax.jit(_take, out_shardings=self.rows)
        self._read = jax.jit(partial(read_tokens, model))
        self._score = jax.jit(partial(score_tokens, model, symbols))
        self._score_last = jax.jit(partial(score_last_tokens, model, symbols))
        self._decode = jax.jit(partial(decode_tokens, model), static_argnums=(4, 5))

    def put(self, *arrays: np.ndarray) -> tuple[Array, ...]:
        """Place arrays whose first axis is the rows."""
        return tuple(jax.device_put(x, self.rows) for x in arrays)

    def fresh(self, rows: int, capacity: int) -> Any:
        with jax.set_mesh(self.mesh):
            return self._fresh(self.params, self.memory, rows, self.slots(capacity))

    def writable(self, rows: int, capacity: int) -> Any:
        """Return a fresh state whose CMS levels can be written, as `nested_jax.teach` wants it."""
        with jax.set_mesh(self.mesh):
            return self._writable(self.params, self.memory, rows, self.slots(capacity))

    def slots(self, capacity: int) -> int:
        """Only full attention has a cache that grows; for all others one shape serves them all."""
        return capacity if self.limit is not None else 1

    def take(self, state: Any, rows: np.ndarray) -> Any:
        with jax.set_mesh(self.mesh):
            return self._take(state, np.asarray(rows, np.int32))

    def run(self, step: Callable[..., Any], state: Any, *placed: Any) -> Any:
        """Return what a compiled step makes of a state and arrays that `put` has placed."""
        with jax.set_mesh(self.mesh):
            return step(self.params, state, *placed)

    def read(self, state: Any, tokens_BT: np.ndarray, lengths_B: np.ndarray) -> Any:
        return self.run(self._read, state, *self.put(tokens_BT, lengths_B))

    def score(
        self, state: Any, tokens_BT: np.ndarray, targets_BT: np.ndarray, lengths_B: np.ndarray
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        span = Span(*self.put(tokens_BT, targets_BT, lengths_B))
        state, *found = self.run(self._score, state, span)
        nats_BT, likeliest_BT = to_host(found)
        return state, nats_BT, likeliest_BT

    def score_last(
        self, state: Any, tokens_BT: np.ndarray, targets_BT: np.ndarray, lengths_B: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        span = Span(*self.put(tokens_BT, targets_BT, lengths_B))
        found = self.run(self._score_last, state, span)
        nats_BT, likeliest_BT = to_host(found)
        return nats_BT, likeliest_BT

    def decode(
        self, state: Any, last_B: np.ndarray, count: int, draw: Draw
    ) -> tuple[Any, np.ndarray]:
        with jax.set_mesh(self.mesh):
            key = np.asarray(jax.random.key_data(jax.random.key(draw.seed)))
            (last,) = self.put(last_B)
            draws = key, np.int32(draw.first)  # numpy: an array of one process serves no other
            how = replace(draw.how, symbols=self.symbols, never=self.never)
            state, tokens_BT = self._decode(self.params, state, last, draws, count, how)
            return state, to_host(tokens_BT)


# --- the compiled steps ---------------------------------------------------------------------------


def _take(state: PyTree, rows: Array) -> PyTree:
    return jax.tree.map(lambda x: x[rows], state)


def writable(
    model: LanguageModel, params: PyTree, memory: State | None, rows: int, capacity: int
) -> State:
    """Return a state that has read nothing, with the memory."""
    fresh = model.init_state(params, rows, capacity)
    return fresh if memory is None else begin(model, fresh, memory)


def read_only(
    model: LanguageModel, params: PyTree, memory: State | None, rows: int, capacity: int
) -> State:
    """Return such a state that is not written; without a memory it needs no fast weights.

    The slow model reads it then: the same function, without a copy of them for each row.
    """
    state = writable(model, params, memory, rows, capacity)._replace(open=())
    return state._replace(fast=()) if memory is None else state


def read_tokens(
    model: LanguageModel, params: PyTree, state: PyTree, tokens_BT: Array, lengths_B: Array
) -> PyTree:
    return model.read(params, state, tokens_BT, lengths_B=lengths_B)[0]


def score_tokens(
    model: LanguageModel, symbols: int, params: PyTree, state: PyTree, span: Span
) -> tuple[PyTree, Array, Array]:
    """Read tokens with the fast weights as they are; return nats and likeliest, [B, T].

    A target is the likeliest where no other of the first `symbols` ids (0: of all) is likelier.
    """
    prediction = prediction_below(symbols)
    state, taught = teach(
        model,
        params,
        state,
        span.tokens_BT,
        span.targets_BT,
        READ,
        measures=("loss", prediction),
        lengths_B=span.lengths_B,
    )
    return state, taught.loss_BT, taught.measures[prediction] == span.targets_BT


def score_last_tokens(
    model: LanguageModel, symbols: int, params: PyTree, state: PyTree, span: Span
) -> tuple[Array, Array]:
    """`score_tokens` without the next state, whose caches need not be made."""
    return score_tokens(model, symbols, params, state, span)[1:]


def decode_tokens(
    model: LanguageModel,
    params: PyTree,
    state: PyTree,
    last_B: Array,
    draws: tuple[Array, Array],
    count: int,
    how: Sampling,
) -> tuple[PyTree, Array]:
    """Read `last_B`, draw a token, read it, and so on; token i is drawn with key ``first + i``."""
    key, first = jax.random.wrap_key_data(draws[0]), draws[1]

    def step(carry: tuple[PyTree, Array], i: Array) -> tuple[tuple[PyTree, Array], Array]:
        state, last_B = carry
        state, h_BTD = model.read(params, state, last_B[:, None])
        logits_BS = logits_of(h_BTD, model.head(params))[:, -1]
        token_B = sample(logits_BS, jax.random.fold_in(key, first + i), how)
        return (state, token_B), token_B

    numbers = jnp.arange(count, dtype=jnp.int32)
    (state, _), tokens_TB = jax.lax.scan(step, (state, last_B), numbers)
    return state, tokens_TB.T
