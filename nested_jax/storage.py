"""Where files lie: in a folder or in a bucket, and copies between them that are verified.

A workdir is a folder or ``gs://bucket/path``, which Orbax writes by itself. What fsspec reaches
(``s3://``, ``gs://``, a path) can hold copies: `Store`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from nested_jax.errors import HeldError, import_extra, require
from nested_jax.files import LOCK, POLL_SECONDS, describe, file_sha256, own, read_owner, write_bytes

REMOTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(?=.)")  # pathlib makes gs:/ of gs://
CLIENTS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}  # package, by scheme
PARTIAL = ".partial"
CHUNK = 1 << 22  # bytes that are hashed at a time


def scheme(path: str | Path) -> str:
    """Return the scheme of a URL, as in ``gs``; "" of a path."""
    found = REMOTE.match(str(path))
    return found.group(1).lower() if found else ""


def as_path(path: str | Path, name: str = "workdir") -> Path:
    """Return a folder of this machine or of a bucket as an object with the methods of a `Path`.

    Args:
      name: of the flag or field, for messages.
    Raises:
      ValueError: a scheme that checkpoints cannot be written to, or its client is not installed.
    """
    kind = scheme(path)
    if not kind:
        return Path(path)
    want = "wants a folder or gs://BUCKET/PATH"
    if kind == "s3":
        want += "; Orbax cannot write s3://: take a folder, and train.mirror='s3://BUCKET/PATH'"
    require(kind == "gs", name, str(path), want)
    check_client(path, name)
    from etils import epath

    return cast(Path, epath.Path(REMOTE.sub("gs://", str(path))))


def check_client(url: str | Path, name: str) -> None:
    """Raise unless what reaches the URL is known and installed.

    Raises:
      ValueError: naming the field, and what to install.
    """
    kind = scheme(url)
    if kind in CLIENTS:
        import_extra(CLIENTS[kind], "cloud", f"for {name}={str(url)!r}")
        logging.getLogger("gcsfs").setLevel(logging.ERROR)  # it warns of every kind of bucket
    else:
        want = "wants a path, gs://BUCKET/PATH or s3://BUCKET/PATH"
        require(kind in ("", "file", "memory"), name, str(url), want)


# --- locks in a bucket ---------------------------------------------------------------------------


@contextmanager
def hold_bucket(folder: Path) -> Iterator[None]:
    """Hold the lock object of a folder in a bucket: only one of several can create it.

    The lock of a process of this machine that has ended is taken over, as `files.hold` does.

    Raises:
      HeldError: another process holds it, or may.
      OSError: the bucket cannot be written.
    """
    lock, token = folder / LOCK, uuid.uuid4().hex
    system = Store(str(folder)).system
    body = json.dumps(own(token)._asdict()).encode()
    while True:
        try:
            system.pipe_file(str(lock), body, mode="create")
        except FileExistsError:
            owner = read_owner(lock)
            if owner is None:
                continue  # it has just been released
            if not owner.is_dead():
                raise HeldError(f"{folder} is in use by {describe(owner, lock)}") from None
            with suppress(FileNotFoundError):
                lock.unlink()
            continue
        time.sleep(POLL_SECONDS)  # of several that removed a dead lock, the last one has it
        if (found := read_owner(lock)) is not None and found.token == token:
            break
    try:
        yield
    finally:
        found = read_owner(lock)
        if found is not None and found.token == token:
            with suppress(OSError):
                lock.unlink()


# --- copies --------------------------------------------------------------------------------------


class Store:
    """A folder that fsspec reaches; names in it are relative, with slashes.

    Errors of the service are `OSError`, whatever its client raises.
    """

    def __init__(self, url: str | Path, name: str = "url") -> None:
        check_client(url, name)
        self.url = REMOTE.sub(lambda found: f"{found.group(1)}://", str(url)).rstrip("/")
        fsspec = import_extra("fsspec", "data", f"for {self.url}")
        options = {"use_listings_cache": False} if scheme(url) in CLIENTS else {}
        self.system, self.root = fsspec.core.url_to_fs(self.url, **options)
        self.is_local = "file" in self.system.protocol

    def path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError:
            raise
        except Exception as error:  # botocore, aiohttp and google each have a family of their own
            said = (str(error).strip().splitlines() or [""])[0][:200]
            raise OSError(f"{self.url}/{name}: {type(error).__name__}: {said}") from error

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file, None where there is none."""
        with self._named(name):
            try:
                return cast(bytes, self.system.cat_file(self.path(name)))
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all."""
        with self._named(name):
            if self.is_local:
                Path(self.path(name)).parent.mkdir(parents=True, exist_ok=True)
                write_bytes(Path(self.path(name)), data)
            else:
                self.system.pipe_file(self.path(name), data)

    def files(self, folder: str = "") -> list[str]:
        """Return the names of all files below a folder."""
        with self._named(folder):
            found = self.system.find(self.path(folder))
        return sorted(path[len(self.root) + 1 :] for path in found)

    def delete(self, name: str) -> None:
        with self._named(name), suppress(FileNotFoundError):
            self.system.rm_file(self.path(name))
        if self.is_local:  # a bucket has no folders that could be left empty
            with suppress(OSError):
                for folder in Path(name).parents[:-1]:
                    Path(self.path(str(folder))).rmdir()

    def prune(self, folder: str) -> None:
        """Remove the folders below one that hold no file: of a deletion that was cut short."""
        if self.is_local:
            inside = sorted(Path(self.path(folder)).rglob("*"), reverse=True)
            for path in inside:
                with suppress(OSError):
                    path.rmdir()

    def sha256(self, name: str) -> str | None:
        """Return the hash of what is there, read back; None where there is no such file."""
        digest = hashlib.sha256()
        with self._named(name):
            try:
                with self.system.open(self.path(name), "rb") as file:
                    while block := file.read(CHUNK):
                        digest.update(block)
            except FileNotFoundError:
                return None
        return digest.hexdigest()

    def put(self, file: Path, name: str) -> str:
        """Copy a file here, read it back, and return its hash; what is there already stays.

        Raises:
          OSError: it cannot be written, or is not what was written.
        """
        want = file_sha256(file)
        with self._named(name):
            there = self.system.exists(self.path(name))
            same = there and self.system.size(self.path(name)) == file.stat().st_size
        if same and self.sha256(name) == want:
            return want
        with self._named(name):
            self._copy(file, name)
        if self.sha256(name) != want:
            raise OSError(f"{self.url}/{name}: what was written is not what is read back")
        return want

    def _copy(self, file: Path, name: str) -> None:
        if not self.is_local:
            self.system.put_file(str(file), self.path(name))
            return
        partial = Path(f"{self.path(name)}.{os.getpid()}{PARTIAL}")
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.system.put_file(str(file), str(partial))
            with open(partial, "rb") as copy:
                os.fsync(copy.fileno())
            os.replace(partial, self.path(name))
        finally:
            partial.unlink(missing_ok=True)

    def get(self, name: str, file: Path, sha256: str | None = None) -> None:
        """Copy a file from here, and check its hash.

        Raises:
          OSError: it cannot be read, or is not the one that was written.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._named(name):
            self.system.get_file(self.path(name), str(file))
        if sha256 is not None and (found := file_sha256(file)) != sha256:
            raise OSError(f"{self.url}/{name}: has SHA-256 {found[:12]}, wants {sha256[:12]}")


def size_of(path: Path) -> int:
    """Return the bytes of a file, 0 where there is none; etils names them otherwise in buckets."""
    if not path.exists():
        return 0
    found: Any = path.stat()
    return int(found.length if scheme(path) else found.st_size)


def age_of(path: Path) -> float:
    """Return the seconds since a file or folder was written."""
    found: Any = path.stat()
    return max(0.0, time.time() - float(found.mtime if scheme(path) else found.st_mtime))


def free_bytes(folder: Path) -> int:
    """Return what this process may still write below a folder that need not exist yet."""
    existing = Path(os.path.abspath(folder))
    while not existing.exists():
        existing = existing.parent
    found: Any = os.statvfs(existing)
    return int(found.f_bavail) * int(found.f_frsize)
