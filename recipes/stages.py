"""Stages of an experiment: each is done once, and a killed experiment goes on where it was.

``OUT/stages.json`` has the stages that are done, each with what it found and how long it took, and
a hash of the settings: a folder holds one experiment.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nested_jax.data.prepare.text_sources import plan_hash
from nested_jax.data.records import read_object
from nested_jax.errors import require
from nested_jax.files import hold_folder, write_json
from nested_jax.machine import human_bytes

RECORD = "stages.json"


class Stage(NamedTuple):
    """A part of an experiment: what it is called, how long it takes, and what does it.

    `run` returns what the report needs, as JSON data. It can be killed at any time and run again.
    """

    name: str
    weight: float  # time that it takes, in any unit that all stages share; for the ETA
    run: Callable[[], Mapping[str, Any]]


def run_stages(
    stages: Sequence[Stage], out: Path, settings: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Run the stages that are not done; return what each one found, by its name.

    Raises:
      HeldError: another process works in `out`.
      ValueError: `out` holds an experiment of other settings.
    """
    with hold_folder(out):
        done = read_done(out, settings)
        spent = weighed = 0.0
        for number, stage in enumerate(stages, 1):
            place = f"[{number}/{len(stages)}] {stage.name}"
            if stage.name in done:
                say(f"{place}: done before")
                continue
            left = [s for s in stages if s.name not in done]
            say(f"{place}{eta(left, spent, weighed)}")
            began = time.perf_counter()
            found = dict(stage.run())
            seconds = time.perf_counter() - began
            spent, weighed = spent + seconds, weighed + stage.weight
            done[stage.name] = {"seconds": round(seconds, 1), "found": found}
            write_json(out / RECORD, {"plan": plan_of(settings), "stages": done})
        return {name: row["found"] for name, row in done.items()}


def eta(left: Sequence[Stage], spent: float, weighed: float) -> str:
    """Return how long the stages that are left take, judged by those that this start has run."""
    if not weighed:
        return ""
    seconds = spent / weighed * sum(stage.weight for stage in left)
    return f" (about {seconds / 60:.0f} min left)" if seconds >= 90 else f" ({seconds:.0f} s left)"


def plan_of(settings: Mapping[str, Any]) -> str:
    return plan_hash(sorted((k, str(v)) for k, v in settings.items()))


def read_done(out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    if not (out / RECORD).is_file():
        return {}
    record = read_object(out / RECORD, plan=str, stages=dict)
    want = "holds an experiment of other settings; name another folder"
    require(record["plan"] == plan_of(settings), "--out", str(out), want)
    return dict(record["stages"])


def check_space(out: Path, needed: int) -> None:
    """Raise unless the file system of `out` has room for `needed` bytes more."""
    existing = out.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    want = f"has {human_bytes(free)} free, the experiment needs {human_bytes(needed)}"
    require(free >= needed, "--out", str(out), want)
