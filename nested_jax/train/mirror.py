"""``train.mirror``: finished checkpoints and the log of a run, copied elsewhere while it trains.

    MIRROR/checkpoints/STEP/...      the files of a checkpoint
    MIRROR/checkpoints/STEP.json     their sizes and hashes, written last: without it there is none
    MIRROR/metrics.jsonl, ...        the record, at least as long as the newest checkpoint knows it

Every file is read back and its hash compared. A start with an empty workdir begins with the newest
checkpoint of the mirror. Only process 0 copies; the workdir is a folder that all processes share.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from nested_jax.config import Config
from nested_jax.errors import require
from nested_jax.sharding import agree
from nested_jax.storage import PARTIAL, Store
from nested_jax.train.checkpoint import DamagedError, saved_meta
from nested_jax.train.fits import check_fits
from nested_jax.train.integrity import unseal
from nested_jax.train.workdir import CHECKPOINTS, METRICS, RECORD, saved_steps

POLL_SECONDS = 1.0  # between two looks for finished checkpoints
MOST_SECONDS = 60.0  # between two tries while the mirror cannot be reached
RECORD_SECONDS = 60.0  # between two copies of the log alone
LAST_TRIES = 5  # at the end of a run
DAMAGE = (OSError, ValueError, KeyError, TypeError, DamagedError)
NAME = "train.mirror"


class ForeignError(ValueError):
    """The mirror is of another run."""


class Mirror:
    """The copy of one workdir; a context whose end waits until the copy is whole."""

    def __init__(self, workdir: Path, url: str, say: Callable[[str], None]) -> None:
        self.workdir, self.say = workdir, say
        self.store = Store(url, NAME)
        self.done: set[int] = set()  # steps that are whole in the mirror
        self.holding: set[int] = set()  # steps that are being copied: the run keeps them
        self.begun: set[int] = set()  # steps of which there are files
        self.record: dict[str, tuple[int, int]] = {}  # size and time of the files copied
        self.run = ""  # the run that is mirrored
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    # --- a machine without the workdir ---

    def steps(self) -> list[int]:
        """Return the steps that are whole in the mirror, in order."""
        names = [Path(name) for name in self.store.files(CHECKPOINTS)]
        stems = [name.stem for name in names if name.suffix == ".json" and len(name.parts) == 2]
        return sorted(int(stem) for stem in stems if stem.isdigit())

    def manifest(self, step: int) -> dict[str, Any]:
        data = json.loads(self.store.read(f"{CHECKPOINTS}/{step}.json") or b"")
        if not isinstance(data, dict) or not isinstance(data.get("files"), dict):
            raise ValueError("is no list of files")
        for name in data["files"]:
            plain = isinstance(name, str) and not Path(name).is_absolute()
            if not plain or ".." in Path(name).parts or "\\" in name:
                raise ValueError(f"names {name!r}, which is not below the checkpoint")
        return data

    def restore(self, cfg: Config) -> None:
        """Bring the newest checkpoint of the mirror here if it is newer than those that are here.

        A damaged one is named, and the one before it is tried. The caller holds the workdir.

        Raises:
          ValueError: the mirror is of another configuration; nothing was copied.
          OSError: it cannot be reached, or it has checkpoints and none can be read.
        """
        here, tried = saved_steps(self.workdir / CHECKPOINTS), []
        for step in reversed(self.steps()):
            if here and step <= here[-1]:
                return
            try:
                if here:
                    run = saved_meta(self.workdir / CHECKPOINTS / str(here[-1])).get("run")
                    self._check_run(step, self.manifest(step).get("run"), run)
                self._fetch(step, cfg)
            except ForeignError:
                raise
            except DAMAGE as error:
                self.say(f"checkpoint {step} of {self.store.url} is damaged and not used: {error}")
                tried.append(step)
                continue
            self.say(f"checkpoint {step} restored from {self.store.url}")
            return
        if tried and not here:
            raise OSError(f"{self.store.url}: no checkpoint can be read, tried {tried}")

    def _fetch(self, step: int, cfg: Config) -> None:
        listed = self.manifest(step)
        below = f"{CHECKPOINTS}/{step}"
        meta = unseal(json.loads(self.store.read(f"{below}/meta/metadata") or b""))
        try:
            check_fits(meta, cfg)
        except ValueError as error:
            raise ForeignError(f"{NAME}={self.store.url!r}: {error}") from error
        final = self.workdir / CHECKPOINTS / str(step)
        draft = final.with_name(f"{step}{PARTIAL}")
        for left in final.parent.glob(f"*{PARTIAL}"):  # by a start that was killed here
            shutil.rmtree(left)
        for name, (_, digest) in listed["files"].items():
            self.store.get(f"{below}/{name}", draft / name, digest)
        for name in self.store.files():
            if name.split("/")[0] in RECORD and ".." not in Path(name).parts:
                self.store.get(name, self.workdir / name)
        lines = (self.workdir / METRICS).read_bytes()[: meta["metrics_bytes"]]
        if hashlib.sha256(lines).hexdigest() != listed["metrics_sha256"]:
            raise OSError(f"{METRICS} is not the log of this checkpoint")
        draft.rename(final)

    # --- while the run trains ---

    def begin(self, run: str) -> None:
        """Begin to copy in the background.

        Args:
          run: the identity of the run, see `train/watch/record.py`.
        Raises:
          ValueError: the mirror holds the checkpoints of another run.
        """
        self.run = run
        for there in self.steps():
            try:
                found = self.manifest(there).get("run")
            except DAMAGE:
                continue  # it is written again, or removed
            self._check_run(there, found, run)
            self.done.add(there)
        for name in self.store.files():  # what a kill has left half copied
            parts = name.split("/")
            if parts[0] == CHECKPOINTS and len(parts) > 2 and parts[1].isdigit():
                self.begun.add(int(parts[1]))
            if name.endswith(PARTIAL):  # beside whole files Orbax would read it as one
                self.store.delete(name)
        self.begun -= self.done
        self.store.prune(CHECKPOINTS)
        self._thread.start()

    def _check_run(self, step: int, found: object, run: object) -> None:
        if found != run:
            raise ForeignError(
                f"{NAME}={self.store.url!r}: holds checkpoint {step} of another run; name an "
                "empty place"
            )

    def _work(self) -> None:
        failed, waited = "", 0.0
        pause = POLL_SECONDS
        while not self._end.wait(pause):
            waited += pause
            try:
                if self.copy(log=waited >= RECORD_SECONDS):
                    waited = 0.0
                failed, pause = "", POLL_SECONDS
            except Exception as error:  # noqa: BLE001  (whatever it is, the run goes on)
                pause = min(2 * pause, MOST_SECONDS)
                if str(error) != failed:
                    failed = str(error)
                    self.say(f"{NAME}: {error}; trying again")

    def copy(self, log: bool = True) -> bool:
        """Copy what is finished and not there yet; return whether there was anything.

        The run keeps a checkpoint while it is copied. One that it was removing by then is left out:
        a newer one is there.
        """
        steps = saved_steps(self.workdir / CHECKPOINTS)
        new = [step for step in reversed(steps) if step not in self.done]
        for step in new:
            self.holding.add(step)
            self.begun.add(step)
            try:
                self._copy_checkpoint(step)
            except (FileNotFoundError, DamagedError):
                if step >= max(saved_steps(self.workdir / CHECKPOINTS), default=step):
                    raise
            finally:
                self.holding.discard(step)
        if log and not new:
            self._copy_record()
        left = set(saved_steps(self.workdir / CHECKPOINTS))  # some may have gone meanwhile
        if self.done & left:
            self._remove((self.done | self.begun) - left)
        return bool(new) or log

    def _copy_checkpoint(self, step: int) -> None:
        folder, below = self.workdir / CHECKPOINTS / str(step), f"{CHECKPOINTS}/{step}"
        meta = saved_meta(folder)
        files = {}
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = file.relative_to(folder).as_posix()
            files[name] = (file.stat().st_size, self.store.put(file, f"{below}/{name}"))
        lines = (self.workdir / METRICS).read_bytes()[: meta["metrics_bytes"]]
        self._copy_record()
        listed = {
            "run": self.run,
            "step": step,
            "metrics_sha256": hashlib.sha256(lines).hexdigest(),
            "files": files,
        }
        self.store.write(f"{below}.json", json.dumps(listed).encode())
        self.done.add(step)

    def _copy_record(self) -> None:
        paths = [self.workdir / name for name in RECORD]
        found = [p for path in paths for p in ([path] if path.is_file() else path.rglob("*"))]
        for file in sorted(path for path in found if path.is_file()):
            name, about = file.relative_to(self.workdir).as_posix(), file.stat()
            now = about.st_size, about.st_mtime_ns
            if self.record.get(name) == now:
                continue
            if name == METRICS:  # it grows meanwhile: what is there now, whole
                self.store.write(name, file.read_bytes())
            else:
                self.store.put(file, name)
            self.record[name] = now

    def _remove(self, steps: set[int]) -> None:
        for step in sorted(steps):
            self.store.delete(f"{CHECKPOINTS}/{step}.json")
            for name in self.store.files(f"{CHECKPOINTS}/{step}"):
                self.store.delete(name)
            self.done.discard(step)
            self.begun.discard(step)

    def close(self) -> None:
        """Wait until everything that is finished is there.

        Raises:
          OSError: it could not be copied; what is in the workdir is good.
        """
        self._end.set()
        if self._thread.ident is None:
            return  # it never began
        self._thread.join()
        error: Exception | None = None
        for number in range(LAST_TRIES):
            try:
                self.copy()
                return
            except Exception as found:  # noqa: BLE001
                error = found
                threading.Event().wait(2.0**number / 2)
        missing = sorted(set(saved_steps(self.workdir / CHECKPOINTS)) - self.done)
        raise OSError(
            f"{NAME}={self.store.url!r}: lacks checkpoints {missing}, and {self.workdir} has them: "
            f"{error}. Start the run again to copy them"
        ) from error


def check_mirror(cfg: Config, workdir: Path) -> None:
    """Raise unless the mirror is one that can be used; nothing is written.

    Raises:
      ValueError: an unknown scheme, a client that is not installed, a workdir in a bucket, the
        workdir itself.
    """
    url = cfg.train.mirror
    if not url or jax.process_index() > 0:
        return
    require(isinstance(workdir, Path), NAME, url, f"{workdir} is in a bucket and needs no mirror")
    store = Store(url, NAME)
    if store.is_local:
        inside = Path(store.root).resolve()
        apart = inside != workdir.resolve() and workdir.resolve() not in inside.parents
        require(apart, NAME, url, f"wants a place outside of {workdir}")


def open_mirror(cfg: Config, workdir: Path, say: Callable[[str], None]) -> Mirror | None:
    """Restore the workdir from its mirror where that is ahead, in process 0 for all of them.

    Returns:
      The mirror, in process 0 of a run that has one; nothing is copied to it yet.
    Raises:
      ValueError, OSError: see `Mirror.restore`; raised in every process.
    """
    if not cfg.train.mirror:
        return None
    mirror, refused = None, None
    if jax.process_index() == 0:
        try:
            mirror = Mirror(workdir, cfg.train.mirror, say)
            mirror.restore(cfg)
        except (ValueError, OSError) as error:
            refused = error
    if not agree(refused is None):
        raise refused or OSError(f"{NAME}: process 0 of this run could not restore it")
    return mirror
