"""``train.profile_steps``: a trace of some steps of a start, for XProf or TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from nested_jax.config import Config
from nested_jax.errors import require
from nested_jax.storage import scheme

AFTER = 10  # steps of a start before the trace begins: compilation is over, caches are warm


def check_profile(cfg: Config, workdir: Path) -> None:
    """Raise if a run is too short for the trace that it is to write, or its workdir no folder."""
    steps, wanted = cfg.train.steps, cfg.train.profile_steps
    want = f"begins after {AFTER} steps: wants train.steps of {AFTER + wanted} or more, not {steps}"
    local = "wants a workdir on this machine: the profiler writes no bucket"
    require(not wanted or not scheme(workdir), "train.profile_steps", wanted, local)
    require(not wanted or AFTER + wanted <= steps, "train.profile_steps", wanted, want)


class Profile:
    """The trace of one start, as a context that writes it also when the run ends early."""

    def __init__(self, cfg: Config, workdir: Path, first: int, say: Callable[[str], None]) -> None:
        self.begin, self.count = first + AFTER, cfg.train.profile_steps
        self.folder, self.say = workdir / "profile", say
        self.since: int | None = None  # the step at which the trace began, while it runs
        self.step = first
        left = cfg.train.steps - first
        if self.count and AFTER + self.count > left:
            say(
                f"no profile in this start: train.profile_steps={self.count} wants "
                f"{AFTER + self.count} steps, {left} are left"
            )
            self.count = 0

    def __enter__(self) -> Profile:
        return self

    def at(self, step: int, state: Any) -> None:
        """Begin or end the trace before the step that follows `step`."""
        self.step = step
        if self.count and step == self.begin:
            jax.profiler.start_trace(str(self.folder))
            self.since = step
        if self.since is not None and step == self.since + self.count:
            jax.block_until_ready(state)
            self.stop(self.count)

    def stop(self, traced: int) -> None:
        self.since = None
        jax.profiler.stop_trace()
        short = "" if traced == self.count else f" of {self.count}"
        self.say(f"profile of {traced}{short} steps in {self.folder}")

    def __exit__(self, *_: object) -> None:
        if self.since is not None:
            self.stop(self.step + 1 - self.since)
