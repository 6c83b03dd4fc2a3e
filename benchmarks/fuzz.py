"""Random configurations of every block kind: ``python -m benchmarks.fuzz [--count 300]``.

    --count N      configurations, drawn by hypothesis from the annotations of the fields
    --seconds S    stop after so long (default: none); the same N are drawn, fewer are run
    --seed K       of the draws
    --out FILE     JSON lines to add to

Each trains two steps, ends, and goes on for a third with finite losses; or it is refused with exit
status 2 and a line that names a field (as it starts; or as it goes on, where the number of steps
decides a field). Exit status 1 if one does neither.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import math
import re
import sys
import tempfile
import time
import traceback
import typing
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import hypothesis
import jax
from hypothesis import strategies as st

import launch
from benchmarks.faults.runs import write_text
from nested_jax.config import Config
from nested_jax.config.blocks import BLOCKS
from nested_jax.config.fields import Range, block_of, hints

ROOT = Path(__file__).resolve().parent.parent
MOST = 8  # of a number that is drawn: sizes stay small
# Drawn from these alone: what makes a run large, or is of this machine.
SIZES: dict[str, tuple[Any, ...]] = {
    "model.dim": (8, 12, 16),
    "model.layers": (1, 2),
    "model.heads": (1, 2, 3),
    "model.mlp_hidden": (8, 12),
    "model.cms.periods": ((8,), (8, 16), (4, 8), (8, 12)),
    "model.memory.chunk": (4, 8, 16),
    "model.memory.generator_chunk": (4, 8),
    "teach.chunk": (4, 8, 16),
    "data.seq_len": (16, 24, 32),
    "data.align": (0, 8, 16),
    "train.batch_size": (2, 4),
    "train.grad_accum": (1, 2, 3),
    "model.max_len": (32, 64),
    "model.window": (0, 4, 8),
    "model.lstm_hidden": (8, 12),
}
FIXED = ("seed", "data", "mesh", "train.steps", "train.init_from", "train.mirror", "train.wandb")
FIXED += ("train.tensorboard", "train.profile_steps", "train.eval_tasks", "model.vocab_size")
FIXED += ("train.save_every", "train.log_every", "model.size", "model.block")
# What a refusal names: a field that is wrong, or one whose value follows from the number of steps.
FIELD = r"launch\.py: error: .*\b[a-z0-9_]+(\.[a-z0-9_]+)*="
CHANGE = r"launch\.py: error: .*\bconfig(\.[a-z0-9_]+)+: \S+ -> \S+"
NAMED = ("trained", "refused", "refused as it goes on")
BASE = {
    "model.dim": 16,
    "model.layers": 2,
    "model.heads": 2,
    "model.mlp_hidden": 12,
    "model.vocab_size": 512,
    "model.max_len": 64,
    "model.memory.chunk": 8,
    "model.memory.generator_chunk": 8,
    "model.cms.periods": (8, 16),
    "model.lstm_hidden": 12,
    "teach.chunk": 8,
    "data.seq_len": 32,
    "data.align": 16,
    "data.tokenizer": "char",
    "data.vocab_size": 512,
    "data.valid_rows": 4,
    "train.batch_size": 4,
    "train.save_every": 1,
    "train.log_every": 1,
    "train.keep_latest": 1,
    "mesh.data": 1,
    "mesh.fsdp": 1,
    "mesh.model": 1,
}


def values(hint: Any) -> st.SearchStrategy[Any] | None:
    """Return what a field of this annotation may be given; None where nothing is drawn."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        marks = [mark for mark in args[1:] if isinstance(mark, Range)]
        if not marks:
            return values(args[0])
        low = max(marks[0].least, marks[0].above, -2)
        high = min(marks[0].most, marks[0].below, MOST)
        if args[0] is int:
            return st.integers(math.floor(low) - 1, math.ceil(high))
        return st.floats(low, high, allow_nan=False).map(lambda x: round(x, 4))
    if origin in (typing.Union, type(int | None)):
        options = [found for each in args if (found := values(each)) is not None]
        return st.one_of(*options)
    if origin is tuple:
        inner = values(args[0])
        return None if inner is None else st.lists(inner, max_size=2).map(tuple)
    if origin is Literal:
        return st.sampled_from(args)
    if hint is bool:
        return st.booleans()
    return st.none() if hint is type(None) else None


def fields(cls: Any = Config, path: str = "") -> Iterator[tuple[str, st.SearchStrategy[Any]]]:
    """Yield the fields that are drawn, with what they may be given."""
    for name, hint in hints(cls).items():
        where = f"{path}{name}"
        if where in SIZES:
            yield where, st.sampled_from(SIZES[where])
        elif where not in FIXED:
            if inner := block_of(hint):
                yield from fields(inner, f"{where}.")
            elif (found := values(hint)) is not None:
                yield where, found


FIELDS = dict(fields()) | {n: st.sampled_from(v) for n, v in SIZES.items() if n[:5] == "data."}


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a block kind, its teach mode, and up to five other fields."""
    chosen = {"model.block": draw(st.sampled_from(BLOCKS))}
    chosen["teach.mode"] = draw(st.sampled_from(["off", "exact", "local"]))
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=5, unique=True))
    return chosen | {name: draw(FIELDS[name]) for name in names}


def drawn(count: int, seed: int) -> list[dict[str, Any]]:
    """Return so many configurations, the same for the same seed."""
    found: list[dict[str, Any]] = []
    how = hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    def keep(chosen: dict[str, Any]) -> None:
        found.append(chosen)

    draw: Callable[[], None] = hypothesis.seed(seed)(how(hypothesis.given(configurations())(keep)))
    draw()
    return found[:count]


def outcome(chosen: dict[str, Any], folder: Path, base: dict[str, Any]) -> tuple[str, str]:
    """Run one configuration; return what came of it, and what was said."""
    workdir = folder / "run"
    for steps in (2, 3):
        values = {**BASE, **base, **chosen, "train.steps": steps}
        flags = [f"--config.{name}={value}" for name, value in values.items()]
        arguments = ["--config", str(ROOT / "configs/pilot.py:test"), "--workdir", str(workdir)]
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                status = launch.main([*arguments, *flags])
        except Exception as error:  # noqa: BLE001  (it is the finding)
            where = traceback.extract_tb(error.__traceback__)[-1]
            return "traceback", f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        words = said.getvalue().strip()
        if status == 2:
            named = re.search(FIELD if steps == 2 else CHANGE, words)
            refused = "refused" if steps == 2 else "refused as it goes on"
            return (refused if named else f"{refused}, without a field"), words
        if status:
            return f"status {status}", words
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    fine = len(losses) == 3 and None not in losses
    return ("trained" if fine else "not finite"), str(losses)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="of the drawn ones, to go on")
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    begun, counts = time.monotonic(), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        text = str(write_text(Path(name) / "text"))
        base = {"data.source": text, "data.cache_dir": f"{name}/cache"}
        for number, chosen in enumerate(drawn(flags.count, flags.seed)):
            if number < flags.first:
                continue
            if time.monotonic() - begun > flags.seconds:
                break
            with tempfile.TemporaryDirectory() as folder:
                what, said = outcome(chosen, Path(folder), base)
            counts[what] += 1
            row = {"number": number, "seed": flags.seed, "outcome": what, "config": chosen}
            line = json.dumps(row | {"said": said[:300]})
            if flags.out is not None:
                with open(flags.out, "a") as file:
                    file.write(line + "\n")
            if what not in NAMED:
                print(line, flush=True)
            if number % 20 == 19:
                jax.clear_caches()
                gc.collect()
    print(json.dumps(dict(counts)))
    return int(bool(set(counts) - set(NAMED)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
