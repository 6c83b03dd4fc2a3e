"""The example checkpoint: ``python -m recipes.example --out examples/checkpoint``.

Trains a HOPE with attention of 1 M parameters on the embedded text (300 steps; 10 to 15 minutes on
two CPU cores), scores it, and bundles it with `eval release`. A command that was stopped goes on.
What follows ``--`` goes to launch.py. Exit status: 0 done, 2 bad input, or that of launch.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.core.flags import split_rest
from eval.core.process import drive
from nested_jax.errors import require
from recipes.steps import finish, guarded

CONFIG = "configs/pilot.py:smoke,steps=300"
SMALL = ("--config.model.dim=128", "--config.model.mlp_hidden=192")
MOST_BYTES = 6_000_000  # of the bundle, which is committed


def main(arguments: Sequence[str]) -> int:
    own, extra = split_rest(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m recipes.example",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, default=Path("examples/checkpoint"))
    parser.add_argument("--workdir", type=Path, default=Path("runs/example"))
    flags = parser.parse_args(own)
    return guarded(lambda: make(flags, extra))


def make(flags: argparse.Namespace, extra: list[str]) -> int:
    """Train, score and bundle what is not there yet."""
    out, workdir = flags.out.absolute(), flags.workdir.absolute()
    require(not out.exists(), "--out", str(flags.out), "exists; wants the path of a new folder")
    if not (workdir / "summary.json").is_file():
        command = ["launch.py", "--config", CONFIG, "--workdir", str(workdir), *SMALL, *extra]
        ended = drive(command, workdir, workdir.parent / "compiled")
        if ended is None or ended.status:
            print(ended.last if ended else "left to the driver that runs it", file=sys.stderr)
            return ended.status if ended else 2
    results = workdir / "eval"
    for task, flagged in (
        ("perplexity", "--segments run --max-tokens 4096 --doc-tokens 1024 --memorize"),
        ("passkey", "--haystack stdlib --context-lengths 128 --samples-per-length 20"),
    ):
        file = results / f"{task}.json"
        finish([task, "--checkpoint", str(workdir), *flagged.split(), "--out", str(file)], file)
    missing = "validation,coverage,data_commit,tasks"  # of embedded text, on no benchmark
    words = [
        "release",
        "--checkpoint",
        str(workdir),
        "--results",
        str(results),
        "--name",
        "example",
    ]
    finish([*words, "--out", str(out), "--allow-missing", missing], out / "manifest.json")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    require(size < MOST_BYTES, "bundle", size, f"wants less than {MOST_BYTES:,} bytes")
    print(f"{out}: {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
