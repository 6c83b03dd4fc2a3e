"""Moments of the optimizer in the host's memory: the same numbers, fewer bytes on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny import read_lines, tiny_config, write_data

from nested_jax.sharding import make_mesh
from nested_jax.train import memory
from nested_jax.train.checkpoint import load_checkpoint
from nested_jax.train.layout import lay_out
from nested_jax.train.state import HOST
from nested_jax.train.trainer import train

HERE = {"mesh.data": 2, "mesh.fsdp": -1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("tiny") / "data")


def layout_of(**changes: Any) -> Any:
    cfg = tiny_config(Path("none"), {**HERE, **changes})
    return lay_out(cfg, make_mesh(cfg.mesh))


def test_moments_lie_on_the_host_and_nothing_else_does() -> None:
    state = layout_of(**{"mesh.offload": True}).abstract
    kinds = {(x.ndim > 0, x.sharding.memory_kind == HOST) for x in jax.tree.leaves(state.opt_state)}
    assert kinds == {(True, True), (False, False)}
    assert all(x.sharding.memory_kind != HOST for x in jax.tree.leaves(state.params))


def test_the_lower_bound_leaves_out_what_the_host_keeps() -> None:
    there, here = layout_of(**{"mesh.offload": True}), layout_of()
    params = memory._local_bytes(here.abstract.params)
    assert memory.lower_bound(here) - memory.lower_bound(there) == 2 * params  # two moments


@pytest.mark.parametrize("name", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_a_run_that_offloads_has_the_same_numbers(name: str, data: Path, tmp_path: Path) -> None:
    """It goes on from its checkpoint without offloading, too."""
    fields = {**HERE, "optim.name": name, "optim.schedule": "constant", "train.eval_every": 0}
    device, host = tmp_path / "device", tmp_path / "host"
    train(tiny_config(data, {**fields, "train.steps": 4}), device)
    for offload, steps in ((True, 2), (False, 4)):
        train(tiny_config(data, {**fields, "mesh.offload": offload, "train.steps": steps}), host)
    jax.tree.map(
        np.testing.assert_array_equal, load_checkpoint(device)[0], load_checkpoint(host)[0]
    )
    want, got = ([x["loss"] for x in read_lines(run) if "loss" in x] for run in (device, host))
    assert want == got
