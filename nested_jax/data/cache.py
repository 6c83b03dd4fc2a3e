"""Prepared data in the user's cache directory: built once, by one process, whole or not at all."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

WAIT_NOTE_SECONDS = 5.0  # after which a process that waits for another's build says so

Report = Callable[[str], None]


def cache_root(cache_dir: str = "") -> Path:
    """Return where prepared data live.

    The first of: `cache_dir` (``data.cache_dir``), the variables NESTED_JAX_CACHE and
    XDG_CACHE_HOME (with ``nested_jax`` below it), the platform's cache directory.
    """
    if cache_dir:
        return Path(cache_dir).expanduser()
    if os.environ.get("NESTED_JAX_CACHE"):
        return Path(os.environ["NESTED_JAX_CACHE"]).expanduser()
    if os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return base.expanduser() / "nested_jax"


def build_once(
    target: Path,
    build: Callable[[Path], None],
    report: Report,
    is_whole: Callable[[Path], bool] = Path.is_dir,
) -> Path:
    """Return `target`, having `build` fill it if it is not there.

    `build` writes into a fresh folder beside the target, which takes the target's name in one
    rename. One process builds while others wait on a file lock; the system drops the lock of a
    dead process, so a killed build neither blocks the next one nor leaves anything that passes
    for whole.

    Raises:
      ValueError: the cache directory cannot be written.
    """
    if is_whole(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f"{target.name}.lock"), report):
            if is_whole(target):
                return target
            remove_leftovers(target)
            folder = Path(tempfile.mkdtemp(prefix=f"{target.name}.{owner()}.", dir=target.parent))
            build(folder)
            if target.exists():
                shutil.rmtree(target)
            os.replace(folder, target)
    except OSError as error:
        raise ValueError(
            f"{target}: cannot write the prepared data ({error}); set data.cache_dir or "
            "NESTED_JAX_CACHE to a folder with space that can be written"
        ) from error
    return target


def owner() -> str:
    """Return a name part of temporary folders that tells whose they are."""
    return f"tmp-{socket.gethostname().replace('.', '_')}-{os.getpid()}"


def remove_leftovers(target: Path) -> None:
    """Remove what killed builds of this host left. The caller holds the lock, so none is alive."""
    host = owner().rsplit("-", 1)[0]
    for folder in target.parent.glob(f"{target.name}.{host}-*"):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(path: Path, report: Report) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the system releases it when the process ends."""
    with open(path, "a+b") as file:
        started, said = time.monotonic(), False
        while not try_lock(file):
            if not said and time.monotonic() - started > WAIT_NOTE_SECONDS:
                report(f"waiting for another process that holds {path}")
                said = True
            time.sleep(0.05)
        try:
            yield
        finally:
            unlock(file)


if sys.platform == "win32":
    import msvcrt

    def try_lock(file: IO[bytes]) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def unlock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
