"""What it costs that a retrofitted model writes while it reads.

    python benchmarks/reading.py --plan       compile for an H200 that is not here: memory, and
                                              estimated time, of the shapes of GPT-2 124M and of
                                              Llama 1B; wants the extra `cuda13` and no GPU
    python benchmarks/reading.py --measure    time a small model on this machine, ways in turn
    python benchmarks/reading.py --tables     only the tables of docs/adapt.md

A case that is made again takes the place of its line in benchmarks/results/reading.jsonl. Times of
plans are estimates by a model of the card (nested_jax/fit/cost.py); memory is the compiler's count.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from eval.core.report import table as markdown_table  # noqa: E402
from nested_jax import machine  # noqa: E402
from nested_jax.config import Config, DataConfig, ModelConfig  # noqa: E402
from nested_jax.fit.gpus import GPUS, absent_devices  # noqa: E402
from nested_jax.fit.reading import compile_reading, tree_bytes  # noqa: E402
from nested_jax.fit.report import reading_json  # noqa: E402
from nested_jax.hub.retrofit import retrofit_config  # noqa: E402
from nested_jax.models.lm import build_model  # noqa: E402
from nested_jax.read import piece_size, written  # noqa: E402
from nested_jax.sharding import make_mesh  # noqa: E402
from nested_jax.teach import teach  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "reading.jsonl"
PAGE = ROOT / "docs" / "adapt.md"
H200 = GPUS["h200"]
ROUNDS = 7  # of --measure, the first of which is not counted
GIB, MIB = 2**30, 2**20
MODELS = {
    "GPT-2 124M": ModelConfig(
        block="gpt2",
        vocab_size=50_257,
        dim=768,
        layers=12,
        heads=12,
        max_len=1024,
        norm_eps=1e-5,
        compute_dtype="bfloat16",
    ),
    "Llama 1B": ModelConfig(
        block="transformer",
        vocab_size=128_256,
        dim=2048,
        layers=16,
        heads=32,
        kv_heads=8,
        mlp_hidden=8192,
        max_len=8192,
        rope_theta=500_000.0,
        rope_scaling=(32.0, 1.0, 4.0, 8192.0),
        tie_embeddings=False,
        compute_dtype="bfloat16",
    ),
}
SMALL = ModelConfig(
    block="transformer", vocab_size=2048, dim=192, layers=4, heads=4, mlp_hidden=512, window=128
)


class Way(NamedTuple):
    """How a model writes, as the flags of `retrofit` say it, and for how many readers."""

    layers: str = "1"
    periods: str = "64"
    rank: int = 0
    readers: int = 1

    def config(self, model: ModelConfig) -> Config:
        cfg = retrofit_config(Config(model=model, data=DataConfig(seq_len=512)), *self[1::-1])
        cms = replace(cfg.model.cms, fast_rank=self.rank)
        return replace(cfg, model=replace(cfg.model, cms=cms))


WAYS = (
    Way(),
    Way(readers=16),
    Way(layers="4", readers=16),
    Way(layers="-1", readers=16),
    Way(layers="-1", rank=16, readers=16),
    Way(periods="64,256", readers=16),
    Way(periods="256", readers=16),
)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("plan", "measure", "tables"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--missing", action="store_true", help="only plans that have no line")
    flags = parser.parse_args(arguments)
    lines = {key(line): line for line in read(RESULTS)}
    if flags.plan:
        for line in plans(set(lines) if flags.missing else set()):
            lines[key(line)] = line
            write(lines)
    if flags.measure:
        lines |= {key(line): line for line in measured()}
        write(lines)
    PAGE.write_text(with_tables(PAGE.read_text(), list(lines.values())))


def plans(known: set[Any]) -> Any:
    mesh = make_mesh(Config().mesh, absent_devices(H200, 1, 1))
    for name, model in MODELS.items():
        for way in WAYS:
            if key({"model": name, "way": way._asdict(), "device": H200.name}) in known:
                continue
            plan = reading_json(name, compile_reading(way.config(model), H200, mesh, way.readers))
            line = {"model": name, "way": way._asdict(), "device": H200.name, "plan": plan}
            print(said(line), flush=True)
            yield line


def measured() -> list[dict[str, Any]]:
    """Time one piece of each way and of silent reading, in turn, so that noise meets all alike."""
    steps, about = {}, {}
    for way in WAYS:
        cfg = way.config(SMALL)
        model, teaching = build_model(cfg.model), written(cfg.teach)
        params = jax.jit(model.init)(jax.random.key(0))
        size, room = piece_size(cfg.model, teaching)
        rng = np.random.default_rng(0)
        tokens_BT = jnp.asarray(rng.integers(0, 2048, (way.readers, size)), jnp.int32)
        state = model.init_state(params, way.readers, room)
        about[way] = {"tokens": way.readers * size, "state_bytes": tree_bytes(state) // way.readers}
        for mode in (teaching.mode, "off"):
            step = jax.jit(partial(teach, model, cfg=replace(teaching, mode=mode)))
            steps[way, mode != "off"] = (step, (params, state, tokens_BT, tokens_BT))
    seconds: dict[Any, list[float]] = {name: [] for name in steps}
    for count in range(ROUNDS):
        for name, (step, arguments) in steps.items():
            begun = time.perf_counter()
            jax.block_until_ready(step(*arguments))
            if count:
                seconds[name].append(time.perf_counter() - begun)
    device = machine.device_name()
    return [
        {
            "model": "2 M parameters",
            "way": way._asdict(),
            "device": device,
            "state_bytes_per_reader": about[way]["state_bytes"],
            "us_per_token": {
                name: 1e6 * statistics.median(seconds[way, on]) / about[way]["tokens"]
                for name, on in (("writing", True), ("silent", False))
            },
            "versions": machine.versions(),
            "git_commit": machine.git_commit(),
        }
        for way in WAYS
    ]


def key(line: dict[str, Any]) -> tuple[str, str, str]:
    return line["model"], json.dumps(line["way"], sort_keys=True), line["device"]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def write(lines: dict[Any, dict[str, Any]]) -> None:
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))


def said(line: dict[str, Any]) -> str:
    return f"{line['model']}, {how(line)}: {', '.join(plan_row(line)[3:])}"


# --- tables ---------------------------------------------------------------------------------------


def with_tables(page: str, lines: list[dict[str, Any]]) -> str:
    """Return the page with its tables written anew from the lines."""
    tables = {
        "plans": markdown_table(
            (
                "model, written blocks",
                "written every",
                "readers",
                "memory of a reader",
                "peak on the card",
                "per token, writing",
                "not writing",
            ),
            [plan_row(line) for line in lines if "plan" in line],
        ),
        "measured": markdown_table(
            ("written blocks", "written every", "readers", "per token, writing", "not writing"),
            [measured_row(line) for line in lines if "plan" not in line],
        ),
    }
    for name, table in tables.items():
        mark = rf"(<!-- {name}: written by benchmarks/reading.py -->\n).*?(<!-- end -->)"
        page = re.sub(mark, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", page, flags=re.DOTALL)
    return page


def how(line: dict[str, Any]) -> str:
    way = Way(**line["way"])
    blocks = {"1": "the last", "-1": "all"}.get(way.layers, f"the last {way.layers}")
    return blocks + (f", rank {way.rank}" if way.rank else "")


def every(line: dict[str, Any]) -> str:
    return " and ".join(line["way"]["periods"].split(",")) + " tokens"


def plan_row(line: dict[str, Any]) -> list[str]:
    plan, way = line["plan"], line["way"]
    times = plan["estimated_us_per_token"]
    return [
        f"{line['model']}, {how(line)}",
        every(line),
        str(way["readers"]),
        f"{plan['memory_bytes_per_reader'] / MIB:,.1f} MiB",
        f"{plan['writing']['peak_bytes'] / GIB:.1f} GiB" + ("" if plan["fits"] else ", too much"),
        f"{times['writing']:.2f} us",
        f"{times['silent']:.2f} us",
    ]


def measured_row(line: dict[str, Any]) -> list[str]:
    times = line["us_per_token"]
    writing, silent = times["writing"], times["silent"]
    return [
        how(line),
        every(line),
        str(line["way"]["readers"]),
        f"{writing:.0f} us ({writing / silent:.2f} times)",
        f"{silent:.0f} us",
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
