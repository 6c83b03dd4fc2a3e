"""The pure step: gradients over microbatches, donation, one compilation."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_equal
from tiny import HOPE, tiny_config, write_config

from nested_jax.config import MeshConfig
from nested_jax.fit.cost import estimate
from nested_jax.fit.gpus import GPUS
from nested_jax.fit.hlo import parse
from nested_jax.optim import scale_by_adam, skip_non_finite
from nested_jax.sharding import batch_sharding, make_mesh
from nested_jax.train.layout import lay_out
from nested_jax.train.state import TrainState, new_state
from nested_jax.train.step import Program, join_rows, split_rows, train_step
from nested_jax.train.watch.meter import is_count
from nested_jax.types import Batch

B, T, D = 12, 5, 7
OPTIMIZER = skip_non_finite(optax.chain(scale_by_adam(0.9, 0.95, 1e-8), optax.scale(-0.1)))


def loss(params: Any, carry: Any, batch: Batch, step: jax.Array) -> Any:
    """A regression on tokens whose rows carry a running sum; token weights are unequal."""
    x_BTD = params["table"][batch.tokens_BT] + carry["sum_BD"][:, None, :]
    y_BT = jnp.einsum("btd,d->bt", jnp.tanh(x_BTD), params["head"])
    error_BT = jnp.square(y_BT - batch.targets_BT.astype(jnp.float32)) * batch.weights_BT
    tokens = batch.weights_BT.sum()
    value = error_BT.sum() / jnp.maximum(tokens, 1.0)
    writes = (batch.weights_BT.sum(1) > 2.0).sum().astype(jnp.float32)
    metrics = {"loss": value, "tokens": tokens, "teach/level0/writes": writes}
    return value, ({"sum_BD": carry["sum_BD"] + x_BTD.sum(1)}, metrics)


def batch() -> Batch:
    rng = np.random.default_rng(1)
    weights = (rng.random((B, T)) < np.linspace(0.0, 1.0, B)[:, None]).astype(np.float32)
    tokens, targets = rng.integers(0, 9, (2, B, T)).astype(np.int32)
    return Batch(*map(jnp.asarray, (tokens, targets, weights, np.ones((B, T), np.int32))))


def state() -> TrainState:
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"table": jax.random.normal(keys[0], (9, D)), "head": jax.random.normal(keys[1], (D,))}
    return new_state(params, OPTIMIZER, {"sum_BD": jax.random.normal(keys[2], (B, D))})


PROGRAM = Program(loss=loss, optimizer=OPTIMIZER, schedule=optax.constant_schedule(0.1))


def step(state: TrainState, batch: Batch, parts: int = 1) -> tuple[TrainState, dict[str, Any]]:
    return jax.jit(partial(train_step, program=replace(PROGRAM, grad_accum=parts)))(state, batch)


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_unequal_microbatches_equal_one_batch(parts: int) -> None:
    """T13: token weights run from 0 to 1 over the rows, so a plain mean of means is far off."""
    want, want_metrics = step(state(), batch())
    got, metrics = step(state(), batch(), parts)
    assert_close(got, want, rtol=2e-6)
    assert_close(metrics, want_metrics, rtol=2e-6)
    assert int(got.step) == 1


MESHES = [MeshConfig(), MeshConfig(data=1, fsdp=4), MeshConfig(data=2, fsdp=2, model=-1)]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("config", MESHES, ids=["data", "fsdp", "model"])
def test_rows_of_every_device_are_a_part_of_the_batch(config: MeshConfig, parts: int) -> None:
    """Values, gradients, carry and metrics, with unequal numbers of tokens on the devices."""
    want, want_metrics = step(state(), batch())
    mesh = make_mesh(config, jax.devices()[: 8 if config.model == -1 else 4])
    placed = jax.device_put(batch(), batch_sharding(mesh))
    with jax.set_mesh(mesh):
        got, metrics = step(state(), placed, parts)
    assert_close(got, want, rtol=2e-6)
    assert_close(metrics, want_metrics, rtol=2e-6)


@pytest.mark.parametrize("block", ["hope_attention", "transformer"])
def test_a_step_sends_parameters_and_gradients_once(block: str, tmp_path: Path) -> None:
    """Sharded parameters are gathered before the loops over microbatches, layers and chunks."""
    changes = {**HOPE, "model.block": block, "mesh.data": 2, "mesh.fsdp": 2, "train.grad_accum": 2}
    cfg = tiny_config(tmp_path, changes)
    layout = lay_out(cfg, make_mesh(cfg.mesh, jax.devices()[:4]))
    with jax.set_mesh(layout.mesh):
        text = layout.lower_train().compile().as_text()
    found = estimate(parse(text), GPUS["h200"]).collectives
    large = {name: c for name, c in found.items() if c.bytes > 100}  # not those of metrics
    assert large
    assert all(name.endswith("once per step") for name in large), found
    assert sum(c.bytes for c in large.values()) < 3 * 4 * layout.parameters


def test_rows_split_and_join() -> None:
    x = np.arange(24.0, dtype=np.float32).reshape(12, 2)
    parts = split_rows(x, 3)
    np.testing.assert_array_equal(parts[1], x[1::3])
    assert_equal(join_rows(parts), x)


def test_splitting_rows_moves_nothing_between_devices() -> None:
    mesh = make_mesh(MeshConfig())
    x = jax.device_put(jnp.ones((24, 2)), batch_sharding(mesh))
    with jax.set_mesh(mesh):
        text = jax.jit(lambda x: split_rows(x, 3)).lower(x).compile().as_text()
    assert "all-to-all" not in text
    assert "all-gather" not in text
    assert "collective-permute" not in text


def test_a_step_reports_its_gradient_rate_and_counts() -> None:
    _, metrics = step(state(), batch(), 2)
    before = state()
    grads = jax.grad(lambda p: loss(p, before.carry, batch(), before.step)[0])(before.params)
    assert_close(metrics["grad_norm"], optax.global_norm(grads), rtol=1e-5)
    assert float(metrics["learning_rate"]) == pytest.approx(0.1)
    assert float(metrics["tokens"]) == float(batch().weights_BT.sum())
    assert float(metrics["teach/level0/writes"]) == float((batch().weights_BT.sum(1) > 2.0).sum())
    assert is_count("teach/level3/blocked")
    assert not is_count("teach/level3/change")


def test_a_bad_step_changes_nothing_but_its_counters() -> None:
    bad = batch()._replace(weights_BT=batch().weights_BT.at[11, 0].set(jnp.nan))
    after, metrics = step(state(), bad)
    assert_equal(after.params, state().params)
    assert float(metrics["bad_updates"]) == float(metrics["bad_updates_in_a_row"]) == 1.0
    after, metrics = step(after._replace(carry=state().carry), batch())
    assert (float(metrics["bad_updates"]), float(metrics["bad_updates_in_a_row"])) == (1.0, 0.0)
    want, _ = step(state(), batch())
    assert_close(after.params, want.params, rtol=1e-6)


def test_the_state_is_donated_and_two_steps_trace_once() -> None:
    """T21, and T10 for the train state: types and shapes do not change, so nothing recompiles."""
    traces = []

    def counted(*args: Any) -> Any:
        traces.append(1)
        return loss(*args)

    program = replace(PROGRAM, loss=counted)
    donating = jax.jit(partial(train_step, program=program), donate_argnums=0)
    first = jax.tree.map(jnp.copy, state())
    second, _ = donating(first, batch())
    third, _ = donating(second, batch())
    assert len(traces) == 1
    assert all(x.is_deleted() for x in jax.tree.leaves((first, second)))
    assert jax.tree.map(jax.typeof, third) == jax.tree.map(jax.typeof, state())


LOWERED = """
import sys
from nested_jax.config import load_config
from nested_jax.sharding import make_mesh
from nested_jax.train.layout import lay_out

cfg = load_config(sys.argv[1], {})
sys.stdout.write(lay_out(cfg, make_mesh(cfg.mesh)).lower_train().as_text())
"""


def test_a_step_is_the_same_program_in_every_process(tmp_path: Path) -> None:
    """Python orders its sets anew in each process; compiled code is found by the program's text."""
    config = write_config(tmp_path, tmp_path, {**HOPE, "optim.name": "muon"})
    texts = [
        subprocess.run(
            [sys.executable, "-c", LOWERED, str(config)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1]
    assert b"stablehlo" in texts[0]
