"""Checkpoints: what a run writes so that it can go on, and the only user of Orbax.

A step's folder holds the items ``params``, ``opt``, ``carry`` (where the run keeps streams),
``data`` (the input pipeline's position) and ``meta`` (configuration, tokenizer hash, versions, the
host's counters). Orbax commits a folder whole or not at all, but a bit that flips in it later goes
unnoticed; so ``meta`` has fingerprints of all arrays, and JSON items seals: reading checks both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from nested_jax.config import Config, TrainConfig
from nested_jax.errors import require
from nested_jax.models.lm import build_model
from nested_jax.sharding import agree
from nested_jax.storage import scheme
from nested_jax.train.fits import Identity, check_data, check_fits, config_of
from nested_jax.train.integrity import fingerprint, seal, unseal
from nested_jax.train.state import TrainState
from nested_jax.train.workdir import CHECKPOINTS, Deleter, free_name, locate, saved_steps
from nested_jax.types import PyTree

# What reading a damaged folder raises: missing or cut files, bad JSON, tensorstore's DATA_LOSS.
# AttributeError: Orbax takes what a damaged metadata file holds for what should be there.
DAMAGE = (ValueError, KeyError, TypeError, OSError, AttributeError)
READ_TRIES = 20  # of the newest checkpoint of a run that replaces it


class CheckpointError(OSError):
    """A checkpoint that cannot be written or read, in one line for the user."""


class GoneError(ValueError):
    """A checkpoint that its run has removed since, for a newer one."""


class DamagedError(Exception):
    """A checkpoint that is complete and cannot be read."""


class Restored(NamedTuple):
    """A checkpoint, read and checked."""

    state: TrainState
    data: dict[str, Any]  # state of the input pipeline
    meta: dict[str, Any]  # what the trainer gave to `save`


class Checkpoints:
    """The checkpoints of one workdir; every process of a run holds one.

    Args:
      held: steps that are kept as long as they are in it: `Mirror` copies them.
    """

    def __init__(
        self,
        workdir: Path,
        train: TrainConfig,
        report: Callable[[str], None],
        held: Collection[int] = (),
    ) -> None:
        self.folder = (workdir if scheme(workdir) else workdir.absolute()) / CHECKPOINTS
        self.report, self._train = report, train
        options = ocp.CheckpointManagerOptions(
            preservation_policy=Chosen(lambda steps: {*self._kept(steps), *held}),
            enable_async_checkpointing=train.async_save,
            cleanup_tmp_directories=True,
        )
        self._manager = manager = ocp.CheckpointManager(self.folder, options=options)
        manager._checkpoint_deleter = Deleter(self.folder, manager._checkpoint_deleter)
        self._broken = False  # a save has failed
        self.scores: dict[int, float] = {}  # held-out loss by step, of the checkpoints that know it
        for step in saved_steps(self.folder) if train.keep_best else []:
            with suppress(DamagedError):
                self._note(saved_meta(self.folder / str(step)))

    def save(self, state: TrainState, data: dict[str, Any], meta: dict[str, Any]) -> None:
        """Start writing the checkpoint of ``state.step``; arrays may be donated on return.

        Raises:
          CheckpointError: this or the save before it could not be written (a full disk, say).
        """
        items = array_items(state)
        prints = {name: fingerprint(tree) for name, tree in items.items()}
        json_items = {"data": seal(data), "meta": seal({**meta, "fingerprints": prints})}
        self._note(meta)
        arguments = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        arguments |= {name: ocp.args.JsonSave(item) for name, item in json_items.items()}
        try:
            self._manager.save(int(state.step), args=ocp.args.Composite(**arguments), force=True)
        except (ValueError, OSError, RuntimeError) as error:
            raise self._failed(error) from error

    def _note(self, meta: Mapping[str, Any]) -> None:
        valid = meta.get("meter", {}).get("valid", {})
        loss = valid.get("valid_loss", math.nan)
        if valid.get("step", -1) == meta["step"] and math.isfinite(loss):
            self.scores[meta["step"]] = loss

    def _kept(self, steps: Sequence[int]) -> set[int]:
        """Return those that the configuration wants to keep, of steps in order."""
        train = self._train
        every = [s for s in steps if train.keep_every and s % train.keep_every == 0]
        best = sorted((self.scores[s], s) for s in steps if s in self.scores)[: train.keep_best]
        return {*steps[-train.keep_latest :], *every, *(step for _, step in best)}

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

    def trim(self) -> None:
        """Wait, and delete what only the mirror held: the run is over."""
        self.wait()
        steps = saved_steps(self.folder)
        self._manager._checkpoint_deleter.delete_steps(sorted({*steps} - self._kept(steps)))

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

    def restore(
        self, abstract: TrainState, cfg: Config, data: Identity, wanted: int | None = None
    ) -> Restored | None:
        """Return the newest checkpoint that can be read, or None where there is none at all.

        The mesh and the number of processes may differ from the ones that saved it. A damaged
        checkpoint is reported, and set aside as ``STEP.damaged`` once an older one has been read.

        Args:
          abstract: shapes, dtypes and shardings of the state to restore into.
          data: the identity of the run's data, see `check_data`.
          wanted: the only step that will do; newer ones are set aside as ``STEP.set-aside``.
        Raises:
          ValueError: the run's configuration or data are not the checkpoint's, and what differs;
            there is no checkpoint `wanted`.
          CheckpointError: there are checkpoints, and none can be read.
        """
        damaged: list[int] = []
        known = sorted(self._manager.all_steps(), reverse=True)
        want = f"wants one of the checkpoints {known[::-1]}"
        require(wanted is None or wanted in known, "--resume-step", wanted, want)
        for step in known if wanted is None else [wanted]:
            error, restored = self._read(step, abstract, cfg, data)
            if agree(restored is not None):
                self._set_aside(damaged, "damaged")
                self._set_aside([s for s in known if wanted is not None and s > step], "set-aside")
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

    def _set_aside(self, steps: list[int], why: str) -> None:
        """Rename folders, so that their steps can be saved again."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                (self.folder / str(step)).rename(free_name(self.folder, f"{step}.{why}"))
            if why == "set-aside":  # damaged ones have been named
                self.report(f"checkpoints {steps} are set aside as STEP.{why}")
        agree(True)
        self._manager.reload()


class Chosen(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps those steps that a function chooses."""

    def __init__(self, choose: Callable[[Sequence[int]], Container[int]]) -> None:
        self.choose = choose

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        chosen = self.choose([info.step for info in checkpoints])
        return [info.step in chosen for info in checkpoints]


# --- reading and writing -------------------------------------------------------------------------


def array_items(state: TrainState) -> dict[str, PyTree]:
    """Return the array items of a checkpoint; Orbax refuses empty arrays, and trees without any."""
    carry = jax.tree.map(lambda x: x if x.size else None, state.carry)
    items = {"params": state.params, "opt": state.opt_state, "carry": carry}
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}


def with_empty(abstract: PyTree, carry: PyTree) -> PyTree:
    """Return `carry` with the empty arrays that `array_items` left out."""

    def fill(want: jax.ShapeDtypeStruct, got: Any) -> Any:
        return (
            got if want.size else jax.device_put(jnp.zeros(want.shape, want.dtype), want.sharding)
        )

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
        said = (str(error).strip().splitlines() or [""])[0][:300]
        raise DamagedError(f"{type(error).__name__}: {said}") from error


# --- what was trained, for others ----------------------------------------------------------------


class Saved(NamedTuple):
    """One complete checkpoint: where it is, and what it says of itself."""

    workdir: Path
    step: int
    meta: dict[str, Any]
    cfg: Config
    newest: bool  # nobody has asked for this step

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
    saved, params = read_checkpoint(path)
    return params, saved.cfg, saved.step


def read_checkpoint(path: str | Path) -> tuple[Saved, PyTree]:
    """Return a checkpoint and its parameters, also of a run that is being written.

    The run may remove its newest checkpoint for a newer one meanwhile: then that one is read.

    Raises:
      ValueError: as `find_checkpoint` and `read_params`.
    """
    for _ in range(READ_TRIES):
        try:
            saved = find_checkpoint(path)
            return saved, read_params(saved)
        except GoneError:
            continue
    raise ValueError(f"checkpoint={str(path)!r}: is replaced faster than it can be read")


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
        raise unreadable(workdir, step, error, newest=not wanted) from error
    return Saved(workdir, step, meta, config_of(meta), newest=not wanted)


def read_params(saved: Saved) -> PyTree:
    """Return the parameters of a checkpoint, on the default device.

    Raises:
      ValueError: they are damaged.
    """
    abstract = {"params": abstract_params(saved.cfg)}
    options = ocp.CheckpointManagerOptions(read_only=True)
    try:
        found = ocp.CheckpointManager(saved.workdir / CHECKPOINTS, options=options)
    # It looks at all checkpoints, and one was just removed.
    except (FileNotFoundError, NotADirectoryError) as error:
        raise GoneError(f"{saved.workdir}: checkpoints are being replaced: {error}") from error
    with found as manager:
        try:
            return read_arrays(manager, saved.step, abstract, saved.meta)["params"]
        except DamagedError as error:
            raise unreadable(saved.workdir, saved.step, error, saved.newest) from error


def unreadable(workdir: Path, step: int, error: Exception, newest: bool) -> ValueError:
    folder = workdir / CHECKPOINTS
    if newest and max(saved_steps(folder), default=step) > step:
        return GoneError(f"checkpoint {step} of {workdir} was replaced while it was read")
    others = [s for s in saved_steps(folder) if s != step]
    return ValueError(f"checkpoint {folder / str(step)} cannot be read ({error}); others: {others}")


def saved_meta(step: Path) -> dict[str, Any]:
    """Return the item ``meta`` of one ``checkpoints/STEP``.

    Raises:
      DamagedError: it cannot be read, or is not the one that was written.
    """
    with damage():
        return unseal(json.loads((step / "meta" / "metadata").read_text("utf-8")))


def abstract_params(cfg: Config) -> PyTree:
    """Return shapes and dtypes of the model's parameters, on the default device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(build_model(cfg.model).init, jax.random.key(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
