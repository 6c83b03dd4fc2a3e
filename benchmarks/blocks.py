"""Training speed of block kinds at equal parameters, one JSON line each.

    python benchmarks/blocks.py [--blocks transformer titans_lmm hope] [--tokens 2048] [--rounds 5]

A step is the trainer's own: forward, backward, clipping and AdamW. Models have 4 layers of width
256 and a vocabulary of 2048; the hidden width of the MLPs makes their parameters equal to those of
the Transformer (it must be within 2 %, or the run stops). Rounds are interleaved: each runs every
model once, so that a machine whose speed drifts slows all alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from throughput import where

import nested_jax
from nested_jax.config import Config, MeshConfig, from_config_dict
from nested_jax.sharding import batch_sharding, make_mesh, replicated
from nested_jax.train.state import new_state
from nested_jax.train.step import make_program, train_step
from nested_jax.types import Batch

SIZE = {"vocab_size": 2048, "dim": 256, "layers": 4, "heads": 4, "mlp_hidden": 704}
CHUNKED = {"chunk": 64, "generator_chunk": 64}
BLOCKS: dict[str, dict[str, Any]] = {
    "transformer": {},
    "titans_lmm": {"memory": CHUNKED},
    "hope": {"memory": CHUNKED, "cms": {"periods": (64, 256), "fast_layers": 0}},
    "gated_deltanet": {},
}


def make_config(model: dict[str, Any], tokens: int) -> Config:
    fields = SIZE | {"max_len": tokens} | model
    data = {"seq_len": tokens, "align": tokens}  # a row is one document, whatever the chunks
    return from_config_dict({"model": fields, "data": data})


def count(cfg: Config) -> int:
    shapes = jax.eval_shape(nested_jax.build_model(cfg.model).init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(shapes))


def equal_config(model: dict[str, Any], tokens: int, wanted: int) -> Config:
    """Return the model with the hidden width that brings it nearest to `wanted` parameters."""
    at = [count(make_config(model | {"mlp_hidden": width}, tokens)) for width in (64, 128)]
    slope = (at[1] - at[0]) / 64
    width = max(1, round(64 + (wanted - at[0]) / slope))
    cfg = make_config(model | {"mlp_hidden": width}, tokens)
    if abs(count(cfg) / wanted - 1) > 0.02:
        raise SystemExit(f"{model}: {count(cfg)} parameters are not within 2 % of {wanted}")
    return cfg


class Step:
    """One compiled training step of the trainer with its state and a batch.

    Over a mesh it is data parallel: a part of the rows on each device, the state on all.
    """

    def __init__(self, cfg: Config, rows: int, tokens: int, mesh: Mesh | None = None) -> None:
        model = nested_jax.build_model(cfg.model)
        program = make_program(cfg, model)
        rng = np.random.default_rng(0)
        text = jnp.asarray(rng.integers(0, cfg.model.vocab_size, (rows, tokens + 1)), jnp.int32)
        ones = jnp.ones((rows, tokens))
        mesh = mesh or make_mesh(MeshConfig(data=1, fsdp=1), jax.devices()[:1])
        batch = Batch(text[:, :-1], text[:, 1:], ones, ones.astype(jnp.int32))
        self.batch = jax.device_put(batch, batch_sharding(mesh))
        whole = replicated(mesh)
        create = jax.jit(
            lambda key: new_state(model.init(key), program.optimizer), out_shardings=whole
        )
        self.state = create(jax.random.key(0))
        step = jax.jit(
            partial(train_step, program=program), donate_argnums=0, out_shardings=(whole, None)
        )
        began = time.perf_counter()
        self.compiled = step.lower(self.state, self.batch).compile()
        self.compile_s = time.perf_counter() - began

    def __call__(self) -> None:
        self.state, metrics = self.compiled(self.state, self.batch)
        jax.block_until_ready(metrics)


def interleave(steps: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every step; each round runs each once, the first is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if i:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", nargs="+", default=list(BLOCKS)[:3], choices=BLOCKS)
    for name, value in (("rows", 2), ("tokens", 2048), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    wanted = count(make_config({"block": "transformer"}, args.tokens))
    steps, sizes = {}, {}
    for name in dict.fromkeys(["transformer", *args.blocks]):
        cfg = equal_config({"block": name} | BLOCKS[name], args.tokens, wanted)
        steps[name], sizes[name] = Step(cfg, args.rows, args.tokens), count(cfg)
    measured = interleave(steps, args.rounds)
    base = statistics.median(measured["transformer"])
    for name, seconds in measured.items():
        median = statistics.median(seconds)
        record = {
            "benchmark": "blocks",
            "block": name,
            "parameters": sizes[name],
            "rows": args.rows,
            "tokens": args.tokens,
            "compile_s": round(steps[name].compile_s, 1),
            "median_s": round(median, 4),
            "least_s": round(min(seconds), 4),
            "tokens_per_s": round(args.rows * args.tokens / median),
            "speed_over_transformer": round(base / median, 3),
        }
        print(json.dumps(record | where()), flush=True)


if __name__ == "__main__":
    main()
