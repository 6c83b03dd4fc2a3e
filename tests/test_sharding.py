"""The mesh, the table of logical axes, and how processes find each other."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from nested_jax.config import MeshConfig
from nested_jax.sharding import (
    Processes,
    check_rows,
    constrain,
    find_processes,
    make_mesh,
    param_shardings,
    place_batch,
    process_rows,
    slurm_devices,
    spec,
)
from nested_jax.types import ParamInfo

MESH_222 = MeshConfig(data=2, fsdp=2, model=2)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(data=2, fsdp=-1), (2, 4, 1)),
        (MESH_222, (2, 2, 2)),
    ],
)
def test_mesh_takes_what_is_left(config: MeshConfig, sizes: tuple[int, ...]) -> None:
    mesh = make_mesh(config)
    assert tuple(mesh.shape.values()) == sizes
    assert set(mesh.axis_types) == {AxisType.Auto}


MISFITS = {
    MeshConfig(data=3): "mesh.data=3: mesh.data x mesh.fsdp x mesh.model = 3, but there are 8",
    MeshConfig(data=2): "--config.mesh.data=-1 takes what is left",
    MeshConfig(fsdp=3): "mesh.fsdp=3: mesh.fsdp x mesh.model = 3 does not divide the 8 devices",
    MeshConfig(data=1, fsdp=4, model=4): "mesh.fsdp=4: mesh.data x mesh.fsdp x mesh.model = 16",
}


@pytest.mark.parametrize("config", MISFITS)
def test_a_mesh_that_does_not_fit_names_the_field_and_the_devices(config: MeshConfig) -> None:
    with pytest.raises(ValueError, match=re.escape(MISFITS[config])):
        make_mesh(config)


def test_spec_gives_a_mesh_axis_to_the_first_that_asks() -> None:
    assert spec(["embed", "mlp"]) == PartitionSpec("fsdp", "model")
    assert spec(["batch", None, "embed"]) == PartitionSpec(("data", "fsdp"), None, None)
    assert spec(["embed", "batch"]) == PartitionSpec("fsdp", "data")
    assert spec(["mlp", "heads", "head_width"]) == PartitionSpec("model", None, None)
    with pytest.raises(ValueError, match="logical axis='heds': wants one of batch"):
        spec(["heds"])


def test_a_parameter_that_does_not_divide_is_named() -> None:
    mesh = make_mesh(MESH_222)
    info = {"block": {"q": ParamInfo((12, 6, 4), ("embed", "heads", "head_width"), "matrix")}}
    assert param_shardings(mesh, info)["block"]["q"].spec == PartitionSpec("fsdp", "model", None)
    info["block"]["q"] = ParamInfo((12, 3, 4), ("embed", "heads", "head_width"), "matrix")
    with pytest.raises(ValueError, match=r"block\.q=\(12, 3, 4\): axis 'heads' of size 3"):
        param_shardings(mesh, info)


def test_constrain_places_under_a_mesh_and_only_there() -> None:
    x = jnp.ones((8, 3, 6))
    axes = ("batch", None, "mlp")
    assert constrain(x, axes) is x
    with jax.set_mesh(make_mesh(MESH_222)):
        y = jax.jit(lambda x: constrain(x * 2.0, axes))(x)
    assert y.sharding.spec == PartitionSpec(("data", "fsdp"), None, "model")
    with pytest.raises(ValueError, match="wants one for each of"):
        constrain(x, ("batch",))


def test_batch_rows_are_placed_in_order() -> None:
    mesh = make_mesh(MESH_222)
    assert process_rows(mesh, 8) == (0, 1)
    rows = {name: np.arange(24).reshape(8, 3) for name in ("tokens_BT", "targets_BT")}
    rows |= {"weights_BT": np.ones((8, 3), np.float32), "segments_BT": np.ones((8, 3), np.int32)}
    batch = place_batch(mesh, rows)
    np.testing.assert_array_equal(batch.tokens_BT, rows["tokens_BT"])
    assert batch.tokens_BT.addressable_shards[0].data.shape == (2, 3)
    check_rows(mesh, "rows", 12)
    with pytest.raises(ValueError, match="rows=6: rows must divide over mesh data x fsdp = 4"):
        check_rows(mesh, "rows", 6)


COORDINATOR = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4"}
SLURM = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, None),
        ({"JOB_COMPLETION_INDEX": "2"}, None),
        ({**COORDINATOR, "JAX_PROCESS_ID": "3"}, Processes("a:1", 4, 3)),
        ({**COORDINATOR, "JOB_COMPLETION_INDEX": "2"}, Processes("a:1", 4, 2)),
        (SLURM, "slurm"),
        ({**SLURM, "SLURM_NTASKS": "1"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, None),  # a batch script outside of srun
    ],
)
def test_processes_are_found_in_the_environment(environ: dict[str, str], found: Any) -> None:
    assert find_processes(None, environ) == found
    flags = Processes("b:2", 2, 0)
    assert find_processes(flags, environ) == flags


STEP = {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_NODES": "4", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environ", "devices"),
    [
        ({**STEP, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [0, 1, 2, 3]),  # a process per node
        ({**STEP, "CUDA_VISIBLE_DEVICES": ""}, None),
        (
            {
                **STEP,
                "SLURM_STEP_NUM_NODES": "1",
                "CUDA_VISIBLE_DEVICES": "5",
                "SLURM_LOCALID": "3",
            },
            [0],
        ),
        (
            {**STEP, "SLURM_STEP_NUM_NODES": "2", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5"}
            | {"SLURM_LOCALID": "1"},
            [3, 4, 5],
        ),
    ],
)
def test_a_process_of_slurm_drives_its_share(environ: dict[str, str], devices: Any) -> None:
    assert slurm_devices(environ) == devices


def test_gpus_that_the_processes_of_a_node_do_not_divide_are_refused() -> None:
    environ = {**STEP, "SLURM_STEP_NUM_NODES": "2", "CUDA_VISIBLE_DEVICES": "0,1,2"}
    with pytest.raises(ValueError, match="SLURM_NTASKS='4': 2 processes of the node do not divide"):
        slurm_devices(environ)


def test_half_an_environment_is_refused() -> None:
    with pytest.raises(ValueError, match="also wants JAX_PROCESS_ID"):
        find_processes(None, COORDINATOR)
    with pytest.raises(ValueError, match="also wants JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"):
        find_processes(None, {"JAX_NUM_PROCESSES": "2"})
