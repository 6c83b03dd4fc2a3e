"""What reading needs of a card: `nested_jax.read` compiled with writes and without."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nested_jax.config import Config
from nested_jax.errors import require
from nested_jax.fit.gpus import GPU
from nested_jax.fit.plan import Need, need
from nested_jax.layers.attention import attention_text
from nested_jax.models.flops import count_parameters
from nested_jax.models.lm import build_model
from nested_jax.models.memories import learned
from nested_jax.read import piece_size, written
from nested_jax.teach import teach
from nested_jax.types import PyTree


@dataclass
class ReadingFit:
    """Readers of one card, each with a memory of its own."""

    gpu: GPU
    readers: int
    tokens: int  # of each reader in one call
    parameters: int
    parameter_bytes: int
    memory_bytes: int  # of one reader: what it has learned, as --state keeps it
    state_bytes: int  # of one reader: that, open chunks, keys and values
    writing: Need
    silent: Need  # the same model, nothing written
    attention: str

    @property
    def share(self) -> float:
        return self.writing.peak_bytes / self.gpu.usable_bytes

    @property
    def fits(self) -> bool:
        return self.share <= 1.0

    def per_token(self, one: Need) -> float:
        """Return estimated seconds per token of all readers together."""
        return one.estimate.seconds / (self.readers * self.tokens)


def compile_reading(cfg: Config, gpu: GPU, mesh: Mesh, readers: int) -> ReadingFit:
    """Compile what reads one piece of each reader's text; nothing runs.

    Raises:
      ValueError: several devices, a model without levels, a number of readers below one.
    """
    require(mesh.size == 1, "--devices", mesh.size, "wants 1: readers share one device")
    require(readers >= 1, "--readers", readers, "wants 1 or more")
    want = "has no CMS levels; `python -m nested_jax.hub retrofit` gives it some"
    require(cfg.model.fast_layers > 0, "model.block", cfg.model.block, want)
    model = build_model(cfg.model, mesh.devices.flat[0])
    teaching = written(cfg.teach)
    size, room = piece_size(cfg.model, teaching)
    place = NamedSharding(mesh, PartitionSpec())
    params = _placed(jax.eval_shape(model.init, jax.random.key(0)), place)
    state = _placed(
        jax.eval_shape(lambda p: model.init_state(p, readers, room), params),
        place,
    )
    tokens_BT = jax.ShapeDtypeStruct((readers, size), jnp.int32, sharding=place)
    lengths_B = jax.ShapeDtypeStruct((readers,), jnp.int32, sharding=place)

    def compiled(mode: Any) -> Need:
        step = jax.jit(partial(teach, model, cfg=replace(teaching, mode=mode)), donate_argnums=1)
        lower = lambda: step.lower(params, state, tokens_BT, tokens_BT, lengths_B=lengths_B)  # noqa: E731
        with jax.set_mesh(mesh):
            return need(lower, gpu)

    return ReadingFit(
        gpu,
        readers,
        size,
        count_parameters(model.param_info()),
        tree_bytes(params),
        tree_bytes(jax.eval_shape(lambda p, s: learned(model, p, s), params, state)) // readers,
        tree_bytes(state) // readers,
        compiled(teaching.mode),
        compiled("off"),
        attention_text(model.cfg),
    )


def _placed(tree: PyTree, place: NamedSharding) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def tree_bytes(tree: PyTree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
