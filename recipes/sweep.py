"""A grid of settings over seeds, as ordinary runs on equal data, and one table of them.

    python -m recipes.sweep --config configs/pilot.py:smoke --over teach.scale=0.05,0.1,0.2 \\
        --over teach.clip=0,5 --seeds 3 [--task "niah --haystack stdlib --context-lengths 256"]

Every combination of --over runs in OUT/SETTINGS-SEED with seeds 0 to N - 1: one that is done is not
run again, a killed one goes on. --task (repeatable) scores every run with a command of ``python -m
eval``. OUT/sweep.md and OUT/sweep.json have final loss, bits per byte, tasks, writes and time of
each setting, with 95 % intervals over seeds; the best is bold, and settings whose paired difference
from it is not clear of 0 are marked with ≈. What follows ``--`` goes to every run.

Exit status: 0 done, 2 bad input, else that of the run that failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.core.cli import Task, commands
from eval.core.flags import split_rest
from eval.core.report import number
from eval.core.report import table as markdown_table
from nested_jax.errors import require
from nested_jax.files import write_bytes, write_json
from recipes.steps import finish, guarded
from recipes.variants import (
    Comparison,
    Results,
    check,
    interval,
    not_comparable,
    run_grid,
    slug,
    spread,
    task_numbers,
)


def main(arguments: Sequence[str]) -> int:
    return guarded(lambda: sweep(*parse(arguments)))


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    own, extra = split_rest(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m recipes.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="FILE.py[:ARGUMENT]")
    parser.add_argument("--over", action="append", required=True, metavar="FIELD=A,B")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--task", action="append", default=[], help="of python -m eval, with flags")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--table", action="store_true", help="run nothing")
    flags = parser.parse_args(own)
    require(flags.seeds >= 1, "--seeds", flags.seeds, "wants 1 or more")
    require(flags.jobs >= 1, "--jobs", flags.jobs, "wants 1 or more")
    return flags, extra


def sweep(flags: argparse.Namespace, extra: list[str]) -> int:
    """Run the grid, score it, write the table."""
    grid = combinations(flags.over)
    comparison = Comparison(flags.config, grid)
    check(comparison, extra)
    tasks = [shlex.split(words) for words in flags.task]
    known = [name for name, found in commands().items() if isinstance(found, Task)]
    for words in tasks:
        name = words[0] if words else ""
        require(name in known, "--task", name, f"wants one of {', '.join(known)}, and its flags")
    seeds = range(flags.seeds)
    results = run_grid(comparison, flags.out, seeds, extra, flags.jobs, flags.table)
    scores = {
        variant: {
            seed: scored(flags.out / f"{slug(variant)}-{seed}", tasks, flags.table) for seed in runs
        }
        for variant, runs in results.items()
    }
    report = summarize(results, scores)
    text = "\n".join([markdown(report), *not_comparable(results)]) + "\n"
    if any(results.values()):
        command = shlex.join(["python", "-m", "recipes.sweep", *sys.argv[1:]])
        write_json(flags.out / "sweep.json", {"command": command, **report})
        write_bytes(flags.out / "sweep.md", f"`{command}`\n\n{text}".encode())
    print(text)
    return 0


def combinations(over: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the flags of every combination, by a short name.

    Raises:
      ValueError: not FIELD=A,B; a field that is named twice.
    """
    axes: dict[str, list[str]] = {}
    for text in over:
        name, equals, values = text.partition("=")
        name = name.removeprefix("--config.")
        right = bool(equals and name and values) and name not in axes
        require(right, "--over", text, "wants FIELD=A,B, each field once")
        # Commas inside brackets are part of a value: model.cms.periods=(64,256),(64,512)
        axes[name] = [part.strip() for part in re.split(r",(?![^(\[]*[)\]])", values)]
    found = {}
    for chosen in itertools.product(*axes.values()):
        pairs = list(zip(axes, chosen, strict=True))
        label = ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in pairs)
        found[label] = tuple(f"--config.{name}={value}" for name, value in pairs)
    size = len(list(itertools.product(*axes.values())))
    require(len(found) == size, "--over", list(over), "gives one combination twice")
    return found


def scored(workdir: Path, tasks: Sequence[Sequence[str]], only_read: bool) -> dict[str, float]:
    """Return the numbers of the tasks on a finished run; what is there is not made again.

    Raises:
      ValueError: a task that failed, with its command.
    """
    found: dict[str, float] = {}
    for words in tasks:
        out = workdir / "eval" / f"{slug('-'.join(words)).replace('/', '_')}.json"
        if not out.is_file() and not only_read:
            command = [*words, "--checkpoint", str(workdir.absolute())]
            finish([*command, "--out", str(out.absolute())], out)
        if out.is_file():
            found |= task_numbers(json.loads(out.read_text()))
    return found


def summarize(results: Results, scores: dict[str, dict[int, dict[str, float]]]) -> dict[str, Any]:
    """Return every setting's numbers, by seed and as intervals, and which is best."""
    rows: list[dict[str, Any]] = []
    for variant, runs in results.items():
        if not runs:
            continue
        losses = [one.valid_loss for one in runs.values()]
        columns: dict[str, list[float]] = {"held-out loss": losses}
        for name, field in (("bits per byte", "bits_per_byte"), ("training loss", "train_loss"),
                            ("writes", "writes"), ("seconds", "seconds")):  # fmt: skip
            values = [getattr(one, field) for one in runs.values()]
            if None not in values:
                columns[name] = values
        for name in dict.fromkeys(n for of_seed in scores[variant].values() for n in of_seed):
            columns[name] = [s[name] for s in scores[variant].values() if name in s]
        rows.append({"setting": variant, "seeds": list(runs), "values": columns,
                     "interval": interval(losses)})  # fmt: skip
    if not rows:
        return {"settings": [], "best": None}
    best = min(rows, key=lambda row: statistics.fmean(row["values"]["held-out loss"]))
    for row in rows:
        both = [seed for seed in row["seeds"] if seed in best["seeds"]]
        own, least = results[row["setting"]], results[best["setting"]]
        apart = [own[seed].valid_loss - least[seed].valid_loss for seed in both]
        row["difference"] = statistics.fmean(apart) if apart else None
        row["difference_interval"] = interval(apart)
        within = row["difference_interval"]
        row["as_good"] = row is not best and (within is None or within[0] <= 0)
    return {"settings": rows, "best": best["setting"]}


def markdown(report: dict[str, Any]) -> str:
    """Return the table of a report."""
    rows = report["settings"]
    if not rows:
        return "No run is done."
    names = list(dict.fromkeys(name for row in rows for name in row["values"]))
    lines = []
    for row in rows:
        best = row["setting"] == report["best"]
        mark = (
            f"**{row['setting']}**" if best else row["setting"] + (" ≈" if row["as_good"] else "")
        )
        cells = [spread(row["values"][n]) if n in row["values"] else "" for n in names]
        within = number(row["interval"]) if row["interval"] else "one seed"
        apart = "" if best else number(row["difference_interval"] or row["difference"])
        lines.append([mark, str(len(row["seeds"])), *cells, within, apart])
    header = ["setting", "seeds", *names, "95 % of held-out loss", "95 % of the difference"]
    return markdown_table(header, lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
