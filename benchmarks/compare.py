"""Variants of one experiment side by side, several seeds: runs that can be interrupted, one table.

    python benchmarks/compare.py optimizers [--root runs/compare --seeds 0 1 2]
    python benchmarks/compare.py characters -- --config.data.source=FOLDER --config.train.steps=300
    python benchmarks/compare.py optimizers --table        the table of the runs that are done

Every run is a run of launch.py in ROOT/NAME/VARIANT-SEED: one that is done is not repeated, one
that was killed goes on from its checkpoint. What follows ``--`` is given to all of them. The table
has mean and standard deviation over seeds, the difference to the first variant in pairs of one
seed, and the time of a step as a multiple of the first variant's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from eval.core.flags import split_rest  # noqa: E402
from eval.core.report import mean_spread  # noqa: E402
from eval.core.report import table as markdown_table  # noqa: E402
from eval.core.same_text import TRAIN_ORDER, VALID_TEXT, Named, odd_ones  # noqa: E402
from eval.proof.process import drive  # noqa: E402

HEADER = (
    "variant",
    "seeds",
    "tokens",
    "held-out loss",
    "bits per byte",
    "difference",
    "step time",
)


class Comparison(NamedTuple):
    """A config file, and what each variant of it changes; the first is what others differ from."""

    config: str
    variants: dict[str, tuple[str, ...]]


def optimizer(name: str, *more: str) -> tuple[str, ...]:
    return (f"--config.optim.name={name}", *more)


CHARACTERS = "configs/char_lstm.py"
COMPARISONS = {
    "writes": Comparison(
        "configs/pilot.py:smoke",
        {
            "writes": (),
            "writes off": ("--config.teach.mode=off",),
            # A Transformer with the MLP of the CMS levels together, and full attention.
            "transformer": (
                "--config.model.block=transformer",
                "--config.teach.mode=off",
                "--config.model.mlp_hidden=512",
                "--config.model.window=0",
            ),
        },
    ),
    "optimizers": Comparison(
        "configs/pilot.py:smoke",
        {
            "adamw": optimizer("adamw"),
            "muon": optimizer("muon"),
            "m3": optimizer("m3"),
            # CMS levels of the pilot: the fast one every 4th step, the slow one every 16th.
            "levels": optimizer("adamw", "--config.optim.periods=(1,4,16)"),
        },
    ),
    "characters": Comparison(
        CHARACTERS,
        {
            "persistent state, surprise objectives": (),
            "state reset every batch": ("--config.train.carry=none",),
            "no surprise objectives": ("--config.model.cms.surprise=()",),
        },
    ),
}


class Result(NamedTuple):
    """What a finished run left."""

    valid_loss: float
    bits_per_byte: float
    tokens: int
    step_s: float  # median over the log lines but the first
    hashes: dict[str, str]  # of the text that was scored, and of the order of training


def run(comparison: Comparison, variant: str, seed: int, workdir: Path, extra: list[str]) -> None:
    """Run launch.py to the end, going on where a killed run left off; its log lies beside it.

    Raises:
      SystemExit: with the status of launch.py if it failed.
    """
    command = ["launch.py", "--config", comparison.config, "--workdir", str(workdir)]
    command += [f"--config.seed={seed}", *extra, *comparison.variants[variant]]
    print(f"{workdir}: running", file=sys.stderr, flush=True)
    ended = drive(command, workdir, workdir.parent / "compiled")
    if ended is None:
        raise SystemExit(f"{workdir}: left to the driver that is running it")
    if ended.status:
        print(ended.last, file=sys.stderr)
        raise SystemExit(ended.status)


def read(workdir: Path) -> Result | None:
    """Return the result of a run, None if it is not done."""
    if not (workdir / "summary.json").is_file():
        return None
    summary = json.loads((workdir / "summary.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    times = [line["step_s"] for line in lines if "step_s" in line]
    return Result(
        summary["valid_loss"],
        summary["valid_bits_per_byte"],
        summary["tokens"],
        statistics.median(times[1:] or times),
        {name: summary[name] for name in (VALID_TEXT, TRAIN_ORDER) if name in summary},
    )


def slug(variant: str) -> str:
    return variant.replace(",", "").replace(" ", "_")


def spread(values: Sequence[float]) -> str:
    return mean_spread(values, 1.0, 4)


def table(results: dict[str, dict[int, Result]]) -> str:
    """Return Markdown: a line for each variant that has a result."""
    first = next(iter(results.values()))
    lines = []
    for variant, runs in results.items():
        if not runs:
            continue
        both = sorted(runs.keys() & first.keys())
        apart = [runs[seed].valid_loss - first[seed].valid_loss for seed in both]
        ratio = [runs[seed].step_s / first[seed].step_s for seed in both]
        row = [
            variant,
            str(len(runs)),
            f"{next(iter(runs.values())).tokens:,}",
            spread([r.valid_loss for r in runs.values()]),
            spread([r.bits_per_byte for r in runs.values()]),
            spread(apart) if apart and runs is not first else "",
            f"{statistics.median(ratio):.2f}" if ratio else "",
        ]
        lines.append(row)
    return "\n".join([markdown_table(HEADER, lines), *not_comparable(results)])


def not_comparable(results: dict[str, dict[int, Result]]) -> list[str]:
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


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    arguments, extra = split_rest(arguments)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=tuple(COMPARISONS))
    parser.add_argument("--root", type=Path, default=Path("runs/compare"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="run nothing")
    return parser.parse_args(arguments), extra


def main(arguments: list[str]) -> None:
    flags, extra = parse(arguments)
    comparison = COMPARISONS[flags.name]
    results: dict[str, dict[int, Any]] = {variant: {} for variant in comparison.variants}
    for seed in flags.seeds:  # every variant of a seed before the next: a part is a fair part
        for variant in comparison.variants:
            workdir = flags.root.absolute() / flags.name / f"{slug(variant)}-{seed}"
            if read(workdir) is None and not flags.table:
                run(comparison, variant, seed, workdir, extra)
            result = read(workdir)
            if result is not None:
                results[variant][seed] = result
    print(table(results))


if __name__ == "__main__":
    main(sys.argv[1:])
