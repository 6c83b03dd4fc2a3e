"""HOPE against Titans and a Transformer, from raw text to a bundle, as one command.

    python -m recipes.pilot --quick        2.2 M parameters: minutes on two CPU cores
    python -m recipes.pilot                138 M parameters, three seeds: for GPUs
    python -m recipes.pilot --data my_data/mixture.json --out runs/mine

Sample data (the embedded text, or --data); then `hope_attention` and `hope` (the CMS is written,
and self-modifying memories), `titans_lmm` and `transformer` at equal parameters (within 2 %), on
the same tokens in the same order; evaluation of each; and in OUT

    comparison.md, .json   held-out loss, bits per byte, tasks, writes and time of every model, with
                           95 % intervals over seeds, and paired tests on the same items
    report.html            the runs to look at
    bundle/                the best HOPE, as ``eval release`` makes it

What is done is not done again: a command that was stopped goes on. What follows ``--`` goes to
every run. Exit status: 0 done, 2 bad input, else that of the step that failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from eval.core.flags import split_rest
from eval.core.report import number
from eval.core.report import table as markdown_table
from nested_jax.config import load_config, parse_overrides
from nested_jax.errors import ROOT, require
from nested_jax.files import write_bytes, write_json
from nested_jax.models.flops import count_parameters
from nested_jax.models.lm import build_model
from recipes.steps import finish, guarded, step
from recipes.sweep import markdown, summarize
from recipes.variants import Comparison, Results, not_comparable, run_grid, slug, task_numbers

MODELS = {
    "HOPE (attention, CMS)": ("configs/pilot.py:{size}",),
    "HOPE (self-modifying, CMS)": (
        "configs/pilot.py:{size},block=hope",
        "--config.model.memory.inner_lr=0.02",
    ),
    "Titans (memory alone)": ("configs/titan_baseline.py:{size}",),
    "Transformer": ("configs/transformer.py:{size}",),
}
QUICK = (
    "--config.train.steps=24",
    "--config.train.eval_every=24",
    "--config.train.save_every=24",
    "--config.optim.warmup_steps=8",
)
REFERENCE = "Titans (memory alone)"
TOLERANCE = 0.02  # of parameters
TASKS = {  # with the run's own text: nothing has to be fetched
    "quick": (
        "perplexity --segments run --max-tokens 4096 --doc-tokens 1024 --memorize",
        "repeat --segments run --distances 512 --passages 8 --memorize",
        "continual --segments run --write-tokens 512 --score-tokens 512",
    ),
    "full": (
        "perplexity --segments run --memorize",
        "repeat --segments run --memorize",
        "niah --haystack stdlib --context-lengths 512,1024,1920",
        "passkey --haystack stdlib --context-lengths 512,1024,1920",
        "continual --segments run",
    ),
}


def main(arguments: Sequence[str]) -> int:
    own, extra = split_rest(arguments)
    return guarded(lambda: run(parse(own), extra))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.pilot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    quick = "24 steps of the size smoke, two seeds, tasks of the first"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--out", type=Path, help="default runs/recipe-pilot, or -quick")
    parser.add_argument("--data", help="a data.source; default: the sample recipe's mixture")
    parser.add_argument("--seeds", type=int, help="how many (2 with --quick, else 3)")
    parser.add_argument("--size", help="of the configurations (smoke with --quick, else pilot)")
    parser.add_argument("--jobs", type=int, help="at once (2 with --quick, else 1)")
    flags = parser.parse_args(arguments)
    flags.out = flags.out or Path("runs/recipe-pilot-quick" if flags.quick else "runs/recipe-pilot")
    flags.seeds = (2 if flags.quick else 3) if flags.seeds is None else flags.seeds
    flags.jobs = (2 if flags.quick else 1) if flags.jobs is None else flags.jobs
    flags.size = flags.size or ("smoke" if flags.quick else "pilot")
    require(flags.seeds >= 1, "--seeds", flags.seeds, "wants 1 or more")
    require(flags.jobs >= 1, "--jobs", flags.jobs, "wants 1 or more")
    if flags.data is not None and flags.data != "stdlib":
        there = Path(flags.data).expanduser().exists()
        require(there, "--data", flags.data, "no such file or folder")
        flags.data = str(Path(flags.data).expanduser().absolute())
    return flags


def run(flags: argparse.Namespace, extra: list[str]) -> int:
    """Make everything that is not there yet."""
    out = flags.out.absolute()
    source = flags.data or str(sample(out / "data", flags.quick))
    more = [f"--config.data.source={source}", *(QUICK if flags.quick else ()), *extra]
    comparison = matched(flags.size, more)
    results = run_grid(comparison, out, range(flags.seeds), more, flags.jobs)
    words = TASKS["quick" if flags.quick else "full"]
    # What the first seed compiles serves the others, and later steps of this command.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    scores: dict[str, dict[int, dict[str, float]]] = {variant: {} for variant in results}
    asked = 1 if flags.quick else flags.seeds  # the tasks of one seed fit into 15 minutes
    each = [(variant, seed) for seed in range(asked) for variant in results]
    with ThreadPoolExecutor(flags.jobs) as pool:
        found = pool.map(lambda one: scored(out / place(*one), words), each)
        for (variant, seed), numbers in zip(each, found, strict=True):
            scores[variant][seed] = numbers
    write_comparison(out, results, scores, shlex.join(sys.argv[1:]))
    names = {variant: f"{slug(variant)}={out / place(variant, 0)}" for variant in results}
    finish(["report", *names.values(), "--out", str(out / "report.html")], out / "report.html")
    release(out, results)
    print((out / "comparison.md").read_text("utf-8"))
    return 0


def place(variant: str, seed: int) -> str:
    return f"{slug(variant)}-{seed}"


def sample(folder: Path, quick: bool) -> Path:
    """Prepare the sample data, which finds by itself what is done; return the mixture."""
    vocabulary = ["--vocab-size", "2048"] if quick else []
    command = ["-m", "nested_jax.data", "sample", "--out", str(folder), *vocabulary]
    step(command, "data")
    (mixture,) = folder.rglob("mixture.json")
    return mixture


def matched(size: str, more: list[str]) -> Comparison:
    """Return the models with MLPs so wide that all have the parameters of the reference.

    Raises:
      ValueError: one that cannot be brought within 2 %, or a bad field.
    """
    found, target = {}, 0
    for variant in (REFERENCE, *(name for name in MODELS if name != REFERENCE)):
        config, *flags = [word.format(size=size) for word in MODELS[variant]]
        own = count(config, [*more, *flags])
        target = target or own
        if own != target:
            width = "--config.model.mlp_hidden="
            low, high = (count(config, [*more, *flags, f"{width}{w}"]) for w in (8, 16))
            fits = max(1, round(8 + (target - low) * 8 / (high - low)))
            flags.append(f"{width}{fits}")
            own = count(config, [*more, *flags])
        near = abs(own - target) <= TOLERANCE * target
        require(near, variant, own, f"wants {target:,} parameters within {TOLERANCE:.0%}")
        found[variant] = (config, *flags)
    return Comparison("", {variant: found[variant] for variant in MODELS})


def count(config: str, flags: list[str]) -> int:
    """Return the parameters of a model; nothing is allocated."""
    cfg = load_config(str(ROOT / config), parse_overrides(flags))
    return count_parameters(build_model(cfg.model).param_info())


def scored(workdir: Path, tasks: Sequence[str]) -> dict[str, float]:
    """Return the numbers of the tasks on a run; the results are kept in its eval folder."""
    found: dict[str, float] = {}
    for text in tasks:
        task, *words = text.split()
        file = workdir / "eval" / f"{task}.json"
        finish([task, *words, "--checkpoint", str(workdir), "--out", str(file)], file)
        found |= task_numbers(json.loads(file.read_text("utf-8")))
    return found


def write_comparison(
    out: Path, results: Results, scores: dict[str, dict[int, dict[str, float]]], words: str
) -> None:
    """Write the table of the models, and the paired differences from Titans on the same items."""
    report: dict[str, Any] = summarize(results, scores)
    parameters = {v: next(iter(runs.values())).parameters for v, runs in results.items()}
    paired: dict[str, Any] = {}
    rows = []
    for variant in results:
        if variant == REFERENCE:
            continue
        file = out / f"compare-{slug(variant)}.json"
        places = [str(out / place(v, 0) / "eval") for v in (REFERENCE, variant)]
        step(["-m", "eval", "compare", "--results", *places, "--out", str(file)], "compare")
        paired[variant] = json.loads(file.read_text("utf-8"))["tasks"]
        file.unlink()
        for task, found in paired[variant].items():
            for group, one in found["pairs"][0]["groups"].items():
                rows.append([variant, f"{task}, {group}", one["measure"], number(one["difference"]),
                             number(one["interval"]), number(one["p"]), str(one["n"])])  # fmt: skip
    write_json(out / "comparison.json", {"arguments": words, "parameters": parameters,
                                         "scores": scores, **report, "paired": paired})  # fmt: skip
    header = ["model", "of", "measure", f"minus {REFERENCE}", "95 % interval", "p", "items"]
    tokens = statistics.mode(r.tokens for runs in results.values() for r in runs.values())
    counted = markdown_table(
        ["model", "parameters"], [[v, f"{n:,}"] for v, n in parameters.items()]
    )
    parts = [
        "# HOPE, Titans and a Transformer on the same tokens",
        f"`python -m recipes.pilot {words}`: {tokens:,} tokens each, in the same order.",
        markdown(report),
        *(line.strip() for line in not_comparable(results)),
        counted,
        "## On the same items, first seed",
        markdown_table(header, rows),
    ]
    write_bytes(out / "comparison.md", ("\n\n".join(parts) + "\n").encode())


def release(out: Path, results: Results) -> None:
    """Bundle the HOPE of the lowest held-out loss, with its results."""
    runs = {
        place(variant, seed): result.valid_loss
        for variant, of_seed in results.items()
        if variant.startswith("HOPE")
        for seed, result in of_seed.items()
    }
    best = out / min(runs, key=lambda name: runs[name])
    bundle = out / "bundle"
    made = bundle / "manifest.json"
    if made.exists() and json.loads(made.read_text("utf-8")).get("name") == best.name:
        return
    shutil.rmtree(bundle, ignore_errors=True)
    words = ["release", "--checkpoint", str(best), "--results", str(best / "eval")]
    finish([*words, "--out", str(bundle), "--allow-missing", "all"], made)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
