"""Faults at every point: ``python -m benchmarks.faults WHAT [--out FILE]``.

    operations    a run with a mirror, and the sharder: every operation that changes a file is
                  listed. Those of one kind on files that one line of code treats alike are a
                  class. For each class: a kill before and after it, the write torn, the machine
                  lost (only the mirror is left), a full disk, an I/O error
    kills         kill -9 at --count random moments of a run of --processes processes
    table FILE    the table of docs/scaling.md, of a file that was written

After each fault the same command is run again. It has to end in the bits of an undisturbed run:
parameters, every line of the log once, summary, checkpoints. Wants a C compiler.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults import runs, shim

# Flags of one kind of fault only.
OWN = {
    "operations": ("every", "all", "scenario", "errors"),
    "kills": ("count", "processes", "seed"),
}
COLUMNS = ("scenario", "fault", "operations", "classes", "faults")
STEPS = 150  # of a run that is killed
# A process that has imported everything and started nothing, of which those of a run are copies:
# importing takes longer than the steps between two kills.
FORKS = multiprocessing.get_context("forkserver")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["operations", "kills", "table"])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--out", type=Path, help="JSON lines to add to")
    parser.add_argument("--count", type=int, default=100, help="of kills")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills")
    parser.add_argument("--every", type=int, default=1, help="take each n-th class")
    parser.add_argument("--all", action="store_true", help="each operation is a class of its own")
    parser.add_argument("--scenario", choices=["train", "shard"], help="one alone of operations")
    parser.add_argument("--errors", choices=["too", "no", "only"], default="too")
    flags = parser.parse_args(arguments)
    for what, names in OWN.items():
        for name in names if flags.what != what else ():
            if getattr(flags, name) != parser.get_default(name):
                parser.error(f"--{name}: belongs to {what}, not to {flags.what}")
    if flags.what == "table":
        print("\n".join(table([json.loads(line) for line in flags.file.read_text().splitlines()])))
        return 0
    with tempfile.TemporaryDirectory(prefix="faults é ") as name:
        folder = Path(name)
        runs.write_text(folder / "text")
        work = operations if flags.what == "operations" else kills
        bad = 0
        for row in work(folder, flags):
            bad += row["lost"]
            emit({**row, "python": platform.python_version()}, flags.out)
    return int(bad > 0)


def emit(row: dict[str, Any], out: Path | None) -> None:
    text = json.dumps(row)
    print(text, flush=True)
    if out is not None:
        with open(out, "a") as file:
            file.write(text + "\n")


# --- every operation -----------------------------------------------------------------------------


def operations(folder: Path, flags: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the counts of each kind of fault, for the run and for the sharder."""
    # The library has to be there from the start of a process, under a name without spaces.
    library = shim.build(Path(tempfile.mkdtemp(prefix="shim")))
    environ = {**runs.environment(folder), "LD_PRELOAD": str(library)}
    for scenario in ("train", "shard") if flags.scenario is None else (flags.scenario,):
        out = folder / f"{scenario}.jsonl"
        command = [sys.executable, "-m", "benchmarks.faults.scenario", scenario, str(folder)]
        command += [str(out), str(flags.every), flags.errors, str(int(flags.all))]
        subprocess.run(command, env=environ, check=True, cwd=runs.ROOT)
        yield from (json.loads(line) for line in out.read_text().splitlines())


# --- random kills --------------------------------------------------------------------------------


def kills(folder: Path, flags: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row: how many kills there were, and of how many runs, all with the same bits.

    A run that has come to its end between kills is compared, and the next one begins.
    """
    values = runs.fields(folder, STEPS) | {"train.eval_every": 50}
    rng = random.Random(flags.seed)
    run, want = folder / "run", folder / "want"
    os.environ |= runs.environment(folder)
    FORKS.set_forkserver_preload(["launch", "nested_jax.train.trainer"])
    start(values, want, flags.processes, None)
    expected, lost, done, ended = runs.outcome(want), [], 0, 0
    while done < flags.count or run.exists():
        left = done < flags.count
        before = (run / "metrics.jsonl").read_bytes().count(b"\n") if run.exists() else 0
        moment = (before + rng.choice([0, 0, 1, 2, 3, 5]), rng.random() * 0.05, rng)
        done += start(values, run, flags.processes, moment if left else None)
        if (run / "summary.json").exists():
            start(values, run, flags.processes, None)  # killed after its last file
            ended += 1
            found = runs.differences(partial(runs.outcome, run), expected)
            lost += [found] if found else []
            shutil.rmtree(run)
    yield {
        "scenario": f"train, {flags.processes} processes",
        "fault": "kill -9",
        "faults": done,
        "recovered": 0 if lost else done,
        "lost": len(lost),
        "what": lost,
        "runs": ended,
        "steps": STEPS,
        "seed": flags.seed,
    }


def start(
    values: dict[str, Any],
    workdir: Path,
    count: int,
    moment: tuple[int, float, random.Random] | None,
) -> bool:
    """Start a run of several processes; kill one or all of them at the moment. Was it killed?"""
    log = workdir.with_suffix(".log")
    port = free_port()
    given = (runs.arguments(values, workdir), log, port, count)
    processes = [FORKS.Process(target=runs.launched, args=(*given, i)) for i in range(count)]
    for process in processes:
        process.start()
    if moment is None:
        for process in processes:
            process.join()
        status = [process.exitcode for process in processes]
        if any(status):
            raise RuntimeError(f"{status}: {log.read_text()[-2000:]}")
        return False
    lines, delay, rng = moment
    file = workdir / "metrics.jsonl"
    ready = lambda: file.exists() and file.read_bytes().count(b"\n") > lines  # noqa: E731
    if rng.random() < 0.1:
        time.sleep(rng.random() * 3)  # while it starts, too
    else:
        while all(process.is_alive() for process in processes) and not ready():
            time.sleep(0.005)
        time.sleep(delay)
    killed = any(process.is_alive() for process in processes)
    victims = processes if rng.random() < 0.5 else [rng.choice(processes)]
    for process in victims:
        process.kill()
    if killed and len(victims) < len(processes):
        time.sleep(0.2)  # the other one notices, or hangs as it would until the scheduler ends it
    for process in processes:
        process.kill()
        process.join()
    return killed


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# --- the table -----------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows as Markdown."""
    head = ["what", "fault", "operations", "classes", "faults", "same bits after a restart"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row.get(name, "") for name in COLUMNS]
        lines.append(f"| {' | '.join(map(str, [*cells, row['recovered']]))} |")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
