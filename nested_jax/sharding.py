"""Where arrays live: the mesh, one table of logical axes, and multi-process start-up.

Every parameter and every activation names its logical axes where it is made; `RULES` is the only
place that maps them to mesh axes, so another parallelism is an edit of one line here. Sequence
state and fast weights carry the batch axis first and are placed like activations.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nested_jax.config import MeshConfig
from nested_jax.errors import require
from nested_jax.types import Array, Batch, ParamInfo, PyTree

AXES = ("data", "fsdp", "model")

# Logical axis -> mesh axes. An axis that is absent here is an error, never a silent replication.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),  # rows of a batch; first axis of all sequence state
    "vocab": ("model",),
    "embed": ("fsdp",),  # model width of a parameter; activations have spent fsdp on the batch
    "heads": ("model",),
    "kv_heads": ("model",),
    "mlp": ("model",),  # hidden width of an MLP, a CMS level or a memory
    "layers": (),
    "levels": (),
    "gates": (),  # of a recurrent cell
    "length": (),  # tokens, chunks
    "head_width": (),
    "conv": (),
    "rank": (),
    "norm": (),  # scales, biases and gates too small to be worth a gather
}


# --- mesh ----------------------------------------------------------------------------------------


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh of axes `AXES` over `devices` (default: all devices of all processes).

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [config.data, config.fsdp, config.model]
    fixed = math.prod(size for size in sizes if size > 0)
    blamed = next((i for i, size in enumerate(sizes) if size > 1), 0)
    name, value = f"mesh.{AXES[blamed]}", sizes[blamed]
    names = [f"mesh.{axis}" for axis, size in zip(AXES, sizes, strict=True) if size > 0]
    product = f"{' x '.join(names)} = {fixed}"
    if -1 in sizes:
        want = f"{product} does not divide the {len(devices)} devices; wants a size that does"
        require(len(devices) % fixed == 0, name, value, want)
        sizes[sizes.index(-1)] = len(devices) // fixed
    want = f"{product}, but there are {len(devices)} devices; --config.{name}=-1 takes what is left"
    require(math.prod(sizes) == len(devices), name, value, want)
    auto = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes), AXES, axis_types=auto, devices=devices)


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Return the spec of logical `axes`: one entry an axis, and every mesh axis at most once.

    The first logical axis that asks for a mesh axis gets it; later ones stay whole.

    Raises:
      ValueError: a logical axis that `RULES` does not know.
    """
    used: set[str] = set()
    entries: list[tuple[str, ...] | str | None] = []
    for axis in axes:
        if axis is not None:
            require(axis in RULES, "logical axis", axis, f"wants one of {', '.join(RULES)}")
        free = tuple(a for a in RULES[axis] if a not in used) if axis is not None else ()
        used.update(free)
        entries.append(None if not free else free[0] if len(free) == 1 else free)
    return PartitionSpec(*entries)


def param_shardings(mesh: Mesh, info: PyTree) -> PyTree:
    """Return a tree of `NamedSharding` for a tree of `ParamInfo`.

    Raises:
      ValueError: an axis whose size the mesh axes do not divide, naming the parameter.
    """

    def place(path: Any, leaf: ParamInfo) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        require(
            len(leaf.axes) == len(leaf.shape),
            name,
            leaf.axes,
            f"wants one for each of {leaf.shape}",
        )
        entries = spec(leaf.axes)
        for axis, size, entry in zip(leaf.axes, leaf.shape, tuple(entries), strict=True):
            parts = _parts(mesh, entry)
            require(
                size % parts == 0,
                f"parameter {name}",
                leaf.shape,
                f"axis {axis!r} of size {size} does not divide over mesh axes {entry!r} = {parts}",
            )
        return NamedSharding(mesh, entries)

    return jax.tree_util.tree_map_with_path(place, info)


def _parts(mesh: Mesh, entry: tuple[str, ...] | str | None) -> int:
    names = () if entry is None else (entry,) if isinstance(entry, str) else entry
    return int(np.prod([mesh.shape[name] for name in names], dtype=int))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: Array, axes: Sequence[str | None]) -> Array:
    """Place an intermediate array like its logical `axes`; without a mesh in context, return it.

    The mesh comes from ``jax.set_mesh``. One axis name for each axis of `x`, `None` for whole.
    """
    if len(axes) != x.ndim:
        raise ValueError(f"{axes=}: wants one for each of {x.shape}")
    mesh = jax.sharding.get_abstract_mesh()
    free = _free_axes(mesh)
    if all(mesh.shape[axis] == 1 for axis in free):
        return x
    entries = ((entry,) if isinstance(entry, str) else entry or () for entry in spec(axes))
    kept = (tuple(axis for axis in entry if axis in free) for entry in entries)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(entry or None for entry in kept)))


def _free_axes(mesh: Any) -> tuple[str, ...]:
    """Return the axes of a mesh that arrays may be placed over: `on_own_rows` takes some."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind != AxisType.Manual)


def divides_rows() -> bool:
    """Whether the rows of a batch lie on several devices of the mesh in context."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(mesh.shape.get(axis, 1) > 1 for axis in RULES["batch"])


def on_own_rows(
    function: Callable[[PyTree, PyTree], tuple[PyTree, PyTree, PyTree]], whole: PyTree, rows: PyTree
) -> tuple[PyTree, PyTree, PyTree]:
    """Run a function on all devices, each with its own rows of a batch and with all of `whole`.

    So `whole`, sharded over fsdp or not, is gathered once, and nothing else is sent while the
    function runs, but over the axis `model`.

    Args:
      function: ``(whole, rows) -> (sums, rows, parts)``.
      whole: parameters, and what else is not divided.
      rows: leaves [B, ...].
    Returns:
      The sums over all devices; the rows, [B, ...]; and the parts of all devices, one after the
      other on their first axis.
    """
    if not divides_rows():
        return function(whole, rows)
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in RULES["batch"] if mesh.shape[axis] > 1)

    def own(whole: PyTree, rows: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        sums, rows, parts = function(whole, rows)
        return jax.lax.psum(sums, axes), rows, parts

    split, one = PartitionSpec(axes), PartitionSpec()
    alone = {axis for axis in mesh.axis_names if mesh.shape[axis] == 1}
    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(one, split),
        out_specs=(one, split, split),
        axis_names=alone | set(axes),
        check_vma=False,
    )(whole, rows)


# --- batches -------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Which equal part of every global batch a process reads."""

    part: int  # from 0
    parts: int


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose first axis is the rows of a batch."""
    return NamedSharding(mesh, spec(["batch"]))


def check_rows(mesh: Mesh, name: str, rows: int) -> int:
    """Return over how many parts of the mesh `rows` of a (micro)batch go.

    Raises:
      ValueError: they do not divide.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    require(rows % parts == 0, name, rows, f"rows must divide over mesh data x fsdp = {parts}")
    return parts


def process_rows(mesh: Mesh, batch_size: int) -> Rows:
    """Return the part of a global batch of `batch_size` rows that this process holds.

    Processes that the mesh only separates along `model` hold the same rows, and so the same part.

    Raises:
      ValueError: this process holds rows that are not one equal part (an unusual device order).
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    assert indices is not None
    slices = {index[0].indices(batch_size) for index in indices.values() if index is not None}
    held = sorted({row for bounds in slices for row in range(*bounds)})
    first, size = held[0], len(held)
    require(
        held[-1] - first + 1 == size and batch_size % size == 0 and first % size == 0,
        "mesh.data, mesh.fsdp and mesh.model",
        tuple(mesh.shape[axis] for axis in AXES),
        f"process {jax.process_index()} would hold rows {held} of a batch; "
        "wants mesh axes data x fsdp whose parts fill whole processes",
    )
    return Rows(part=first // size, parts=batch_size // size)


def place_batch(mesh: Mesh, local: Mapping[str, np.ndarray]) -> Batch:
    """Put the rows that this process read onto its devices, as its part of a global batch."""
    sharding = batch_sharding(mesh)
    put = partial(jax.make_array_from_process_local_data, sharding)
    return Batch(**{name: put(x) for name, x in local.items()})


def to_host(tree: PyTree) -> PyTree:
    """Return whole arrays in the memory of every process, which must all ask for them in turn."""

    def fetch(x: Any) -> np.ndarray:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(fetch, tree)


# --- processes -----------------------------------------------------------------------------------


class Processes(NamedTuple):
    """How the processes of one run find each other."""

    coordinator: str  # host:port of process 0
    num_processes: int
    process_id: int


def find_processes(flags: Processes | None, environ: Mapping[str, str]) -> Processes | str | None:
    """Return how to start: explicit processes, "slurm", or None for a single process.

    Flags win. Then ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, as
    the manifest of a Kubernetes indexed job sets them (``JOB_COMPLETION_INDEX`` serves as the id).
    Then Slurm, inside a job step of several tasks.

    Raises:
      ValueError: only some of the three variables are set.
    """
    if flags is not None:
        return flags
    index = environ.get("JAX_PROCESS_ID", environ.get("JOB_COMPLETION_INDEX"))
    address, count = environ.get("JAX_COORDINATOR_ADDRESS"), environ.get("JAX_NUM_PROCESSES")
    if address is not None or count is not None:
        given = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": count}
        given["JAX_PROCESS_ID"] = index
        missing = [name for name, value in given.items() if value is None]
        require(not missing, "environment", given, f"also wants {', '.join(missing)}")
        return Processes(str(address), int(str(count)), int(str(index)))
    in_step = "SLURM_STEP_NODELIST" in environ and "SLURM_PROCID" in environ
    return "slurm" if in_step and int(environ.get("SLURM_NTASKS", "1")) > 1 else None


def slurm_devices(environ: Mapping[str, str]) -> list[int] | None:
    """Return which of the GPUs that it sees a process of a Slurm step drives; None sees none.

    An equal share of them, in the order of the processes of a node. JAX alone would take one per
    process: of a process per node all GPUs but the first would idle, and a process that sees
    only its own (``--gpus-per-task``) would look for one that is not there.

    Raises:
      ValueError: the processes of the node do not divide its GPUs.
    """
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        count = len([name for name in listed.split(",") if name.strip()])
    else:
        count = len(list(Path("/dev").glob("nvidia[0-9]*")))
    tasks = int(environ["SLURM_NTASKS"]) // int(environ.get("SLURM_STEP_NUM_NODES", "1"))
    if count <= 1 or tasks <= 1:
        return list(range(count)) or None
    want = f"{tasks} processes of the node do not divide its {count} GPUs"
    require(count % tasks == 0, "SLURM_NTASKS", environ["SLURM_NTASKS"], want)
    share, local = count // tasks, int(environ["SLURM_LOCALID"])
    return list(range(local * share, (local + 1) * share))


def start_processes(flags: Processes | None = None) -> None:
    """Join the other processes of this run, if there are any; call before any other use of jax.

    Raises:
      ValueError: flags or environment that do not say how to start.
    """
    found = find_processes(flags, os.environ)
    if found is None:
        return
    if found == "slurm":
        jax.distributed.initialize(
            cluster_detection_method="slurm", local_device_ids=slurm_devices(os.environ)
        )
        return
    assert isinstance(found, Processes)
    require(
        0 <= found.process_id < found.num_processes,
        "process_id",
        found.process_id,
        f"wants 0 to {found.num_processes - 1}",
    )
    require(":" in found.coordinator, "coordinator", found.coordinator, "wants HOST:PORT")
    jax.distributed.initialize(found.coordinator, found.num_processes, found.process_id)


def agree(ok: bool) -> bool:
    """Return whether `ok` holds in every process; all of them wait here for the slowest."""
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(np.asarray(ok)).all())
