"""A training run small enough for tests: synthetic shards, a two-layer model, a config file."""

from __future__ import annotations

import copy
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quick_compile import ROOT, xla_flags

from nested_jax.config import Config, from_config_dict
from nested_jax.data.shards import write_index, write_shard
from nested_jax.data.tokenizers.tokenizer import train_tokenizer

WORDS = "alpha beta gamma delta value index tensor memory level chunk write read".split()  # noqa: SIM905
VOCAB = 320
TIMINGS = ("tokens_per_s", "step_s", "flops_per_s", "mfu")  # the lines differ in nothing else


def synthetic_text(number: int) -> str:
    rng = random.Random(number)
    return "\n".join(
        f"{rng.choice(WORDS)} = {rng.choice(WORDS)}({rng.randrange(100)})"
        for _ in range(rng.randrange(3, 20))
    )


def write_data(folder: Path) -> Path:
    """Write shards of one segment with train and valid splits, and their tokenizer."""
    texts = [synthetic_text(number) for number in range(60)]
    tokenizer = train_tokenizer(texts, VOCAB)
    encoded = tokenizer.encode_batch(texts)
    folder.mkdir(parents=True)
    shards = [
        write_shard(folder, "code", "train", 0, encoded[:50], tokenizer),
        write_shard(folder, "code", "valid", 0, encoded[50:], tokenizer),
    ]
    write_index(folder, shards, tokenizer, {"name": "test"})
    return folder


def tiny_fields(data: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the fields of a run of a few seconds; `changes` maps dotted names to values."""
    fields: dict[str, Any] = {
        "seed": 3,
        "model": {"vocab_size": VOCAB, "dim": 16, "layers": 2, "heads": 2, "mlp_hidden": 24},
        "data": {"source": str(data), "seq_len": 32, "valid_rows": 10},
        "optim": {"warmup_steps": 4, "learning_rate": 1e-2},
        "train": {"steps": 12, "batch_size": 8, "log_every": 1, "eval_every": 6, "save_every": 4},
    }
    for name, value in (changes or {}).items():
        *blocks, leaf = name.split(".")
        target = fields
        for block in blocks:
            target = target.setdefault(block, {})
        target[leaf] = copy.deepcopy(value)  # later changes may go into a block of it
    return fields


HOPE = {
    "model.block": "hope_attention",
    "model.cms": {"periods": [8, 16], "hidden": 24},
    "teach": {"mode": "exact", "chunk": 8},
}


def tiny_config(data: Path, changes: Mapping[str, Any] | None = None) -> Config:
    return from_config_dict(tiny_fields(data, changes))


def write_config(folder: Path, data: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Write a config file of a tiny run, and return its path."""
    return write_fields(folder, tiny_fields(data, changes))


def write_fields(folder: Path, fields: Mapping[str, Any]) -> Path:
    """Write a config file of these fields, and return its path."""
    file = folder / "configs" / "tiny.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "import json\nimport ml_collections\n\n\ndef get_config(arg=None):\n"
        f"    return ml_collections.ConfigDict(json.loads({json.dumps(fields)!r}))\n"
    )
    return file


def environment(devices: int = 1) -> dict[str, str]:
    """Return the environment of a process that compiles like the tests, on so many devices.

    The flags are the same in every start, so runs stay comparable bit for bit.
    """
    count = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": f"{xla_flags()} {count}"}


def launch(config: Path, workdir: Path, *flags: str, devices: int = 1) -> subprocess.Popen[str]:
    """Start launch.py in a process of its own."""
    environ = environment(devices)
    command = [sys.executable, str(ROOT / "launch.py"), "--config", str(config)]
    command += ["--workdir", str(workdir), *flags]
    return subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launch_two(config: Path, workdir: Path, *flags: str) -> list[subprocess.Popen[str]]:
    """Start launch.py in two processes of one run, with two devices each."""
    flags += ("--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2")
    return [launch(config, workdir, *flags, "--process-id", str(i), devices=2) for i in range(2)]


def read_lines(workdir: Path) -> list[dict[str, Any]]:
    """Return metrics.jsonl without timings; every line of it must parse."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]
