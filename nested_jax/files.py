"""Files that are there whole or not at all, their hashes, and locks that name their owner.

A lock is a small JSON file that says who holds it: host, process, since when, and the command. It
appears by a hard link, which only one of several processes gets, also on a network file system.
`fcntl.flock` alone would not do: Lustre and older NFS keep it within one machine, or have none, and
it does not say who holds it. It has a second part here. The owner also takes it on the lock file,
so that a process that finds a dead owner on this machine knows that nobody else, such as a
container with process numbers of its own, still holds the lock or is just taking it over.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple

from nested_jax.errors import HeldError

try:
    import fcntl
except ImportError:  # Windows: a dead owner's lock has to be removed by hand
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"  # ends the names of files that are being written
LOCK = ".lock"  # of a folder
POLL_SECONDS = 0.05  # between two looks at a lock that is waited for
NOTE_SECONDS = 5.0  # after which a process that waits says so
OTHER_HOST_SECONDS = 1800.0  # after which it gives up on another machine, which may be dead
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)

Report = Callable[[str], None]


def git_commit() -> str | None:
    """Return the commit of the checkout that this package runs from, "+" if it was changed."""
    file = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(file.parent), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None  # no git on this machine
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", file.name) is None:
        return None  # installed, perhaps inside a checkout of something else
    return git("describe", "--always", "--abbrev=40", "--dirty=+")


# --- whole files ---------------------------------------------------------------------------------


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its name, in one rename, when it is whole and on disk."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    if not isinstance(path, Path):  # of a bucket, where every write is whole (storage.py)
        path.write_bytes(data)
        return
    with whole_file(path) as file:
        file.write(data)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(data, indent=2) + "\n").encode())


def replace_file(draft: Path, path: Path, report: Report) -> None:
    """Give `draft` the name `path`; a file of that name with other contents is set aside, aloud."""
    if path.exists() and file_sha256(path) != file_sha256(draft):
        when = datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y%m%d-%H%M%S")
        names = (path.with_name(f"{path.name}.{when}.{number}") for number in count())
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        report(f"{path} was there with other contents; they are in {aside.name} now")
    os.replace(draft, path)


# --- hashes --------------------------------------------------------------------------------------


def file_sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """Return the SHA-256 of a folder: its files' names and contents, in order."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()


# --- locks ---------------------------------------------------------------------------------------


class Owner(NamedTuple):
    """Who holds a lock."""

    host: str
    pid: int
    started: str  # when the process began, so that another process of the same number is told apart
    since: str  # when it took the lock
    command: str
    job: str  # of Slurm, which ends a job before it starts it again, elsewhere; "" is none
    attempt: int  # how often Slurm has started the job again
    token: str  # of this lock alone

    def is_dead(self) -> bool:
        """Whether this process is known to have ended."""
        me = own(self.token)
        if self.job and self.job == me.job and self.attempt < me.attempt:
            return True
        return self.host == me.host and process_start(self.pid) != self.started

    def is_elsewhere(self) -> bool:
        return self.host != socket.gethostname()


def hold_folder(folder: Path, wait: Report | None = None) -> Any:
    """Make `folder` and hold its lock while the context lasts; see `hold`."""
    folder.mkdir(parents=True, exist_ok=True)
    return hold(folder / LOCK, str(folder), wait)


@contextmanager
def hold(lock: Path, name: str, wait: Report | None = None) -> Iterator[None]:
    """Hold the lock file `lock` while the context lasts.

    The lock of a process that has ended, however it ended, is taken over. Whether a process of
    another machine lives cannot be told from here, so its lock is left alone.

    Args:
      name: what is locked, for messages.
      wait: where to say that another process is waited for; None refuses at once.
    Raises:
      HeldError: another process holds it.
    """
    begun, said = time.monotonic(), False
    while (file := take(lock)) is None:
        owner, waited = read_owner(lock), time.monotonic() - begun
        if owner is None:
            continue  # it has just been released
        if wait is None or (owner.is_elsewhere() and waited > OTHER_HOST_SECONDS):
            raise HeldError(f"{name} is in use by {describe(owner, lock)}")
        if not said and waited > NOTE_SECONDS:
            wait(f"waiting for {name}, in use by {describe(owner, lock)}")
            said = True
        time.sleep(POLL_SECONDS)
    with file:
        try:
            yield
        finally:
            mine = read_owner(lock)
            if mine is not None and mine.token == token_of(file):
                with suppress(OSError):  # the folder may have been removed meanwhile
                    lock.unlink()


def owner_of(folder: Path) -> Owner | None:
    """Return who holds the lock of a folder, None where nobody does."""
    owner = read_owner(folder / LOCK)
    return None if owner is None or not owner.token or owner.is_dead() else owner


def describe(owner: Owner, lock: Path) -> str:
    text = f"process {owner.pid} on {owner.host} since {owner.since} ({owner.command}); "
    advice = "if that machine is dead, remove" if owner.is_elsewhere() else "its lock is"
    return f"{text}{advice} {lock}"


def take(lock: Path) -> IO[bytes] | None:
    """Return the open lock file if this process has taken it, else None."""
    token = uuid.uuid4().hex
    draft = lock.with_name(f"{lock.name}.{token}.new")
    file = open(draft, "w+b")  # noqa: SIM115  (open as long as the lock is held)
    try:
        file.write(json.dumps(own(token)._asdict()).encode())
        file.flush()
        os.fsync(file.fileno())
        try_flock(file)
        taken = link(draft, lock) or replace_dead(draft, lock)
        found = read_owner(lock) if taken else None
        if found is not None and found.token == token:
            for left in lock.parent.glob(f"{lock.name}.*.new"):  # of processes that were killed
                left.unlink(missing_ok=True)
            return file
    except BaseException:
        file.close()
        raise
    finally:
        with suppress(OSError):
            draft.unlink()
    file.close()
    return None


def link(draft: Path, lock: Path) -> bool:
    """Give `draft` the name `lock` too, if nothing has it."""
    try:
        os.link(draft, lock)
    except FileExistsError:
        return False
    except FileNotFoundError:
        return False  # another process that has the lock has swept the draft away
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if lock.exists():
            return False
        os.replace(draft, lock)  # a file system without links: the last one to come has it
        time.sleep(4 * POLL_SECONDS)
    return True


def replace_dead(draft: Path, lock: Path) -> bool:
    """Replace the lock of a dead owner by `draft`; False if its owner may live."""
    owner = read_owner(lock)
    if fcntl is None or owner is None or not (owner.token == "" or owner.is_dead()):
        return False
    try:
        with open(lock, "r+b") as old:
            guarded = try_flock(old)
            if guarded is False or not same_file(old, lock):
                return False
            os.replace(draft, lock)
    except FileNotFoundError:
        return False  # released, or taken over, by another process
    if guarded is None:
        time.sleep(4 * POLL_SECONDS)  # of several that replace it at once, the last one has it
    return True


def try_flock(file: IO[bytes]) -> bool | None:
    """Return whether `file` could be locked in the kernel; None where that does not exist."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def same_file(file: IO[bytes], path: Path) -> bool:
    return os.fstat(file.fileno()).st_ino == path.stat().st_ino


def token_of(file: IO[bytes]) -> str:
    file.seek(0)
    return json.loads(file.read())["token"]


def read_owner(lock: Path) -> Owner | None:
    """Return whom a lock file names; an empty file, of an earlier version, names nobody.

    Returns None where there is no such file.

    Raises:
      HeldError: the file is no lock.
    """
    try:
        text = lock.read_bytes()
    except FileNotFoundError:
        return None
    if not text:
        return Owner("", 0, "", "", "", "", 0, token="")
    try:
        return Owner(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise HeldError(
            f"{lock}: is not a lock of nested_jax; remove it if no process uses the folder"
        ) from error


def own(token: str) -> Owner:
    """Return this process as an owner."""
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=process_start(os.getpid()) or "",
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        command=shlex.join(sys.argv)[:300],
        job=os.environ.get("SLURM_JOB_ID", ""),
        attempt=int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        token=token,
    )


def process_start(pid: int) -> str | None:
    """Return when a process of this machine began, None if there is none of that number."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        state, *fields = stat.rpartition(")")[2].split()
        return None if state in "ZX" else f"{boot()} {fields[18]}"  # proc(5): starttime
    if sys.platform == "win32":
        return ""  # cannot be told: alive
    shown = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip() or None


@cache
def boot() -> str:
    """Return what differs between two starts of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
