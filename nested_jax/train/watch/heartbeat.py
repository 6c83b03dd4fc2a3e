"""Signs of life: what each process of a run does, and a warning when no step ends any more.

Every process writes ``heartbeat/PROCESS.json`` into the workdir every few seconds, from a thread,
so that a step that hangs does not keep it from being written. The thread also compares how long
the current phase has taken with how long it took before. In a run of several processes all of them
stand still when one does; the files tell which one that is.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax

from nested_jax.storage import scheme

FOLDER = "heartbeat"
BEAT_SECONDS = 5.0
SILENT_SECONDS = 4 * BEAT_SECONDS  # without a sign, after which a process is taken for dead
LEAST_SECONDS = 60.0  # no phase is called stalled before
FIRST_SECONDS = 1800.0  # of a phase that has no time to compare with


class Beat(NamedTuple):
    """The last sign of one process."""

    process: int
    host: str
    pid: int
    step: int
    phase: str  # data, step, evaluate, save
    age: float  # seconds since the sign was written
    since: float  # seconds that it had been in the phase by then

    def text(self) -> str:
        return f"process {self.process} (pid {self.pid} on {self.host})"


class Heartbeat:
    """The signs of one process, as a context.

    Args:
      folder: the workdir; in a bucket no files are written, and the warning is of this process.
      factor: how many times the median of a phase is a stall; 0 never warns.
    """

    def __init__(self, folder: Path, factor: float, say: Callable[[str], None] | None = None):
        self.file = None if scheme(folder) else folder / FOLDER / f"{jax.process_index()}.json"
        self.factor = factor
        self.say = say or (lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201
        self.step, self.phase, self.since = 0, "", time.monotonic()
        self.times: dict[str, deque[float]] = {}
        self.warned = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)

    def at(self, step: int, phase: str) -> None:
        """Note that a phase begins, and how long the one before took."""
        now = time.monotonic()
        if self.phase:
            self.times.setdefault(self.phase, deque(maxlen=50)).append(now - self.since)
        self.step, self.phase, self.since, self.warned = step, phase, now, False

    def limit(self) -> float:
        """Return the seconds after which the current phase is stalled."""
        known = self.times.get(self.phase)
        if not known:
            return FIRST_SECONDS
        return max(LEAST_SECONDS, self.factor * statistics.median(known))

    def __enter__(self) -> Heartbeat:
        if self.file is not None and jax.process_index() == 0:
            with suppress(OSError):
                for left in self.file.parent.glob("*.json"):  # of a start with more processes
                    if int(left.stem) >= jax.process_count():
                        left.unlink()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if self.file is not None:
            with suppress(OSError):
                self.file.unlink()
                self.file.parent.rmdir()  # of the last process to end

    def _work(self) -> None:
        self.write()
        while not self._end.wait(BEAT_SECONDS):
            self.write()
            self.check()

    def write(self) -> None:
        """Write the sign; a disk that is full or gone ends a run elsewhere, with its own error."""
        if self.file is None:
            return
        sign = {
            "process": jax.process_index(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": self.step,
            "phase": self.phase,
            "since": time.monotonic() - self.since,
        }
        draft = self.file.with_suffix(".new")
        with suppress(OSError):
            self.file.parent.mkdir(exist_ok=True)
            draft.write_text(json.dumps(sign))
            os.replace(draft, self.file)

    def check(self) -> None:
        """Warn once if the phase is stalled: the first process that lives speaks for all."""
        waited, limit = time.monotonic() - self.since, self.limit()
        if not self.factor or not self.phase or self.warned or waited < limit:
            return
        beats = read_beats(self.file.parent.parent) if self.file is not None else []
        alive = [beat.process for beat in beats if beat.age < SILENT_SECONDS]
        self.warned = True
        if alive and alive[0] != jax.process_index():
            return
        self.say(
            f"stalled: {self.phase} of step {self.step} has taken {waited:.0f} s, usual is "
            f"{statistics.median(self.times.get(self.phase, [0.0])):.3g} s{blame(beats)}"
        )


def read_beats(workdir: Path) -> list[Beat]:
    """Return the signs that the processes of a run have left, in their order."""
    found = []
    for file in sorted((workdir / FOLDER).glob("*.json"), key=lambda p: (len(p.stem), p.stem)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            age = max(0.0, time.time() - file.stat().st_mtime)
            row: dict[str, Any] = json.loads(file.read_text())
            found.append(Beat(**row, age=age))
    return found


def blame(beats: list[Beat]) -> str:
    """Return which processes the others wait for, as far as their signs tell."""
    if len(beats) < 2:
        return ""
    silent = [beat for beat in beats if beat.age >= SILENT_SECONDS]
    if silent:
        said = [f"{beat.text()} has given no sign for {beat.age:.0f} s" for beat in silent]
        return "; " + ", ".join(said)
    waiting = max(beats, key=lambda beat: (beat.step, beat.phase == "step"))
    late = [
        b for b in beats if (b.step, b.phase == "step") < (waiting.step, waiting.phase == "step")
    ]
    if late:
        said = [f"{beat.text()} is in {beat.phase} of step {beat.step}" for beat in late]
        return "; " + ", ".join(said)
    return "; all processes are in the same phase and give signs"
