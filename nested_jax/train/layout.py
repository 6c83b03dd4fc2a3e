"""A run laid out over devices, without data: the state's shapes and places, and its programs.

The devices may be absent ones, which can only be compiled for (nested_jax/fit).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from nested_jax.config import Config
from nested_jax.models.flops import count_parameters, flops_per_token
from nested_jax.models.lm import build_model
from nested_jax.sharding import batch_sharding, check_rows, replicated
from nested_jax.train.state import TrainState, new_state, place_state
from nested_jax.train.step import Program, eval_step, make_program, new_carry, train_step
from nested_jax.types import Batch, PyTree

BATCH_DTYPES = {
    "tokens_BT": jnp.int32,
    "targets_BT": jnp.int32,
    "weights_BT": jnp.float32,
    "segments_BT": jnp.int32,
}


@dataclass(frozen=True, eq=False)
class Layout:
    """What a run computes, and where its arrays lie."""

    cfg: Config
    mesh: Mesh
    model: Any  # LanguageModel
    info: PyTree  # of ParamInfo
    program: Program
    init: Callable[..., TrainState]  # pure; to be run on the devices, on parameters or none
    abstract: TrainState  # shapes, dtypes and shardings of the state
    eval_rows: int  # rows of an evaluation batch

    @property
    def parameters(self) -> int:
        return count_parameters(self.info)

    @property
    def flops(self) -> float:
        """Return the model FLOPs of a training step, an estimate."""
        tokens = self.cfg.train.batch_size * self.cfg.data.seq_len
        return flops_per_token(self.cfg, self.info) * tokens

    def batch(self, rows: int) -> Batch:
        """Return shapes and shardings of a batch."""
        shape, sharding = (rows, self.cfg.data.seq_len), batch_sharding(self.mesh)
        fields: Any = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            for name, dtype in BATCH_DTYPES.items()
        }
        return Batch(**fields)

    def carry(self, rows: int) -> PyTree:
        """Return shapes and shardings of what an evaluation carries from batch to batch."""
        fresh = partial(new_carry, self.cfg, self.model, rows=rows)
        shapes = jax.eval_shape(fresh, self.abstract.params)
        placed = batch_sharding(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), shapes
        )

    def lower_train(self) -> jax.stages.Lowered:
        """Return the training step, traced and lowered for the mesh; its state is donated."""
        step = jax.jit(
            partial(train_step, program=self.program),
            donate_argnums=0,
            keep_unused=True,
            out_shardings=(jax.tree.map(sharding_of, self.abstract), replicated(self.mesh)),
        )
        return step.lower(self.abstract, self.batch(self.cfg.train.batch_size))

    def lower_eval(self) -> jax.stages.Lowered:
        """Return the evaluation step, traced and lowered for the mesh."""
        placed = batch_sharding(self.mesh), replicated(self.mesh)
        step = jax.jit(partial(eval_step, program=self.program), out_shardings=placed)
        state = self.abstract._replace(carry=self.carry(self.eval_rows))
        return step.lower(state, self.batch(self.eval_rows))


def lay_out(cfg: Config, mesh: Mesh) -> Layout:
    """Lay a run out over a mesh.

    Raises:
      ValueError: a batch, microbatch or parameter that the mesh does not divide.
    """
    cfg = with_microbatches(cfg, mesh)
    eval_rows = _check_batches(cfg, mesh)
    model = build_model(cfg.model, mesh.devices.flat[0])
    info = model.param_info()
    program = make_program(cfg, model)
    init = partial(init_state, cfg, model, program)
    shapes = jax.eval_shape(init)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        place_state(mesh, info, program.optimizer, shapes, cfg.mesh),
    )
    return Layout(cfg, mesh, model, info, program, init, abstract, eval_rows)


def with_microbatches(cfg: Config, mesh: Mesh) -> Config:
    """Return `cfg` with the ``train.grad_accum`` that ``train.device_rows`` asks for on a mesh.

    It is the least with which every device reads at most so many rows at once.

    Raises:
      ValueError: rows of a batch that do not divide over the mesh.
    """
    most, rows = cfg.train.device_rows, cfg.train.batch_size
    if not most:
        return cfg
    parts = check_rows(mesh, "train.batch_size", rows)
    at_once = max(n for n in range(1, most + 1) if rows // parts % n == 0)
    train = replace(cfg.train, grad_accum=rows // parts // at_once, device_rows=0)
    return replace(cfg, train=train)


def init_state(
    cfg: Config, model: Any, program: Program, params: PyTree | None = None
) -> TrainState:
    """Return the state before the first step: of `params`, or of those that the seed makes."""
    if params is None:
        params = model.init(jax.random.key(cfg.seed))
    carry = new_carry(cfg, model, params, cfg.train.batch_size)
    return new_state(params, program.optimizer, carry)


def _check_batches(cfg: Config, mesh: Mesh) -> int:
    """Raise unless (micro)batches divide over the mesh; return the rows of an evaluation batch."""
    micro = cfg.train.batch_size // cfg.train.grad_accum
    check_rows(mesh, "train.batch_size / train.grad_accum", micro)
    name = "train.eval_batch_size" if cfg.train.eval_batch_size else "rows of an evaluation batch"
    check_rows(mesh, name, cfg.train.eval_batch_size or micro)
    return cfg.train.eval_batch_size or micro


def sharding_of(x: Any) -> Any:
    return x.sharding
