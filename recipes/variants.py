"""Variants of one experiment over seeds: ordinary runs that can be interrupted, and their table.

Every run is a run of launch.py in FOLDER/VARIANT-SEED: one that is done is not repeated, one that
was killed goes on from its checkpoint. The table has mean and standard deviation over seeds, the
difference to the first variant in pairs of one seed, and the time of a step as a multiple of its.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from eval.core.process import drive, run_many
from eval.core.report import mean_spread
from eval.core.report import table as markdown_table
from eval.core.same_text import TRAIN_ORDER, VALID_TEXT, Named, odd_ones
from nested_jax.config import from_saved, load_config, parse_overrides
from nested_jax.config.schema import difference
from nested_jax.errors import ROOT, require

HEADER = ("variant", "seeds", "tokens", "held-out loss", "bits per byte", "difference", "step time")
CONFIDENCE = 0.95


class Comparison(NamedTuple):
    """A config file, and what each variant of it changes; the first is what others differ from."""

    config: str  # FILE.py[:ARGUMENT], or "" where each variant names its own as its first word
    variants: dict[str, tuple[str, ...]]

    def words(self, variant: str) -> tuple[str, list[str]]:
        """Return the config file of a variant, and its flags."""
        flags = list(self.variants[variant])
        return (self.config, flags) if self.config else (flags[0], flags[1:])


class Result(NamedTuple):
    """What a finished run left."""

    valid_loss: float
    bits_per_byte: float | None
    tokens: int
    step_s: float  # median over the log lines but the first
    hashes: dict[str, str]  # of the text that was scored, and of the order of training
    train_loss: float | None = None
    writes: int = 0  # of all levels
    seconds: float | None = None
    parameters: int | None = None


Results = dict[str, dict[int, Result]]  # by variant and seed


def check(comparison: Comparison, extra: Sequence[str]) -> None:
    """Raise for a field, a value or a combination that cannot be, before anything runs."""
    for variant in comparison.variants:
        config, flags = comparison.words(variant)
        load_config(str(ROOT / config), parse_overrides([*extra, *flags]))


def run(
    comparison: Comparison,
    variant: str,
    seed: int,
    workdir: Path,
    extra: list[str],
    cores: tuple[int, ...] = (),
    stop: threading.Event | None = None,
) -> None:
    """Run launch.py to the end, going on where a killed run left off; its log lies beside it.

    Raises:
      SystemExit: with the status of launch.py if it failed.
    """
    config, flags = comparison.words(variant)
    command = ["launch.py", "--config", config, "--workdir", str(workdir)]
    command += [f"--config.seed={seed}", *extra, *flags]
    print(f"{workdir}: running", file=sys.stderr, flush=True)
    ended = drive(command, workdir, workdir.parent / "compiled", cores, stop)
    if ended is None:
        raise SystemExit(f"{workdir}: left to the driver that is running it")
    if ended.status:
        print(ended.last, file=sys.stderr)
        raise SystemExit(ended.status)


def run_grid(
    comparison: Comparison,
    folder: Path,
    seeds: Sequence[int],
    extra: list[str],
    jobs: int = 1,
    only_read: bool = False,
) -> Results:
    """Run what is not done, every variant of a seed before the next; return all results.

    Raises:
      ValueError: a finished run of another configuration.
    """
    results: Results = {variant: {} for variant in comparison.variants}
    places = {
        (variant, seed): folder.absolute() / f"{slug(variant)}-{seed}"
        for seed in seeds
        for variant in comparison.variants
    }
    works = {}
    for (variant, seed), workdir in places.items():
        if read(workdir) is None and not only_read:
            begin = partial(begin_run, comparison, variant, seed, workdir, extra)
            works[str(workdir)] = begin
    if works:
        run_many(works, jobs, lambda count, name, _: say(f"[{count}/{len(works)}] {name}: done"))
    for (variant, seed), workdir in places.items():
        result = read(workdir)
        if result is not None:
            require_same_config(comparison, variant, seed, workdir, extra)
            results[variant][seed] = result
    return results


def begin_run(
    comparison: Comparison,
    variant: str,
    seed: int,
    workdir: Path,
    extra: list[str],
    cores: tuple[int, ...],
    stop: threading.Event,
) -> None:
    run(comparison, variant, seed, workdir, extra, cores, stop)


def require_same_config(
    comparison: Comparison, variant: str, seed: int, workdir: Path, extra: list[str]
) -> None:
    """Raise where a finished run was made with other fields than are asked for now."""
    file = workdir / "config.json"
    if not file.is_file():
        return
    config, flags = comparison.words(variant)
    words = [f"--config.seed={seed}", *extra, *flags]
    wanted = load_config(str(ROOT / config), parse_overrides(words))
    changed = difference(from_saved(json.loads(file.read_text())), wanted)
    want = f"holds a run of another configuration ({'; '.join(changed[:3])}); wants another folder"
    require(not changed, "--out", str(workdir), want)


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def read(workdir: Path) -> Result | None:
    """Return the result of a run, None if it is not done."""
    if not (workdir / "summary.json").is_file():
        return None
    summary = json.loads((workdir / "summary.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    times = [line["step_s"] for line in lines if "step_s" in line]
    return Result(
        summary["valid_loss"],
        summary.get("valid_bits_per_byte"),
        summary["tokens"],
        statistics.median(times[1:] or times),
        {name: summary[name] for name in (VALID_TEXT, TRAIN_ORDER) if name in summary},
        summary.get("train_loss"),
        sum(summary.get("writes", {}).values()),
        summary.get("seconds"),
        summary.get("parameters"),
    )


def slug(variant: str) -> str:
    return variant.replace(",", "").replace(" ", "_")


def spread(values: Sequence[float]) -> str:
    return mean_spread(values, 1.0, 4)


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean (Student's t); None of one value."""
    if len(values) < 2:
        return None
    half = (
        statistics.stdev(values)
        / len(values) ** 0.5
        * stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)
    )
    mean = statistics.fmean(values)
    return mean - float(half), mean + float(half)


def table(results: Results) -> str:
    """Return Markdown: a line for each variant that has a result."""
    first = next(iter(results.values()))
    lines = []
    for variant, runs in results.items():
        if not runs:
            continue
        both = sorted(runs.keys() & first.keys())
        apart = [runs[seed].valid_loss - first[seed].valid_loss for seed in both]
        ratio = [runs[seed].step_s / first[seed].step_s for seed in both]
        bits = [r.bits_per_byte for r in runs.values() if r.bits_per_byte is not None]
        row = [
            variant,
            str(len(runs)),
            f"{next(iter(runs.values())).tokens:,}",
            spread([r.valid_loss for r in runs.values()]),
            spread(bits) if bits else "",
            spread(apart) if apart and runs is not first else "",
            f"{statistics.median(ratio):.2f}" if ratio else "",
        ]
        lines.append(row)
    return "\n".join([markdown_table(HEADER, lines), *not_comparable(results)])


def not_comparable(results: Mapping[str, Mapping[int, Result]]) -> list[str]:
    """Return a line for each run of other text than the rest, or of other rows than its seed."""
    runs = [
        (seed, Named(f"{variant}, seed {seed}", result.hashes))
        for variant, seeds in results.items()
        for seed, result in seeds.items()
    ]
    odd = odd_ones([run for _, run in runs], VALID_TEXT)
    for seed in dict.fromkeys(seed for seed, _ in runs):
        odd |= odd_ones([run for own, run in runs if own == seed], TRAIN_ORDER)
    return [f"\n**Not comparable**: {name}: {why}." for name, why in odd.items()]


def task_numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean over groups of each measure of a task's result, also with writes.

    Of gain, bits per byte and loss, the first that a group has stands for it.
    """
    found: dict[str, list[float]] = {}

    def add(group: Mapping[str, Any], end: str) -> None:
        one_of = [name for name in ("gain", "bits_per_byte", "loss") if name in group][:1]
        for name in ("acc", "acc_norm", "accuracy", "forgetting", *one_of):
            if isinstance(group.get(name), (int, float)):
                found.setdefault(f"{result['task']} {name}{end}", []).append(float(group[name]))

    for group in result["metrics"].values():
        add(group, "")
        add(group.get("memorized", {}), ", writing")
    return {name: statistics.fmean(values) for name, values in found.items()}
