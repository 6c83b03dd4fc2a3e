"""One command on a GPU, at most 8 minutes: first checks, then speed, use of the card and memory.

    python benchmarks/gpu.py                  pilot size, 2,048 to 32,768 tokens per row
    python benchmarks/gpu.py --quick          toy size, any device: shows that the command works

Every check and every measurement is a process of its own, so that one that fails or runs out of
memory ends alone, and the peak of memory is its own. Models: Transformer++, gated_deltanet,
titans_lmm, hope_attention (taught, through the writes) and hope. Seconds are medians of whole
training steps; `plan` is the memory that the compiler counted, `peak` what the device reports. What
the time does not suffice for is listed. The lines go to --out as JSON; the table is printed last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nested_jax import machine
from nested_jax.config import Config, load_config
from nested_jax.sharding import make_mesh
from nested_jax.train.layout import Layout, lay_out, sharding_of
from nested_jax.train.memory import peak_bytes
from nested_jax.train.state import create_state
from nested_jax.train.trainer import train
from nested_jax.types import Batch

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "gpu.jsonl"
LIMIT_S = 480.0
MODELS = {
    "transformer": "transformer.py:{}",
    "gated_deltanet": "titan_baseline.py:{},block=gated_deltanet",
    "titans_lmm": "titan_baseline.py:{},block=titans_lmm",
    "hope_attention": "pilot.py:{}",
    "hope": "pilot.py:{},block=hope",
}
LENGTHS = {False: (2048, 8192, 32_768), True: (64, 128)}
TOKENS = {False: 32_768, True: 256}  # of a step
STEPS, SECONDS = 10, 6.0  # the most steps that are timed, and seconds after which no new one begins
GIB = 2**30


# --- runs of a few steps --------------------------------------------------------------------------


def config(model: str, quick: bool, **changes: Any) -> Config:
    """Return a model at pilot size, or of the tests, on embedded text."""
    spec = MODELS[model].format("test" if quick else "pilot")
    return load_config(str(ROOT / "configs" / spec), {"data.source": "stdlib", **changes})


def rows_of(cfg: Config, seed: int = 0) -> Batch:
    """Return a batch of random tokens, a document per row."""
    shape = cfg.train.batch_size, cfg.data.seq_len
    ids = np.random.default_rng(seed).integers(0, cfg.model.vocab_size, (shape[0], shape[1] + 1))
    ones = np.ones(shape, np.int32)
    return Batch(
        ids[:, :-1].astype(np.int32), ids[:, 1:].astype(np.int32), ones.astype(np.float32), ones
    )


def start(cfg: Config, devices: int = 1) -> tuple[Layout, Any, Any, Batch]:
    """Return a layout, its compiled training step, the first state, and a placed batch."""
    layout = lay_out(cfg, make_mesh(cfg.mesh, jax.devices()[:devices]))
    with jax.set_mesh(layout.mesh):
        step = layout.lower_train().compile()
        state = create_state(layout.init, jax.tree.map(sharding_of, layout.abstract))
        placed = jax.device_put(rows_of(cfg), layout.batch(cfg.train.batch_size).tokens_BT.sharding)
    return layout, step, state, placed


def losses(cfg: Config, steps: int = 5, devices: int = 1) -> list[float]:
    """Return the losses of the first steps, on one batch."""
    layout, step, state, batch = start(cfg, devices)
    found = []
    with jax.set_mesh(layout.mesh):
        for _ in range(steps):
            state, metrics = step(state, batch)
            found.append(float(metrics["loss"]))
    return found


# --- checks ---------------------------------------------------------------------------------------


def few(quick: bool) -> dict[str, Any]:
    """Return the fields of a run of few tokens at the size that is measured."""
    rows = {"train.batch_size": 4, "train.device_rows": 0, "train.grad_accum": 1}
    return {**rows, "data.seq_len": 128 if quick else 1024, "optim.warmup_steps": 1}


def compare(want: list[float], got: list[float], bound: float) -> str:
    """Return in words how far two curves are apart; raise if it is more than `bound`, relative."""
    apart = float(np.max(np.abs(np.array(got) / np.array(want) - 1)))
    if not apart <= bound:
        raise SystemExit(f"losses {got} instead of {want}: {apart:.1e} apart, at most {bound}")
    return f"{apart:.1e} apart, at most {bound}"


def fused_attention(quick: bool) -> str:
    """The fused kernel against attention that is written out."""
    if jax.default_backend() != "gpu":
        return "not here: wants a GPU"
    curves = [
        losses(config("transformer", quick, **few(quick), **{"model.attention": kind}))
        for kind in ("xla", "cudnn")
    ]
    return compare(*curves, 5e-3)


def bfloat16(quick: bool) -> str:
    """Training in bfloat16 against float32, through the writes."""
    curves = [
        losses(config("hope_attention", quick, **few(quick), **{"model.compute_dtype": dtype}))
        for dtype in ("float32", "bfloat16")
    ]
    return compare(*curves, 2e-2)


def resume(quick: bool) -> str:
    """A run that was stopped and goes on, against one that was not."""
    steps = {"data.vocab_size": 1024, "train.eval_every": 0, "train.save_every": 2}
    whole, parts = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for found, name, ends in ((whole, "whole", (6,)), (parts, "parts", (3, 6))):
            for end in ends:
                more = {**few(quick), **steps, "train.steps": end, "optim.schedule": "constant"}
                train(config("hope_attention", True, **more), Path(folder) / name)
            for text in (Path(folder) / name / "metrics.jsonl").read_text().splitlines():
                line = json.loads(text)
                found |= {line["step"]: line["loss"]} if "loss" in line else {}
    same = "equal bits" if whole == parts else "not equal bits"
    return f"{same}, {compare(list(whole.values()), list(parts.values()), 1e-4)}"


def two_devices(quick: bool) -> str:
    """Parameters and rows over two devices against one."""
    if jax.device_count() < 2:
        return "not here: wants two devices"
    cfg = config("hope_attention", quick, **few(quick), **{"mesh.fsdp": -1})
    return compare(losses(cfg), losses(cfg, devices=2), 5e-3)


CHECKS = {check.__name__: check for check in (fused_attention, bfloat16, resume, two_devices)}


# --- measurements ---------------------------------------------------------------------------------


def measure(model: str, length: int, quick: bool) -> dict[str, Any]:
    """Return what training steps of a model on rows of a length take."""
    rows = TOKENS[quick] // length
    changes = {"train.batch_size": rows, "train.device_rows": 0, "train.grad_accum": 1}
    changes |= {"data.seq_len": length, "model.max_len": length, "train.check_writes": False}
    cfg = config(model, quick, **changes)
    began = time.perf_counter()
    layout, step, state, batch = start(cfg)
    compiled = time.perf_counter() - began
    seconds: list[float] = []
    with jax.set_mesh(layout.mesh):
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        while len(seconds) < STEPS and sum(seconds) < SECONDS:
            began = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - began)
    took = statistics.median(seconds)
    peak = machine.peak_flops(jax.devices()[0].device_kind)
    return {
        "model": model,
        "length": length,
        "rows": rows,
        "parameters": layout.parameters,
        "step_s": took,
        "steps": len(seconds),
        "tokens_per_s": rows * length / took,
        "mfu": layout.flops / took / peak if peak else None,
        "plan_bytes": peak_bytes(step.memory_analysis()),
        "peak_bytes": machine.peak_memory(),
        "start_s": compiled,
        "loss": float(metrics["loss"]),
    }


# --- the command ----------------------------------------------------------------------------------


def one(name: str, quick: bool) -> dict[str, Any]:
    """Run one check, or one measurement "MODEL@LENGTH"; return its line."""
    if name in CHECKS:
        return {"check": name, "found": CHECKS[name](quick)}
    model, _, length = name.partition("@")
    return measure(model, int(length), quick)


def in_a_process(name: str, quick: bool, left_s: float) -> dict[str, Any]:
    """Run `one` in a process of its own; return its line, or what became of it."""
    command = [sys.executable, __file__, "--one", name, *(["--quick"] if quick else [])]
    if left_s <= 0:
        return {"name": name, "failed": "out of time, not run"}
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=left_s)
    except subprocess.TimeoutExpired:
        return {"name": name, "failed": "out of time"}
    if ended.returncode:
        return {"name": name, "failed": (ended.stderr.strip().splitlines() or ["?"])[-1][:300]}
    return json.loads(ended.stdout.splitlines()[-1])


def names(quick: bool) -> list[str]:
    """Return what is run, in this order: checks, then the short rows of all models, then longer."""
    return [*CHECKS, *(f"{model}@{length}" for length in LENGTHS[quick] for model in MODELS)]


def row(line: dict[str, Any]) -> str:
    """Return a line of the table."""
    mfu = f"{100 * line['mfu']:5.1f} %" if line["mfu"] is not None else "-"
    return (
        f"{line['model']:15} {line['rows']:4} x {line['length']:6,} {line['step_s']:9.3f} s "
        f"{line['tokens_per_s']:12,.0f} {mfu:>8} {line['plan_bytes'] / GIB:8.2f} "
        f"{line['peak_bytes'] / GIB:8.2f} {line['start_s']:7.0f} s"
    )


HEAD = (
    f"{'model':15} {'rows x tokens':>13} {'step':>11} {'tokens/s':>12} {'MFU':>8} {'plan GiB':>8} "
    f"{'peak GiB':>8} {'start':>9}"
)


def main(arguments: list[str], run: Callable[..., dict[str, Any]] = in_a_process) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="toy size, on any device")
    parser.add_argument("--out", type=Path, help=f"default {OUT.relative_to(ROOT)}; --quick: none")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    if flags.one:
        print(json.dumps(one(flags.one, flags.quick)))
        return 0
    began, lines = time.perf_counter(), []
    for name in names(flags.quick):
        line = run(name, flags.quick, LIMIT_S - (time.perf_counter() - began))
        lines.append(line)
        said = line.get("failed") or line.get("found") or f"{line['step_s']:.3f} s per step"
        print(f"{name}: {said}", flush=True)
    about = {
        "device": machine.device_name(),
        "versions": machine.versions(),
        "git_commit": machine.git_commit(),
    }
    out = flags.out or (None if flags.quick else OUT)
    if out is not None:
        out.write_text("".join(json.dumps(line | about) + "\n" for line in lines))
    print("\n".join(["", about["device"], HEAD, *(row(x) for x in lines if "step_s" in x)]))
    broken = [x for x in lines if "failed" in x and "out of time" not in x["failed"]]
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
