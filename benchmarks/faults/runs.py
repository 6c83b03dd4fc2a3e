"""The tiny run that is disturbed, its twin that is not, and what makes a restart of it cheap."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

import launch
from nested_jax.config import Config, load_config
from nested_jax.machine import quiet_libraries
from nested_jax.train import plan as plans
from nested_jax.train import trainer
from nested_jax.train.checkpoint import load_checkpoint
from nested_jax.train.layout import Layout
from nested_jax.train.watch import record as records

ROOT = Path(__file__).resolve().parent.parent.parent
SPEC = "configs/transformer.py:test"
TIMINGS = ("tokens_per_s", "step_s", "flops_per_s", "mfu")
WORDS = "alpha beta gamma delta value index tensor memory level chunk write read".split()  # noqa: SIM905
SAME = ("step", "train_loss", "valid_loss", "valid_bits_per_byte", "tokens")  # of the summary


def write_text(folder: Path) -> Path:
    """Write a small text with held-out part, and return its folder."""
    rng = random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train.txt", 1500), ("valid.txt", 200)):
        lines = (" ".join(rng.choice(WORDS) for _ in range(8)) for _ in range(count))
        (folder / name).write_text("\n".join(lines))
    return folder


def fields(folder: Path, steps: int, mirror: str = "") -> dict[str, Any]:
    """Return what makes the configuration small: seconds of processor time, all kinds of files."""
    return {
        "data.source": str(folder / "text"),
        "data.cache_dir": str(folder / "cache"),
        "data.tokenizer": "char",
        "data.vocab_size": 512,
        "data.valid_rows": 4,
        "data.seq_len": 32,
        "data.align": 32,
        "model.vocab_size": 512,
        "model.layers": 1,
        "model.dim": 16,
        "model.mlp_hidden": 24,
        "optim.warmup_steps": 2,
        "train.batch_size": 4,
        "train.steps": steps,
        "train.log_every": 1,
        "train.eval_every": 3,
        "train.save_every": 2,
        "train.keep_latest": 1,
        "train.mirror": mirror,
    }


def flags(values: Mapping[str, Any]) -> list[str]:
    return [f"--config.{name}={value}" for name, value in values.items()]


def configuration(values: Mapping[str, Any]) -> Config:
    return load_config(str(ROOT / SPEC), dict(values))


def environment(folder: Path, devices: int = 1) -> dict[str, str]:
    """Return an environment that compiles once, in the same way every time."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": str(ROOT),
    }


def arguments(values: Mapping[str, Any], workdir: Path) -> list[str]:
    """Return what launch.py is called with."""
    return ["--config", str(ROOT / SPEC), "--workdir", str(workdir), *flags(values)]


def launched(arguments: list[str], log: Path, port: int, count: int, index: int) -> None:
    """Be process `index` of a run, as `launch.py` starts it."""
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if count > 1:
        arguments += ["--coordinator", f"127.0.0.1:{port}", "--num-processes", str(count)]
        arguments += ["--process-id", str(index)]
    sys.exit(launch.main(arguments))


# --- in one process, again and again -------------------------------------------------------------


def compile_once() -> None:
    """Trace and compile once per process: restarts of one configuration share the programs."""
    quiet_libraries()
    lay_out = cache(plans.lay_out)
    plans.lay_out = lay_out  # type: ignore[assignment]
    lowered: dict[Any, Any] = {}
    original = Layout.lower_train

    class Compiled:
        def __init__(self, layout: Layout) -> None:
            self.program = original(layout).compile()

        def compile(self) -> Any:
            return self.program

    def lower(self: Layout) -> Any:
        if self.program not in lowered:
            lowered[self.program] = Compiled(self)
        return lowered[self.program]

    Layout.lower_train = lower  # type: ignore[method-assign, assignment]
    held: dict[Any, Any] = {}
    kind = records.HeldOut

    def held_out(plan: Any) -> Any:
        if plan.program not in held:
            held[plan.program] = kind(plan)
        return held[plan.program]

    records.HeldOut = held_out  # type: ignore[assignment, misc]
    records.trigram_baseline = cache(records.trigram_baseline)


def train_again(values: Mapping[str, Any], workdir: Path) -> None:
    trainer.train(configuration(values), workdir)


# --- what has to be the same ---------------------------------------------------------------------


def outcome(workdir: Path) -> dict[str, Any]:
    """Return what an undisturbed and a disturbed run have in common."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    params, _, step = load_checkpoint(workdir)
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    summary = json.loads((workdir / "summary.json").read_text())
    left = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    return {
        "lines": [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines],
        "params": digest.hexdigest(),
        "step": step,
        "summary": {name: summary[name] for name in SAME},
        "checkpoints": [name for name in left if not name.endswith(".damaged")],
        "lock": (workdir / ".lock").exists(),
    }


def differences(got: Callable[[], dict[str, Any]], want: Mapping[str, Any]) -> str:
    """Return what differs, in words; "" is nothing."""
    try:
        found = got()
    except Exception as error:  # noqa: BLE001  (whatever it is, it is the finding)
        return f"{type(error).__name__}: {error}"
    wrong = [name for name in want if found[name] != want[name]]
    return ", ".join(f"{name}: {str(found[name])[:200]}" for name in wrong)
