"""Runs of launch.py as processes: one with its log beside its workdir, or many at a time."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from nested_jax.errors import ROOT
from nested_jax.files import owner_of, try_flock

POLL = 0.2  # seconds between looks at a running cell
STOPPED = (130, 143)  # exit statuses of a run that a signal stopped, after saving
# Buffers in huge pages, which glibc keeps between steps instead of giving them back to the kernel:
# README, "Use".
HUGE_PAGES = ":".join(
    (
        "glibc.malloc.hugetlb=1",
        "glibc.malloc.mmap_threshold=17179869184",
        "glibc.malloc.trim_threshold=17179869184",
    )
)


# Done on some cores until it ends, or until the event is set.
Work = Callable[[tuple[int, ...], threading.Event], Any]


class Ended(NamedTuple):
    """How a run ended."""

    status: int
    last: str  # line of its log


def drive(
    command: Sequence[str],
    workdir: Path,
    compiled: Path,
    cores: tuple[int, ...] = (),
    stop: threading.Event | None = None,
    is_done: Callable[[], bool] = lambda: False,
) -> Ended | None:
    """Run the arguments of python to the end; None where another driver runs them, or has.

    Args:
      workdir: of the run; its log lies beside it.
      compiled: folder in which all runs share what they compile.
      cores: to which the run keeps; () is all.
      stop: ends the run, which saves and goes on from there the next time.
      is_done: asked once nobody else can be running it.
    Raises:
      KeyboardInterrupt: the run was stopped by a signal; it has saved and can go on.
    """
    environ = {**os.environ}
    environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled))
    environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    environ.setdefault("GLIBC_TUNABLES", HUGE_PAGES)
    workdir.parent.mkdir(parents=True, exist_ok=True)
    stop = stop or threading.Event()
    with open(log_file(workdir), "ab") as log:
        # The run inherits the lock with its output: it outlives a driver that is killed.
        if try_flock(log) is False or owner_of(workdir) or is_done():
            return None
        words = [sys.executable, *command]
        process = subprocess.Popen(words, cwd=ROOT, env=environ, stdout=log, stderr=log)
        pin(process.pid, cores)
        while process.poll() is None:
            if stop.wait(POLL):
                process.terminate()
                process.wait()
        status = process.returncode
    if status < 0 or status in STOPPED:
        raise KeyboardInterrupt
    if status == 2 and owner_of(workdir):
        return None  # a driver of another machine, which the lock of the log does not stop
    text = log_file(workdir).read_text(encoding="utf-8", errors="replace")
    return Ended(status, "".join(text.strip().splitlines()[-1:]))


def log_file(workdir: Path) -> Path:
    return workdir.with_name(workdir.name + ".log")


def pin(process: int, cores: tuple[int, ...]) -> None:
    """Keep a process to some cores, where the system can."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process, cores)


def share_cores(jobs: int) -> list[tuple[int, ...]]:
    """Divide the cores of this process among `jobs` workers; () pins nothing."""
    if not hasattr(os, "sched_getaffinity"):
        return [()] * jobs
    cores = sorted(os.sched_getaffinity(0))
    return [tuple(cores[i::jobs]) for i in range(jobs)]


def run_many(
    works: Mapping[str, Work],
    jobs: int,
    done: Callable[[int, str, Any], None],
    after: Mapping[str, str] | None = None,
) -> None:
    """Do works in their order, `jobs` at a time, each on cores of its own.

    Args:
      done: told of each that has ended: how many have, its name, and what it returned.
      after: the name of the work that must end before one begins; it stands before it.
    Raises:
      Exception: what a work raised; the others are stopped.
    """
    cores: queue.SimpleQueue[tuple[int, ...]] = queue.SimpleQueue()
    for share in share_cores(jobs):
        cores.put(share)
    stop = threading.Event()
    running: dict[str, Future[tuple[str, Any]]] = {}

    def begin(name: str) -> tuple[str, Any]:
        first = (after or {}).get(name)
        if first in running:
            running[first].result()
        if stop.is_set():
            raise KeyboardInterrupt
        share = cores.get()
        try:
            return name, works[name](share, stop)
        finally:
            cores.put(share)

    with ThreadPoolExecutor(jobs) as pool:
        for name in works:
            running[name] = pool.submit(begin, name)
        try:
            for count, future in enumerate(as_completed(running.values()), 1):
                done(count, *future.result())
        except BaseException:
            stop.set()
            for future in running.values():
                future.cancel()
            raise
