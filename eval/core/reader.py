"""What the scorer needs of a model: states of rows, and steps that read, score and decode.

`Reader` is the seam: a checkpoint is a `ModelReader`; tests put hand-made models in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nested_jax.config import MeshConfig
from nested_jax.losses import logits_of
from nested_jax.models.decode import Sampling, sample
from nested_jax.models.lm import LanguageModel, uses_slots
from nested_jax.models.state import State
from nested_jax.sharding import batch_sharding, make_mesh, param_shardings
from nested_jax.types import Array, PyTree


@dataclass(frozen=True)
class Draw:
    """How decoded tokens are drawn: greedily, or token i of a stream with key ``first + i``."""

    how: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))
    seed: int = 0
    first: int = 0


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
        """Return the state behind the first `lengths_B` tokens of each row."""

    def score(
        self, state: Any, tokens_BT: np.ndarray, targets_BT: np.ndarray, lengths_B: np.ndarray
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        """Read; return also nats [B, T] of each target, and whether it is the likeliest token."""

    def score_last(
        self, state: Any, tokens_BT: np.ndarray, targets_BT: np.ndarray, lengths_B: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return nats and likeliest as `score`, where nothing is read behind these tokens."""

    def decode(
        self, state: Any, last_B: np.ndarray, count: int, draw: Draw
    ) -> tuple[Any, np.ndarray]:
        """Write `count` tokens behind `last_B`, which is read first; int32 [B, count]."""


class ModelReader:
    """A `Reader` of a model of ours, on any mesh. Steps are compiled once for each shape."""

    def __init__(self, model: LanguageModel, params: PyTree, mesh: Mesh | None = None) -> None:
        self.model = model
        self.mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
        self.limit = model.cfg.max_len if uses_slots(model.cfg) else None
        self.row_multiple = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        self.params = jax.device_put(params, param_shardings(self.mesh, model.param_info()))
        self.rows = batch_sharding(self.mesh)
        self._fresh = jax.jit(
            partial(read_only, model), static_argnums=(1, 2), out_shardings=self.rows
        )
        self._writable = jax.jit(model.init_state, static_argnums=(1, 2), out_shardings=self.rows)
        self._take = jax.jit(_take, out_shardings=self.rows)
        self._read = jax.jit(partial(read_tokens, model))
        self._score = jax.jit(partial(score_tokens, model))
        self._score_last = jax.jit(partial(score_last_tokens, model))
        self._decode = jax.jit(partial(decode_tokens, model), static_argnums=(4, 5))

    def put(self, *arrays: np.ndarray) -> tuple[Array, ...]:
        """Place arrays whose first axis is the rows."""
        return tuple(jax.device_put(x, self.rows) for x in arrays)

    def fresh(self, rows: int, capacity: int) -> Any:
        with jax.set_mesh(self.mesh):
            return self._fresh(self.params, rows, self.slots(capacity))

    def writable(self, rows: int, capacity: int) -> Any:
        """Return a fresh state whose CMS levels can be written, as `nested_jax.teach` wants it."""
        with jax.set_mesh(self.mesh):
            return self._writable(self.params, rows, self.slots(capacity))

    def slots(self, capacity: int) -> int:
        """Only full attention has a cache that grows; for all others one shape serves them all."""
        return capacity if self.limit is not None else 1

    def take(self, state: Any, rows: np.ndarray) -> Any:
        with jax.set_mesh(self.mesh):
            return self._take(state, jnp.asarray(rows, jnp.int32))

    def run(self, step: Callable[..., Any], state: Any, *arrays: np.ndarray) -> Any:
        """Return what a compiled step makes of a state, and arrays whose first axis is the rows."""
        with jax.set_mesh(self.mesh):
            return step(self.params, state, *self.put(*arrays))

    def read(self, state: Any, tokens_BT: np.ndarray, lengths_B: np.ndarray) -> Any:
        return self.run(self._read, state, tokens_BT, lengths_B)

    def score(
        self, state: Any, tokens_BT: np.ndarray, targets_BT: np.ndarray, lengths_B: np.ndarray
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        state, *found = self.run(self._score, state, tokens_BT, targets_BT, lengths_B)
        nats_BT, likeliest_BT = map(np.asarray, found)
        return state, nats_BT, likeliest_BT

    def score_last(
        self, state: Any, tokens_BT: np.ndarray, targets_BT: np.ndarray, lengths_B: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        found = self.run(self._score_last, state, tokens_BT, targets_BT, lengths_B)
        nats_BT, likeliest_BT = map(np.asarray, found)
        return nats_BT, likeliest_BT

    def decode(
        self, state: Any, last_B: np.ndarray, count: int, draw: Draw
    ) -> tuple[Any, np.ndarray]:
        with jax.set_mesh(self.mesh):
            key = jax.random.key(draw.seed)
            (last,) = self.put(last_B)
            first = jnp.int32(draw.first)
            state, tokens_BT = self._decode(self.params, state, last, (key, first), count, draw.how)
            return state, np.asarray(tokens_BT)


# --- the compiled steps ---------------------------------------------------------------------------


def _take(state: PyTree, rows: Array) -> PyTree:
    return jax.tree.map(lambda x: x[rows], state)


def read_only(model: LanguageModel, params: PyTree, rows: int, capacity: int) -> State:
    """Return a fresh state without fast weights.

    The slow model reads it: the same function, without a copy of the fast weights for each row.
    """
    return model.init_state(params, rows, capacity)._replace(fast=(), open=())


def read_tokens(
    model: LanguageModel, params: PyTree, state: PyTree, tokens_BT: Array, lengths_B: Array
) -> PyTree:
    return model.read(params, state, tokens_BT, lengths_B=lengths_B)[0]


def score_tokens(
    model: LanguageModel,
    params: PyTree,
    state: PyTree,
    tokens_BT: Array,
    targets_BT: Array,
    lengths_B: Array,
) -> tuple[PyTree, Array, Array]:
    """Read tokens with the fast weights as they are; return nats and likeliest, [B, T]."""
    state, h_BTD = model.read(params, state, tokens_BT, lengths_B=lengths_B)
    return state, *token_scores(h_BTD, model.head(params), targets_BT, model.cfg.loss_chunk)


def score_last_tokens(
    model: LanguageModel,
    params: PyTree,
    state: PyTree,
    tokens_BT: Array,
    targets_BT: Array,
    lengths_B: Array,
) -> tuple[Array, Array]:
    """`score_tokens` without the next state, whose caches need not be made."""
    return score_tokens(model, params, state, tokens_BT, targets_BT, lengths_B)[1:]


def token_scores(
    h_BTD: Array, head_SD: Array, targets_BT: Array, chunk: int
) -> tuple[Array, Array]:
    """Return the nats of each target, float32, and whether it is the argmax, bool; both [B, T].

    At most `chunk` tokens have their logits in memory at once; 0 is all of them.
    """
    batch, tokens = targets_BT.shape
    size = min(tokens, max(1, chunk // batch)) if chunk else tokens
    blocks = -(-tokens // size)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, blocks * size - tokens), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(padded.reshape(batch, blocks, size, *x.shape[2:]), 1, 0)

    def measure(part: tuple[Array, Array]) -> tuple[Array, Array]:
        h_BCD, targets_BC = part
        logits_BCS = logits_of(h_BCD, head_SD)
        hit_BC = jnp.take_along_axis(logits_BCS, targets_BC[..., None], axis=-1)[..., 0]
        nats_BC = jax.nn.logsumexp(logits_BCS, axis=-1) - hit_BC
        return nats_BC, jnp.argmax(logits_BCS, axis=-1).astype(jnp.int32) == targets_BC

    def join(x_NBC: Array) -> Array:
        return jnp.moveaxis(x_NBC, 0, 1).reshape(batch, blocks * size)[:, :tokens]

    nats_NBC, likeliest_NBC = jax.lax.map(measure, (split(h_BTD), split(targets_BT)))
    return join(nats_NBC), join(likeliest_NBC)


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
    key, first = draws

    def step(carry: tuple[PyTree, Array], i: Array) -> tuple[tuple[PyTree, Array], Array]:
        state, last_B = carry
        state, h_BTD = model.read(params, state, last_B[:, None])
        logits_BS = logits_of(h_BTD, model.head(params))[:, -1]
        token_B = sample(logits_BS, jax.random.fold_in(key, first + i), how)
        return (state, token_B), token_B

    numbers = jnp.arange(count, dtype=jnp.int32)
    (state, _), tokens_TB = jax.lax.scan(step, (state, last_B), numbers)
    return state, tokens_TB.T
