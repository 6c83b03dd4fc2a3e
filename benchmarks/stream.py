"""Read a text that is longer than any context, and show that memory and time stay flat.

    python benchmarks/stream.py [--tokens 1000000] [--block hope] [--piece 512]

The bytes of the standard library stream through one sequence of a model at test size, which learns
as it reads (`nested_jax.teach`); only the state is carried. One JSON line for every tenth of the
stream (tokens read, microseconds a token, resident bytes, bytes of the state), and a last one with
the spread. The first tenth, in which the allocator settles, is not part of it. Exit status 1:
memory moved by more than 5 % or time a token by more than 20 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nested_jax
from nested_jax.config import Config, from_config_dict
from nested_jax.data.text.stdlib_text import stdlib_root, texts_of

MEMORY_SPREAD, TIME_SPREAD = 0.05, 0.20


def config(block: str) -> Config:
    model = {
        "block": block,
        "vocab_size": 256,
        "dim": 32,
        "layers": 3,
        "heads": 2,
        "mlp_hidden": 96,
        "window": 24,
        "memory": {"chunk": 16, "generator_chunk": 16},
        "cms": {"periods": (16, 64)},
    }
    return from_config_dict(
        {"model": model, "teach": {"mode": "exact", "chunk": 16}, "data": {"seq_len": 64}}
    )


def pieces(tokens: int, size: int) -> Iterator[np.ndarray]:
    """Yield [1, size + 1] bytes, each piece starting at the last byte of the one before."""
    rest, read = np.zeros(0, np.uint8), 0
    while read < tokens:
        for _, text in texts_of(stdlib_root(), Counter()):
            rest = np.concatenate([rest, np.frombuffer(text.encode(), np.uint8)])
            while len(rest) > size and read < tokens:
                yield rest[None, : size + 1].astype(np.int32)
                rest, read = rest[size:], read + size
            if read >= tokens:
                return


def resident_bytes() -> int:
    """Return the memory that the process holds now (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status has no VmRSS: this benchmark wants Linux")


def spread(values: list[float]) -> float:
    """Return how far the values lie from their median at most, relative to it."""
    middle = statistics.median(values)
    return max(abs(v - middle) for v in values) / middle


def stream(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    cfg = config(args.block)
    model = nested_jax.build_model(cfg.model)
    params = jax.jit(model.init)(jax.random.key(0))
    state = jax.jit(partial(model.init_state, batch_size=1))(params)
    step = jax.jit(partial(nested_jax.teach, model, cfg=cfg.teach), donate_argnums=1)
    held = sum(x.nbytes for x in jax.tree.leaves(state))
    tenth, read, times, losses = args.tokens // 10, 0, [], []
    for text in pieces(args.tokens, args.piece):
        begun = time.perf_counter()
        state, taught = step(params, state, jnp.asarray(text[:, :-1]), jnp.asarray(text[:, 1:]))
        losses.append(float(jnp.mean(taught.loss_BT)))
        times.append((time.perf_counter() - begun) / args.piece)
        read += args.piece
        if read // tenth > (read - args.piece) // tenth:
            yield {
                "tokens": read,
                "median_us_a_token": round(1e6 * statistics.median(times), 2),
                "resident_bytes": resident_bytes(),
                "state_bytes": held,
                "loss": round(statistics.mean(losses), 4),
            }
            times, losses = [], []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--block", default="hope", help="a block with a CMS")
    parser.add_argument("--piece", type=int, default=512, help="tokens a call")
    args = parser.parse_args()
    records = []
    for record in stream(args):
        records.append(record)
        print(json.dumps(record), flush=True)
    settled = records[1:]
    memory = spread([r["resident_bytes"] for r in settled])
    times = spread([r["median_us_a_token"] for r in settled])
    flat = memory <= MEMORY_SPREAD and times <= TIME_SPREAD
    summary = {
        "block": args.block,
        "tokens": records[-1]["tokens"],
        "memory_spread": round(memory, 4),
        "time_spread": round(times, 4),
        "flat": flat,
        "finite": bool(np.isfinite([r["loss"] for r in records]).all()),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    print(json.dumps(summary), flush=True)
    return 0 if flat and summary["finite"] else 1


if __name__ == "__main__":
    sys.exit(main())
