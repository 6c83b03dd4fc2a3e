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
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from eval.core.flags import split_rest  # noqa: E402
from recipes.variants import Comparison, run_grid, table  # noqa: E402


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
    folder = flags.root / flags.name
    print(table(run_grid(comparison, folder, flags.seeds, extra, only_read=flags.table)))


if __name__ == "__main__":
    main(sys.argv[1:])
