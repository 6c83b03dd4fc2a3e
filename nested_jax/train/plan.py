"""A run, checked and laid out: everything that can be refused is refused here.

Nothing is allocated on a device and nothing is written, except the prepared data in their cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from nested_jax import machine
from nested_jax.config import Config
from nested_jax.data.pipeline import DatasetInfo, prepare
from nested_jax.data.synthetic import rows as synthetic
from nested_jax.errors import require
from nested_jax.models.flops import count_parameters, flops_per_token
from nested_jax.models.lm import build_model
from nested_jax.optim import group_counts
from nested_jax.sharding import Rows, batch_sharding, check_rows, make_mesh, process_rows
from nested_jax.train.record import check_trackers
from nested_jax.train.state import TrainState, new_state, place_state
from nested_jax.train.step import Program, make_program, new_carry
from nested_jax.train.workdir import check_free
from nested_jax.types import Batch, PyTree

BATCH_DTYPES = {
    "tokens_BT": jnp.int32,
    "targets_BT": jnp.int32,
    "weights_BT": jnp.float32,
    "segments_BT": jnp.int32,
}


class Plan(NamedTuple):
    """What a run consists of, before it starts."""

    cfg: Config
    workdir: Path
    mesh: Mesh
    model: Any  # LanguageModel
    data: DatasetInfo
    program: Program
    rows: Rows  # this process's part of every batch
    eval_rows: int  # rows of an evaluation batch
    parameters: int
    flops: float  # model FLOPs of a training step, an estimate
    init: Callable[..., TrainState]  # pure; to be run on the devices, on parameters or none
    abstract: TrainState  # shapes, dtypes and shardings of the state

    def batch(self, rows: int) -> Batch:
        """Return shapes and shardings of a batch."""
        shape, sharding = (rows, self.cfg.data.seq_len), batch_sharding(self.mesh)
        fields: Any = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            for name, dtype in BATCH_DTYPES.items()
        }
        return Batch(**fields)


def make_plan(cfg: Config, workdir: Path, say: Callable[[str], None]) -> Plan:
    """Check a run, from the cheapest check to the dearest, and lay it out.

    Raises:
      HeldError: another process uses the workdir.
      ValueError: a mesh that does not fit the devices, the batch or a parameter; a workdir that
        cannot be written; missing packages; levels that no row is long enough to write; data that
        are missing or damaged; a vocabulary smaller than the tokenizer's.
    """
    mesh = make_mesh(cfg.mesh)
    eval_rows = check_batches(cfg, mesh)
    check_workdir(workdir)
    check_free(workdir)
    check_trackers(cfg)
    check_periods(cfg)
    check_answers(cfg)
    model = build_model(cfg.model)
    info = model.param_info()
    program = make_program(cfg, model)
    init = partial(init_state, cfg, model, program)
    shapes = jax.eval_shape(init)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        place_state(mesh, info, program.optimizer, shapes),
    )
    flops = flops_per_token(cfg, info) * cfg.train.batch_size * cfg.data.seq_len
    parameters = count_parameters(info)
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    say(f"{machine.device_name()}, mesh {axes}, {jax.process_count()} process(es)")
    say(
        f"{cfg.model.block}: {parameters:,} parameters, {flops:.3g} FLOPs a step of "
        f"{cfg.train.batch_size} x {cfg.data.seq_len} tokens"
    )
    groups = group_counts(cfg.optim, info)
    say("optimizer: " + ", ".join(f"{name} {count:,}" for name, count in groups.items()))
    data = prepare(cfg.data, say)
    require(
        cfg.model.vocab_size >= data.vocab_size,
        "model.vocab_size",
        cfg.model.vocab_size,
        f"wants at least the {data.vocab_size} symbols of "
        f"{data.tokenizer_path or 'the tasks, ' + ', '.join(cfg.data.task.scored)}",
    )
    rows = process_rows(mesh, cfg.train.batch_size)
    return Plan(
        cfg, workdir, mesh, model, data, program, rows, eval_rows, parameters, flops, init, abstract
    )


def init_state(
    cfg: Config, model: Any, program: Program, params: PyTree | None = None
) -> TrainState:
    """Return the state before the first step: of `params`, or of those that the seed makes."""
    if params is None:
        params = model.init(jax.random.key(cfg.seed))
    carry = new_carry(cfg, model, params, cfg.train.batch_size)
    return new_state(params, program.optimizer, carry)


def check_batches(cfg: Config, mesh: Mesh) -> int:
    """Raise unless (micro)batches divide over the mesh; return the rows of an evaluation batch."""
    micro = cfg.train.batch_size // cfg.train.grad_accum
    check_rows(mesh, "train.batch_size / train.grad_accum", micro)
    name = "train.eval_batch_size" if cfg.train.eval_batch_size else "rows of an evaluation batch"
    check_rows(mesh, name, cfg.train.eval_batch_size or micro)
    return cfg.train.eval_batch_size or micro


def check_workdir(workdir: Path) -> None:
    """Raise unless `workdir` can be made and written, as far as that shows without writing."""
    existing = workdir.absolute()
    while not existing.exists():
        existing = existing.parent
    require(existing.is_dir(), "workdir", str(workdir), f"{existing} is a file, wants a folder")
    writable = os.access(existing, os.W_OK | os.X_OK)
    require(writable, "workdir", str(workdir), f"{existing} cannot be written")


def check_periods(cfg: Config) -> None:
    """Raise if a level that is to be written waits for more tokens than a row has."""
    if not (cfg.teaches and cfg.train.check_writes):
        return
    for level, period in enumerate(cfg.model.cms.periods):
        require(
            level not in taught_levels(cfg) or period <= cfg.data.seq_len,
            "model.cms.periods",
            cfg.model.cms.periods,
            f"level {level} is never written in rows of data.seq_len={cfg.data.seq_len} tokens; "
            "leave it out of teach.levels, or set train.check_writes=False",
        )


def check_answers(cfg: Config) -> None:
    """Raise unless the model answers from where its tasks want to be answered."""
    wanted = synthetic.reads(cfg.data.task) if cfg.data.is_synthetic else {"each"}
    require(
        wanted == {cfg.model.answers},
        "model.answers",
        cfg.model.answers,
        f"the tasks {', '.join(cfg.data.task.scored)} want {' and '.join(sorted(wanted))!r}",
    )


def taught_levels(cfg: Config) -> tuple[int, ...]:
    """Return the CMS levels that are to be written."""
    if not cfg.teaches:
        return ()
    known = tuple(range(len(cfg.model.cms.periods)))
    return known if cfg.teach.levels is None else cfg.teach.levels
