"""Time of one outer update, every optimizer beside AdamW: a JSON line each.

    python benchmarks/optimizers.py [--layers 4 --dim 256 --mlp 704 --vocab 8192 --repeats 20]
    python benchmarks/optimizers.py --steps     whole training steps of configs/pilot.py:smoke

The parameters are those of a scan-stacked transformer: q, k, v, o, a gated MLP, norms and a tied
embedding. `ratio` is the time of the update over AdamW's; `gigaflop` is the cost of orthogonalising
every matrix once, to set against the 6 * parameters * tokens of the step around it. M3 is timed
over whole periods of its slow momentum. The optimizers take turns: a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nested_jax.config import OptimConfig, load_config, parse_overrides
from nested_jax.models.lm import build_model
from nested_jax.optim import M3, make_optimizer, tree_dims
from nested_jax.train.state import new_state
from nested_jax.train.step import make_program, train_step
from nested_jax.types import Batch, ParamInfo, PyTree

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = {
    "adamw": ["--config.optim.name=adamw"],
    "muon": ["--config.optim.name=muon"],
    "m3": ["--config.optim.name=m3"],
    "levels": ["--config.optim.name=adamw", "--config.optim.periods=(1,4,16)"],
}
NAMES = ("adamw", "muon", "m3", "dgd", "delta_momentum", "deep_momentum")


def transformer_info(layers: int, dim: int, heads: int, mlp: int, vocab: int) -> PyTree:
    """Return the `ParamInfo` tree of a plain transformer."""
    width = dim // heads
    up, down = ("layers", "embed", "mlp"), ("layers", "mlp", "embed")
    split, join = ("heads", "head_width"), ("layers", "heads", "head_width", "embed")
    info = {
        "embed": ParamInfo((vocab, dim), ("vocab", "embed"), "embed"),
        "o": ParamInfo((layers, heads, width, dim), join, "matrix"),
        "gate": ParamInfo((layers, dim, mlp), up, "matrix"),
        "up": ParamInfo((layers, dim, mlp), up, "matrix"),
        "down": ParamInfo((layers, mlp, dim), down, "matrix"),
        "norm1": ParamInfo((layers, dim), ("layers", "norm"), "vector"),
        "norm2": ParamInfo((layers, dim), ("layers", "norm"), "vector"),
    }
    for name in "qkv":
        shape = (layers, dim, heads, width)
        info[name] = ParamInfo(shape, ("layers", "embed", *split), "matrix")
    return info


def newton_schulz_flop(info: PyTree, steps: int) -> int:
    """Return the floating-point operations of orthogonalising every matrix once."""
    total = 0
    for name, dims in tree_dims(info).items():
        if dims is None:
            continue
        leaf = info[name]
        rows, columns = dims.matrix_shape(leaf.shape)
        small, large = min(rows, columns), max(rows, columns)
        batch = leaf.shape[0]
        total += batch * steps * (4 * small * small * large + 2 * small**3)
    return total


def make_update(name: str, info: PyTree, params: PyTree) -> Callable[[], None]:
    """Return a function that does one update of `name` and waits for it."""
    tx = make_optimizer(OptimConfig(name=name), 1000, info)  # type: ignore[arg-type]
    grads = jax.tree.map(lambda p: 0.01 * p, params)

    def step(params: PyTree, state: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1))
    held: Any = (jax.tree.map(jnp.copy, params), jax.jit(tx.init)(params))

    def once() -> None:
        nonlocal held
        held = jax.block_until_ready(compiled(*held, grads))

    return once


def measure(info: PyTree, repeats: int) -> dict[str, float]:
    """Return the median milliseconds of an update, by name."""
    keys = iter(jax.random.split(jax.random.key(0), len(info)))
    params = {name: jax.random.normal(next(keys), leaf.shape) for name, leaf in info.items()}
    period = OptimConfig().m3_period
    updates = {name: make_update(name, info, params) for name in NAMES}
    for once in updates.values():
        once()
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(repeats):
        for name, once in updates.items():
            rounds = period if name == "m3" else 1
            start = time.perf_counter()
            for _ in range(rounds):
                once()
            times[name].append((time.perf_counter() - start) / rounds)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def training_step(changes: list[str]) -> Callable[[], None]:
    """Return a function that takes one step of configs/pilot.py:smoke and waits for it."""
    cfg = load_config(str(ROOT / "configs/pilot.py") + ":smoke", parse_overrides(changes))
    model = build_model(cfg.model)
    program = make_program(cfg, model)
    shape = cfg.train.batch_size, cfg.data.seq_len + 1
    text = jax.random.randint(jax.random.key(1), shape, 0, cfg.model.vocab_size)
    ones = jnp.ones((shape[0], shape[1] - 1))
    batch = Batch(text[:, :-1], text[:, 1:], ones, ones.astype(jnp.int32))
    step = jax.jit(partial(train_step, program=program), donate_argnums=0)
    state = jax.jit(lambda k: new_state(model.init(k), program.optimizer))(jax.random.key(0))

    def once() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)

    return once


def measure_steps(rounds: int) -> dict[str, float]:
    """Return the mean milliseconds of a step, by variant, over `rounds` steps of each in turn."""
    steps = {name: training_step(changes) for name, changes in VARIANTS.items()}
    total = dict.fromkeys(steps, 0.0)
    for i in range(rounds + 1):  # the first compiles
        for name, once in steps.items():
            start = time.perf_counter()
            once()
            total[name] += (time.perf_counter() - start) * (i > 0)
    return {name: 1e3 * seconds / rounds for name, seconds in total.items()}


def machine() -> dict[str, Any]:
    """Return what a number stands with."""
    return {
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "versions": {p: importlib.metadata.version(p) for p in ("jax", "jaxlib", "optax")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, value in (("layers", 4), ("dim", 256), ("heads", 4), ("mlp", 704), ("vocab", 8192)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--steps", action="store_true", help="whole steps, two periods of M3")
    args = parser.parse_args()
    if args.steps:
        milliseconds = measure_steps(2 * OptimConfig().m3_period)
        for name, value in milliseconds.items():
            ratio = {"ratio": round(value / milliseconds["adamw"], 2)}
            record = {"benchmark": "training step", "optimizer": name, "milliseconds": round(value)}
            print(json.dumps(record | ratio | machine()))
        return
    info = transformer_info(args.layers, args.dim, args.heads, args.mlp, args.vocab)
    times = measure(info, args.repeats)
    flop = newton_schulz_flop(info, M3().steps)
    parameters = sum(math.prod(leaf.shape) for leaf in info.values())
    for name in NAMES:
        print(
            json.dumps(
                {
                    "benchmark": "optimizers",
                    "optimizer": name,
                    "milliseconds": round(times[name], 3),
                    "ratio": round(times[name] / times["adamw"], 2),
                    "gigaflop": round(flop / 1e9, 2) if name in ("muon", "m3") else 0.0,
                    "parameters": parameters,
                    **{
                        key: getattr(args, key)
                        for key in ("layers", "dim", "heads", "mlp", "vocab")
                    },
                    **machine(),
                }
            )
        )


if __name__ == "__main__":
    main()
