"""Prepared data in the user's cache directory: built once, by one process, whole or not at all."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from nested_jax.errors import HeldError
from nested_jax.files import Report, hold


def cache_root(cache_dir: str = "") -> Path:
    """Return where prepared data live.

    The first of: `cache_dir` (``data.cache_dir``), the variables NESTED_JAX_CACHE and
    XDG_CACHE_HOME (with ``nested_jax`` below it), the platform's cache directory.

    Raises:
      ValueError: none of these is given, and the account has no home folder.
    """
    if cache_dir:
        return Path(cache_dir).expanduser()
    if os.environ.get("NESTED_JAX_CACHE"):
        return Path(os.environ["NESTED_JAX_CACHE"]).expanduser()
    if os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    else:
        base = platform_cache()
    return base.expanduser() / "nested_jax"


def platform_cache() -> Path:
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"])
    try:
        home = Path.home()
    except RuntimeError as error:  # an account of a container, say
        want = "wants a folder, or NESTED_JAX_CACHE in the environment"
        raise ValueError(f"data.cache_dir='': this account has no home folder; {want}") from error
    below = {"win32": "AppData/Local", "darwin": "Library/Caches"}
    return home / below.get(sys.platform, ".cache")


def build_once(
    target: Path,
    build: Callable[[Path], None],
    report: Report,
    is_whole: Callable[[Path], bool] = Path.is_dir,
) -> Path:
    """Return `target`, having `build` fill it if it is not there.

    `build` writes into a fresh folder beside the target, which takes the target's name in one
    rename. One process builds while others wait for its lock; the lock of a dead process is taken
    over, so a killed build neither blocks the next one nor leaves anything that passes for whole.

    Raises:
      HeldError: a process of another machine has held the lock for very long.
      ValueError: the cache directory cannot be written.
    """
    if is_whole(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with hold(target.with_name(f"{target.name}.lock"), str(target), wait=report):
            if is_whole(target):
                return target
            remove_leftovers(target)
            folder = Path(tempfile.mkdtemp(prefix=f"{target.name}.{owner()}.", dir=target.parent))
            build(folder)
            if target.exists():
                shutil.rmtree(target)
            os.replace(folder, target)
    except HeldError:
        raise
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
