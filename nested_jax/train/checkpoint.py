"""Checkpoints: what a run writes so that it can go on, and the only user of Orbax.

A step's folder holds the items ``params``, ``opt``, ``carry`` (where the run keeps streams),
``data`` (the input pipeline's position) and ``meta`` (configuration, tokenizer hash, versions, the
host's counters). Orbax commits a folder whole or not at all, but a bit that flips in it later goes
unnoticed; so ``meta`` also records a fingerprint of every array, and the two JSON items seal
themselves. Both are checked on reading.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from nested_jax.config import Config, TrainConfig, from_saved
from nested_jax.config.schema import difference, to_dict
from nested_jax.models.lm import build_model
from nested_jax.sharding import agree
from nested_jax.train.integrity import fingerprint, seal, unseal
from nested_jax.train.state import TrainState
from nested_jax.types import PyTree

FOLDER = "checkpoints"
# What reading a damaged folder raises: missing or cut files, bad JSON, tensorstore's DATA_LOSS.
# AttributeError: Orbax takes what a damaged metadata file holds for what should be there.
DAMAGE = (ValueError, KeyError, TypeError, OSError, AttributeError)


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
        self.folder = workdir.absolute() / FOLDER
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
        self.wait()
        self._manager.close()

    def _failed(self, error: BaseException) -> CheckpointError:
        kept = self._manager.latest_step()
        left = f"checkpoint {kept} is the newest good one" if kept is not None else "none is left"
        return CheckpointError(f"{self.folder}: saving failed, {left}: {error}")

    def restore(self, abstract: TrainState, cfg: Config, tokenizer_sha256: str) -> Restored | None:
        """Return the newest checkpoint that can be read, or None where there is none at all.

        The mesh and the number of processes may differ from the ones that saved it. A damaged
        checkpoint is reported, and set aside as ``STEP.damaged`` once an older one has been read.

        Args:
          abstract: shapes, dtypes and shardings of the state to restore into.
        Raises:
          ValueError: the run's configuration or tokenizer is not the checkpoint's; what differs.
          CheckpointError: there are checkpoints, and none can be read.
        """
        damaged: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            error, restored = self._read(step, abstract, cfg, tokenizer_sha256)
            if agree(restored is not None):
                self._set_aside(damaged)
                return restored
            self.report(f"checkpoint {step} is damaged and not used: {error}")
            damaged.append(step)
        if damaged:
            raise CheckpointError(f"{self.folder}: no checkpoint can be read, tried {damaged}")
        return None

    def _read(
        self, step: int, abstract: TrainState, cfg: Config, tokenizer_sha256: str
    ) -> tuple[str, Restored | None]:
        try:
            data, meta = read_json(self._manager, step)
            check_fits(meta, cfg, tokenizer_sha256)
            items = read_arrays(self._manager, step, array_items(abstract), meta)
        except DamagedError as error:
            return str(error), None
        state = TrainState(
            step=jax.device_put(jnp.int32(step), abstract.step.sharding),
            params=items["params"],
            opt_state=items["opt"],
            carry=with_empty(abstract.carry, items.get("carry", abstract.carry)),
        )
        return "", Restored(state, data, meta)

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


def check_fits(meta: dict[str, Any], cfg: Config, tokenizer_sha256: str) -> None:
    """Raise unless a run of `cfg` may go on from the checkpoint of `meta`."""
    changed = difference(from_saved(meta["config"]), cfg, free=False)
    if changed:
        raise ValueError(
            f"the workdir holds checkpoint {meta['step']} of another configuration "
            f"(checkpoint -> this run): {'; '.join(changed)}. Take another --workdir, or undo this"
        )
    if meta["tokenizer_sha256"] != tokenizer_sha256:
        raise ValueError(
            f"the workdir holds checkpoint {meta['step']} of tokenizer "
            f"{meta['tokenizer_sha256'][:12]}, but the data's is {tokenizer_sha256[:12]}"
        )


def free_name(folder: Path, name: str) -> Path:
    tries = (folder / (name + suffix) for suffix in ["", *(f".{i}" for i in range(1, 1000))])
    return next(path for path in tries if not path.exists())


# --- what was trained, for others ----------------------------------------------------------------


def load_checkpoint(path: str | Path) -> tuple[PyTree, Config, int]:
    """Return (params, config, step) of a workdir's newest checkpoint, or of one of its steps.

    Args:
      path: a workdir (``runs/x``) or one checkpoint (``runs/x/checkpoints/1000``).
    Raises:
      ValueError: there is no checkpoint, or the one that was asked for is damaged; an evaluation
        never falls back to another step by itself.
    """
    path = Path(path).absolute()
    folder, wanted = (path.parent, path.name) if path.parent.name == FOLDER else (path / FOLDER, "")
    steps = saved_steps(folder)
    if not steps or (wanted and int(wanted) not in steps if wanted.isdigit() else wanted):
        raise ValueError(
            f"checkpoint={str(path)!r}: wants a workdir with checkpoints, found {steps}"
        )
    step = int(wanted) if wanted else steps[-1]
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(folder, options=options) as manager:
        try:
            _, meta = read_json(manager, step)
            cfg: Config = from_saved(meta["config"])
            params = read_arrays(manager, step, {"params": abstract_params(cfg)}, meta)["params"]
        except DamagedError as error:
            raise ValueError(
                f"checkpoint {folder / str(step)} cannot be read ({error}); "
                f"others are {[s for s in steps if s != step]}"
            ) from error
    return params, cfg, step


def saved_meta(step: Path) -> dict[str, Any]:
    """Return the item ``meta`` of one ``checkpoints/STEP``, without the arrays.

    Raises:
      ValueError: it is damaged.
    """
    file = step / "meta" / "metadata"  # where Orbax puts a JSON item
    try:
        return unseal(json.loads(file.read_text("utf-8")))
    except DAMAGE as error:
        raise ValueError(f"{file}: damaged ({error})") from error


def saved_steps(folder: Path) -> list[int]:
    """Return the steps that have a complete checkpoint, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir())


def abstract_params(cfg: Config) -> PyTree:
    """Return shapes and dtypes of the model's parameters, on the default device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(build_model(cfg.model).init, jax.random.key(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)


def run_meta(cfg: Config, step: int, tokenizer_sha256: str) -> dict[str, Any]:
    """Return the part of ``meta`` that `check_fits` reads."""
    return {"step": step, "config": to_dict(cfg), "tokenizer_sha256": tokenizer_sha256}
