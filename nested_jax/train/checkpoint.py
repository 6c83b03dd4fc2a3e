"""Checkpoints: what a run writes so that it can go on, and the only user of Orbax.

A step's folder holds the items ``params``, ``opt``, ``carry`` (where the run keeps streams),
``data`` (the input pipeline's position) and ``meta`` (configuration, tokenizer hash, versions, the
host's counters). Orbax commits a folder whole or not at all, but a bit that flips in it later goes
unnoticed; so ``meta`` also records a fingerprint of every array, and the two JSON items seal
themselves. Both are checked on reading.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from nested_jax.config import Config, TrainConfig, from_saved
from nested_jax.config.schema import difference, to_dict
from nested_jax.errors import require
from nested_jax.models.lm import build_model
from nested_jax.sharding import agree
from nested_jax.train.integrity import fingerprint, seal, unseal
from nested_jax.train.state import TrainState
from nested_jax.train.workdir import CHECKPOINTS, free_name, locate, saved_steps
from nested_jax.types import PyTree

# What reading a damaged folder raises: missing or cut files, bad JSON, tensorstore's DATA_LOSS.
# AttributeError: Orbax takes what a damaged metadata file holds for what should be there.
DAMAGE = (ValueError, KeyError, TypeError, OSError, AttributeError)


Identity = Mapping[str, str]  # hashes of a run's data, by what they are of


class CheckpointError(OSError):
    """A checkpoint that cannot be written or read, in one line for the user."""


class DamagedError(Exception):
    """A checkpoint that is complete and cannot be read."""


class Restored(NamedTuple):
    """A checkpoint, read and checked."""

    state: TrainState
    data: dict[str, Any]  # state of the input pipeline
    meta: dict[str, Any]  # what the trainer gave to `save`


class Checkpoints:
    """The checkpoints of one workdir; every process of a run holds one."""

    def __init__(self, workdir: Path, train: TrainConfig, report: Callable[[str], None]) -> None:
        self.folder = workdir.absolute() / CHECKPOINTS
        self.report = report
        keep: list[Any] = [ocp.checkpoint_managers.LatestN(train.keep_latest)]
        if train.keep_every:
            keep.append(ocp.checkpoint_managers.EveryNSteps(train.keep_every))
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(keep),
            enable_async_checkpointing=train.async_save,
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=self._options)
        self._broken = False  # a save has failed

    def save(self, state: TrainState, data: dict[str, Any], meta: dict[str, Any]) -> None:
        """Start writing the checkpoint of ``state.step``; arrays may be donated on return.

        Raises:
          CheckpointError: this or the save before it could not be written (a full disk, say).
        """
        items = array_items(state)
        prints = {name: fingerprint(tree) for name, tree in items.items()}
        json_items = {"data": seal(data), "meta": seal({**meta, "fingerprints": prints})}
        arguments = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        arguments |= {name: ocp.args.JsonSave(item) for name, item in json_items.items()}
        try:
            self._manager.save(int(state.step), args=ocp.args.Composite(**arguments), force=True)
        except (ValueError, OSError, RuntimeError) as error:
            raise self._failed(error) from error

    def poll(self) -> None:
        """Raise `CheckpointError` if a save in the background has failed; else return at once."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Return when every save is on disk.

        Raises:
          CheckpointError: one could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except (ValueError, OSError, RuntimeError) as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Wait, unless a save has failed: Orbax would wait minutes for what it left of that one."""
        if not self._broken:
            self.wait()
            self._manager.close()

    def _failed(self, error: BaseException) -> CheckpointError:
        self._broken = True
        steps = saved_steps(self.folder)
        left = f"checkpoint {steps[-1]} is the newest good one" if steps else "none is left"
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        return CheckpointError(f"{self.folder}: saving failed, {left}: {said}")

    def restore(self, abstract: TrainState, cfg: Config, data: Identity) -> Restored | None:
        """Return the newest checkpoint that can be read, or None where there is none at all.

        The mesh and the number of processes may differ from the ones that saved it. A damaged
        checkpoint is reported, and set aside as ``STEP.damaged`` once an older one has been read.

        Args:
          abstract: shapes, dtypes and shardings of the state to restore into.
          data: the identity of the run's data, see `check_data`.
        Raises:
          ValueError: the run's configuration or data are not the checkpoint's; what differs.
          CheckpointError: there are checkpoints, and none can be read.
        """
        damaged: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            error, restored = self._read(step, abstract, cfg, data)
            if agree(restored is not None):
                self._set_aside(damaged)
                return restored
            self.report(f"checkpoint {step} is damaged and not used: {error}")
            damaged.append(step)
        if damaged:
            raise CheckpointError(f"{self.folder}: no checkpoint can be read, tried {damaged}")
        return None

    def _read(
        self, step: int, abstract: TrainState, cfg: Config, data: Identity
    ) -> tuple[str, Restored | None]:
        try:
            position, meta = read_json(self._manager, step)
            check_fits(meta, cfg)
            check_data(meta, data)
            items = read_arrays(self._manager, step, array_items(abstract), meta)
        except DamagedError as error:
            return str(error), None
        state = TrainState(
            step=jax.device_put(jnp.int32(step), abstract.step.sharding),
            params=items["params"],
            opt_state=items["opt"],
            carry=with_empty(abstract.carry, items.get("carry", abstract.carry)),
        )
        return "", Restored(state, position, meta)

    def _set_aside(self, steps: list[int]) -> None:
        """Rename damaged folders, so that their steps can be saved again."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                (self.folder / str(step)).rename(free_name(self.folder, f"{step}.damaged"))
        agree(True)
        self._manager.reload()


# --- reading and writing -------------------------------------------------------------------------


def array_items(state: TrainState) -> dict[str, PyTree]:
    """Return the array items of a checkpoint; Orbax refuses empty arrays, and trees without any."""
    carry = jax.tree.map(lambda x: x if x.size else None, state.carry)
    items = {"params": state.params, "opt": state.opt_state, "carry": carry}
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}


def with_empty(abstract: PyTree, carry: PyTree) -> PyTree:
    """Return `carry` with the empty arrays that `array_items` left out."""

    def fill(want: jax.ShapeDtypeStruct, got: Any) -> Any:
        if want.size:
            return got
        return jax.device_put(jnp.zeros(want.shape, want.dtype), want.sharding)

    return jax.tree.map(fill, abstract, carry)


def read_json(manager: ocp.CheckpointManager, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the items data and meta.

    Raises:
      DamagedError: they cannot be read, or are not the ones that were written.
    """
    arguments = ocp.args.Composite(data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
    with damage():
        items = manager.restore(step, args=arguments)
        return unseal(items["data"]), unseal(items["meta"])


def read_arrays(
    manager: ocp.CheckpointManager, step: int, abstract: dict[str, PyTree], meta: dict[str, Any]
) -> dict[str, PyTree]:
    """Return the items of arrays, placed as `abstract` says.

    Raises:
      DamagedError: they cannot be read, or are not the ones that were written.
    """
    arguments = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    with damage():
        items = manager.restore(step, args=ocp.args.Composite(**arguments))
        items = {name: items[name] for name in abstract}
    for name, tree in items.items():
        if fingerprint(tree) != meta["fingerprints"][name]:
            raise DamagedError(f"the arrays of {name} are not the ones that were saved")
    return items


@contextmanager
def damage() -> Iterator[None]:
    """Raise what reading a damaged folder raises as `DamagedError`, and nothing else."""
    try:
        yield
    except Exception as error:
        # Orbax reports a part of an array that tensorstore cannot read as a bare Exception.
        if not isinstance(error, DAMAGE) and type(error) is not Exception:
            raise
        text = str(error).strip().splitlines()
        said = text[0][:300] if text else ""
        raise DamagedError(f"{type(error).__name__}: {said}") from error


def check_fits(meta: dict[str, Any], cfg: Config) -> None:
    """Raise unless a run of `cfg` may go on from the checkpoint of `meta`."""
    changed = difference(config_of(meta), cfg, free=False)
    if changed:
        raise ValueError(
            f"the workdir holds checkpoint {meta['step']} of another configuration "
            f"(checkpoint -> this run): {'; '.join(changed)}. Take another --workdir, or undo this"
        )


def check_data(meta: dict[str, Any], data: Identity) -> None:
    """Raise unless the run's data are those of the checkpoint of `meta`.

    A curve would otherwise go on over other text. Earlier versions recorded the tokenizer alone.

    Args:
      data: hashes by what they are of: the tokenizer, the training text, ...
    """
    known = meta.get("data", {"tokenizer": meta["tokenizer_sha256"]})
    changed = [
        f"{name} ({str(known.get(name))[:12]} -> {data[name][:12]})"
        for name in data
        if (name in known or "data" in meta) and known.get(name) != data[name]
    ]
    if changed:
        raise ValueError(
            f"the workdir holds checkpoint {meta['step']} of other data (checkpoint -> this run): "
            f"{'; '.join(changed)}. Bring those data back, or take another --workdir, where "
            "train.init_from can begin with its parameters"
        )


# --- what was trained, for others ----------------------------------------------------------------


class Saved(NamedTuple):
    """One complete checkpoint: where it is, and what it says of itself."""

    workdir: Path
    step: int
    meta: dict[str, Any]
    cfg: Config

    @property
    def folder(self) -> Path:
        return self.workdir / CHECKPOINTS / str(self.step)


def load_checkpoint(path: str | Path) -> tuple[PyTree, Config, int]:
    """Return (params, config, step) of a workdir's newest checkpoint, or of one of its steps.

    Args:
      path: a workdir (``runs/x``) or one checkpoint (``runs/x/checkpoints/1000``).
    Raises:
      ValueError: as `find_checkpoint` and `read_params`.
    """
    saved = find_checkpoint(path)
    return read_params(saved), saved.cfg, saved.step


def find_checkpoint(path: str | Path) -> Saved:
    """Return the newest checkpoint of a workdir, or the step that `path` names; no arrays are read.

    Raises:
      ValueError: there is none, or it is damaged, or of a version whose configuration is not known
        here. An evaluation never falls back to another step by itself.
    """
    workdir, wanted = locate(path)
    steps = saved_steps(workdir / CHECKPOINTS)
    known = wanted in map(str, steps) if wanted else bool(steps)
    require(known, "checkpoint", str(path), f"wants a workdir with checkpoints, found {steps}")
    step = int(wanted) if wanted else steps[-1]
    try:
        meta = saved_meta(workdir / CHECKPOINTS / str(step))
    except DamagedError as error:
        raise unreadable(workdir, step, error) from error
    return Saved(workdir, step, meta, config_of(meta))


def read_params(saved: Saved) -> PyTree:
    """Return the parameters of a checkpoint, on the default device.

    Raises:
      ValueError: they are damaged.
    """
    abstract = {"params": abstract_params(saved.cfg)}
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(saved.workdir / CHECKPOINTS, options=options) as manager:
        try:
            return read_arrays(manager, saved.step, abstract, saved.meta)["params"]
        except DamagedError as error:
            raise unreadable(saved.workdir, saved.step, error) from error


def unreadable(workdir: Path, step: int, error: Exception) -> ValueError:
    folder = workdir / CHECKPOINTS
    others = [s for s in saved_steps(folder) if s != step]
    return ValueError(f"checkpoint {folder / str(step)} cannot be read ({error}); others: {others}")


def saved_meta(step: Path) -> dict[str, Any]:
    """Return the item ``meta`` of one ``checkpoints/STEP``.

    Raises:
      DamagedError: it cannot be read, or is not the one that was written.
    """
    with damage():
        return unseal(json.loads((step / "meta" / "metadata").read_text("utf-8")))


def config_of(meta: dict[str, Any]) -> Config:
    """Return the configuration of a checkpoint.

    Raises:
      ValueError: another version wrote it, with fields that this one does not have.
    """
    try:
        return from_saved(meta["config"], aligned="data" in meta)
    except ValueError as error:
        by = meta.get("versions", {}).get("nested-jax", "another version")
        raise ValueError(
            f"checkpoint {meta['step']} is of nested-jax {by}, whose configuration is not this "
            f"version's: {error}"
        ) from error


def abstract_params(cfg: Config) -> PyTree:
    """Return shapes and dtypes of the model's parameters, on the default device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(build_model(cfg.model).init, jax.random.key(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)


def run_meta(cfg: Config, step: int, data: Identity) -> dict[str, Any]:
    """Return the part of ``meta`` that `check_fits` and `check_data` read."""
    return {
        "step": step,
        "config": to_dict(cfg),
        "tokenizer_sha256": data["tokenizer"],  # of synthetic tasks: the hash of their settings
        "data": dict(data),
    }
