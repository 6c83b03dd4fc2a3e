"""One outer step: gradients over microbatches, the optimizer, and the metrics of this step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nested_jax.config import Config
from nested_jax.optim import bad_updates, make_optimizer, make_schedule
from nested_jax.outer_loss import loss_fn, stream_loss_fn
from nested_jax.sharding import constrain, divides_rows, on_own_rows
from nested_jax.train.state import TrainState, moved, on_device
from nested_jax.train.watch.meter import is_count
from nested_jax.types import Array, Batch, PyTree

Metrics = dict[str, Array]  # flat; float32 scalars of one step
# (params, carry, batch, step) -> (mean loss per token, (carry, metrics))
Loss = Callable[[PyTree, PyTree, Batch, Array], tuple[Array, tuple[PyTree, Metrics]]]


@dataclass(frozen=True)
class Program:
    """The static part of a training step."""

    loss: Loss
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    grad_accum: int = 1  # microbatches
    offload: bool = False  # the optimizer's moments come from the host's memory and go back there


def make_program(cfg: Config, model: Any) -> Program:
    """Return the program that trains `model` as `cfg` says."""

    def loss(params: PyTree, carry: PyTree, batch: Batch, step: Array) -> Any:
        if cfg.train.carry != "none":
            return stream_loss_fn(model, params, carry, batch, cfg, step)
        value, metrics = loss_fn(model, params, batch, cfg, step)
        return value, (carry, metrics)

    steps = cfg.train.steps
    return Program(
        loss=loss,
        optimizer=make_optimizer(cfg.optim, steps, model.param_info()),
        schedule=make_schedule(cfg.optim, steps),
        grad_accum=cfg.train.grad_accum,
        offload=cfg.mesh.offload,
    )


def train_step(state: TrainState, batch: Batch, program: Program) -> tuple[TrainState, Metrics]:
    """Take one optimizer step on the token-weighted mean loss of `batch` (fields [B, T])."""
    grads, carry, metrics = accumulate(program, state, batch)
    moments = on_device(state.opt_state) if program.offload else state.opt_state
    updates, opt_state = program.optimizer.update(grads, moments, state.params)
    total, in_a_row = bad_updates(opt_state)
    if program.offload:
        opt_state = moved(opt_state, jax.memory.Space.Host)
    metrics |= {
        "grad_norm": optax.global_norm(grads),
        "learning_rate": jnp.asarray(program.schedule(state.step), jnp.float32),
        "bad_updates": jnp.asarray(total, jnp.float32),
        "bad_updates_in_a_row": jnp.asarray(in_a_row, jnp.float32),
    }
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state, carry), metrics


def new_carry(cfg: Config, model: Any, params: PyTree, rows: int) -> PyTree:
    """Return the state of `rows` streams that have read nothing; () where none is carried."""
    return () if cfg.train.carry == "none" else model.init_state(params, rows, capacity=1)


def eval_step(state: TrainState, batch: Batch, program: Program) -> tuple[PyTree, Metrics]:
    """Score `batch` as training does, each chunk before the write that it causes.

    Returns the carry after the batch, and the metrics.
    """

    def own(whole: PyTree, rows: PyTree) -> tuple[PyTree, PyTree, Metrics]:
        (params, step), (carry, batch) = whole, rows
        _, (carry, metrics) = program.loss(params, carry, batch, step)
        return (), carry, stacked(metrics)

    _, carry, metrics = on_own_rows(own, (state.params, state.step), (state.carry, batch))
    return carry, combine(metrics)


def accumulate(program: Program, state: TrainState, batch: Batch) -> tuple[PyTree, PyTree, Metrics]:
    """Return the gradient of the mean loss over all tokens of `batch`, the carry and the metrics.

    Every device reads its own rows, microbatch by microbatch, with the whole parameters. These
    parts hold unequal numbers of tokens, so their mean gradients are weighted by them: the result
    is the gradient of the undivided batch.
    """
    value_and_grad, count = jax.value_and_grad(program.loss, has_aux=True), program.grad_accum
    if count == 1 and not divides_rows():
        (_, (carry, metrics)), grads = value_and_grad(state.params, state.carry, batch, state.step)
        return grads, carry, metrics

    def own(whole: PyTree, rows: PyTree) -> tuple[PyTree, PyTree, Metrics]:
        params, step = whole

        def add(total: PyTree, part: tuple[PyTree, Batch]) -> tuple[PyTree, tuple[PyTree, Metrics]]:
            (_, (carry, metrics)), grads = value_and_grad(params, *part, step)
            total = jax.tree.map(lambda t, g: t + metrics["tokens"] * g, total, grads)
            return total, (carry, metrics)

        zeros = jax.tree.map(jnp.zeros_like, params)
        if count == 1:
            total, (carry, metrics) = add(zeros, rows)
            return total, carry, stacked(metrics)
        total, (carry, metrics) = jax.lax.scan(add, zeros, split_rows(rows, count))
        return total, join_rows(carry), metrics

    whole, rows = (state.params, state.step), (state.carry, batch)
    total, carry, metrics = on_own_rows(own, whole, rows)
    tokens = jnp.maximum(metrics["tokens"].sum(), 1.0)
    return jax.tree.map(lambda t: t / tokens, total), carry, combine(metrics)


def stacked(metrics: Metrics) -> Metrics:
    """Return the metrics of one part as those of many."""
    return {name: value[None] for name, value in metrics.items()}


def combine(metrics: Metrics) -> Metrics:
    """Reduce metrics stacked over the parts of a batch: counts add up, the rest are means over
    tokens.
    """
    if len(metrics["tokens"]) == 1:
        return {name: value[0] for name, value in metrics.items()}
    weight = metrics["tokens"] / jnp.maximum(metrics["tokens"].sum(), 1.0)
    return {
        name: value.sum() if is_count(name) else (value * weight).sum()
        for name, value in metrics.items()
    }


def split_rows(tree: PyTree, parts: int) -> PyTree:
    """Reshape leaves [B, ...] to [parts, B / parts, ...].

    Row r goes to microbatch r % parts: a device that holds consecutive rows of the batch holds its
    share of every microbatch, and nothing moves.
    """

    def split(x: Array) -> Array:
        rows = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return constrain(rows, (None, "batch") + (None,) * (x.ndim - 1))

    return jax.tree.map(split, tree)


def join_rows(tree: PyTree) -> PyTree:
    """Undo `split_rows`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)
