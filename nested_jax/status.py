"""Where a run stands: ``python -m nested_jax.status RUN [RUN ...] [--json]``.

    RUN       a workdir: a folder, or gs://BUCKET/PATH
    --json    one JSON object per run

Reads the workdir and starts nothing. Exit status: 0; 2 where there is no run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from nested_jax.errors import HeldError, require
from nested_jax.files import LOCK, Owner, read_owner
from nested_jax.machine import human_bytes
from nested_jax.storage import age_of, scheme
from nested_jax.train.watch.heartbeat import SILENT_SECONDS, Beat, read_beats
from nested_jax.train.workdir import (
    CHECKPOINTS,
    COMMITTED,
    CONFIG,
    METRICS,
    STARTS,
    SUMMARY,
    locate,
    saved_steps,
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nested_jax.status",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args(arguments)
    try:
        for run in flags.runs:
            found = status(run)
            text = json.dumps(found) if flags.json else "\n".join(lines_of(found))
            sys.stdout.write(text + "\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"status: error: {error}\n")
        return 2
    return 0


def status(run: str | Path) -> dict[str, Any]:
    """Return where a run stands.

    Raises:
      ValueError: no run there.
    """
    workdir, _ = locate(run)
    known = (workdir / CONFIG).is_file()
    require(known, "RUN", str(run), f"has no {CONFIG}; wants a workdir of launch.py")
    train = json.loads((workdir / CONFIG).read_text())["train"]
    rows = [] if not (workdir / METRICS).exists() else list(json_lines(workdir / METRICS))
    starts = [] if not (workdir / STARTS).exists() else list(json_lines(workdir / STARTS))
    steps = [row for row in rows if "loss" in row]
    scored = [row for row in rows if "valid_loss" in row]
    folder = workdir / CHECKPOINTS
    saved = saved_steps(folder)
    aside = sorted(p.name for p in folder.iterdir() if "." in p.name) if folder.is_dir() else []
    beats = [] if scheme(workdir) else read_beats(workdir)
    owner = owner_in(workdir)
    return {
        "run": str(workdir),
        "state": state_of((workdir / SUMMARY).exists(), owner, beats),
        "owner": owner._asdict() if owner is not None else None,
        "step": steps[-1]["step"] if steps else 0,
        "steps": train["steps"],
        "last": steps[-1] if steps else None,
        "valid": scored[-1] if scored else None,
        "checkpoints": saved,
        "set_aside": aside,
        "saved_seconds_ago": age_of(newest_file(folder / str(saved[-1]))) if saved else None,
        "processes": [beat._asdict() for beat in beats],
        "starts": len(starts),
        "start": starts[-1] if starts else None,
        "mirror": train.get("mirror", ""),
    }


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file that may be being written: a last line that is cut is left."""
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def owner_in(workdir: Path) -> Owner | None:
    try:
        return read_owner(workdir / LOCK)
    except HeldError:
        return None


def newest_file(step: Path) -> Path:
    """Return the file of a checkpoint that is written last; a bucket has no time of a folder."""
    return step / COMMITTED if scheme(step) else step


def state_of(ended: bool, owner: Owner | None, beats: list[Beat]) -> str:
    """Return the state in a word or two.

    Whether a process of another machine lives shows in its signs of life alone.
    """
    if owner is None:
        return "done" if ended else "stopped"
    if owner.is_dead():
        return "killed"
    silent = [beat for beat in beats if beat.age >= SILENT_SECONDS]
    if silent:
        return "no sign of " + ", ".join(f"process {beat.process}" for beat in silent)
    return "running"


def lines_of(found: dict[str, Any]) -> Iterator[str]:
    """Yield what is shown of a run."""
    owner, last, valid, start = (found[name] for name in ("owner", "last", "valid", "start"))
    by = f" (process {owner['pid']} on {owner['host']} since {owner['since']})" if owner else ""
    yield f"{found['run']}: {found['state']}{by}"
    line = f"  step {found['step']}/{found['steps']}"
    if last is not None:
        left = timedelta(seconds=round((found["steps"] - last["step"]) * (last["step_s"] or 0)))
        speed = f"{last['tokens_per_s'] or 0:,.0f} tokens/s"
        line += f"  loss {show(last['loss'])}  {speed}  {left} left at this speed"
    yield line
    if valid is not None:
        yield f"  step {valid['step']}  valid loss {show(valid['valid_loss'])}"
    saved, ago = found["checkpoints"], found["saved_seconds_ago"]
    when = f", the newest {timedelta(seconds=round(ago))} ago" if ago is not None else ""
    yield f"  checkpoints {saved or 'none yet'}{when}"
    if found["set_aside"]:
        yield f"  beside them {', '.join(found['set_aside'])}"
    for beat in found["processes"]:
        doing = f"{beat['phase']} of step {beat['step']} for {beat['since'] + beat['age']:.0f} s"
        where = f"process {beat['process']} (pid {beat['pid']} on {beat['host']})"
        yield f"  {where}: {doing}, sign of life {beat['age']:.0f} s ago"
    if start is not None:
        mesh = ", ".join(f"{name} {size}" for name, size in start["mesh"].items())
        need = start["needs"].get("step_bytes")
        needs = f", {human_bytes(need)} per device" if need else ""
        yield (
            f"  start {found['starts']}, from step {start['step']} at {start['time']}: "
            f"{start['devices']}, mesh {mesh}, {start['processes']} process(es){needs}"
        )
    if found["mirror"]:
        yield f"  mirror {found['mirror']}"


def show(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
