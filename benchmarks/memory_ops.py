"""Time `memory_chunked` against `memory_reference`, forward and backward, as JSON lines.

    python benchmarks/memory_ops.py [--reference] [--no-remat] [--tokens 2048] [--chunks 16 64]

Each line has the configuration, device, versions, the median and the least seconds of a step (value
and gradient with respect to every input and the initial memory) and tokens/s; with `--reference`
also the reference's seconds and the ratio of the least times. Before a configuration is timed, both
forms are compared at a small size, and a difference stops the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from throughput import where

from nested_jax.ops.chunking import Rows
from nested_jax.ops.memory.arch import matrix_shapes
from nested_jax.ops.memory.chunked import memory_chunked
from nested_jax.ops.memory.reference import memory_reference
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.memory.state import MemoryInputs, MemoryState, init_state
from nested_jax.ops.normalize import l2_normalize

SPECS = {
    "linear": {"arch": "linear", "rule": "titans", "momentum": True},
    "mlp2": {"arch": "mlp", "depth": 2, "rule": "titans", "momentum": True},
    "linear_dgd": {"arch": "linear", "rule": "dgd"},
    "online_gated": {"arch": "linear", "rule": "titans", "gradient_at": "decayed"},
    "mlp2_dgd": {"arch": "mlp", "depth": 2, "rule": "dgd"},
    "mlp2_chunk_read": {"arch": "mlp", "depth": 2, "rule": "dgd", "read": "chunk"},
}
TOLERANCE = 1e-4  # relative, float32, at the small size


def make_arguments(
    spec: MemorySpec, batch: int, tokens: int, heads: int, width: int
) -> tuple[tuple[jax.Array, ...], MemoryInputs]:
    """Return fast0 [H, I, O] and inputs with the statistics of a layer at initialisation."""
    keys = iter(jax.random.split(jax.random.key(0), 16))
    shape = (batch, tokens, heads, width)

    def gate(low: float, high: float) -> jax.Array:
        return jax.random.uniform(next(keys), shape[:3], minval=low, maxval=high)

    q, k, v = (l2_normalize(jax.random.normal(next(keys), shape)) for _ in range(3))
    fast0 = tuple(
        jax.random.normal(next(keys), (heads, i, o)) / i**0.5
        for i, o in matrix_shapes(spec, width, width, width)
    )
    momentum = gate(0.0, 0.9) if spec.momentum else None
    return fast0, MemoryInputs(q, k, v, gate(0.05, 0.2), gate(0.97, 1.0), momentum)


def make_step(spec: MemorySpec, memory: Callable[..., Any]) -> Callable[..., Any]:
    """Return a jitted value-and-gradient of a scalar of outputs and end state."""

    def loss(fast0: tuple[jax.Array, ...], inputs: MemoryInputs) -> jax.Array:
        state = init_state(spec, fast0, inputs.q_BTHK.shape[0])
        state, y_BTHV = memory(spec, state, inputs)
        return jnp.mean(jnp.square(y_BTHV)) + sum(jnp.mean(jnp.square(w)) for w in state.fast)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def seconds(step: Callable[..., Any], arguments: tuple[Any, ...], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(step(*arguments))
        times.append(time.perf_counter() - start)
    return times


def check(spec: MemorySpec, fast: Callable[..., Any]) -> None:
    """Stop unless both forms agree in value and gradients at 3 chunks and a bit."""
    arguments = make_arguments(spec, 2, 3 * spec.chunk + 5, 2, 8)
    got = make_step(spec, fast)(*arguments)
    want = make_step(spec, memory_reference)(*arguments)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        error = float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
        if not error < TOLERANCE:
            raise SystemExit(f"{spec}: chunked differs from the reference by {error:.1e}")


def measure(name: str, chunk: int, args: argparse.Namespace) -> dict[str, Any]:
    spec = MemorySpec(chunk=chunk, **SPECS[name])

    def aligned(spec: MemorySpec, state: MemoryState, inputs: MemoryInputs) -> Any:
        rows = Rows.of(inputs.q_BTHK, start="aligned")
        return memory_chunked(spec, state, inputs, rows, remat=args.remat)

    check(spec, aligned)
    arguments = make_arguments(spec, args.batch, args.tokens, args.heads, args.width)
    step = make_step(spec, aligned)
    start = time.perf_counter()
    jax.block_until_ready(step(*arguments))
    record = {
        "memory": name,
        **SPECS[name],
        "chunk": chunk,
        **{k: getattr(args, k) for k in ("batch", "tokens", "heads", "width", "remat")},
        **where(),
        "compile_s": round(time.perf_counter() - start, 2),
    }
    times = seconds(step, arguments, args.repeats)
    record |= {
        "median_s": round(statistics.median(times), 4),
        "least_s": round(min(times), 4),
        "tokens_per_s": round(args.batch * args.tokens / min(times)),
    }
    if args.reference:
        slow = make_step(spec, memory_reference)
        seconds(slow, arguments, 1)
        least = min(seconds(slow, arguments, 2))
        record |= {"reference_s": round(least, 3), "ratio": round(least / min(times), 1)}
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memories", nargs="+", default=["linear", "mlp2"], choices=SPECS)
    parser.add_argument("--chunks", nargs="+", type=int, default=[16, 64])
    for name, value in (("batch", 2), ("tokens", 2048), ("heads", 4), ("width", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--no-remat", dest="remat", action="store_false", help="keep, recompute nothing"
    )
    parser.add_argument("--reference", action="store_true", help="time the reference too")
    args = parser.parse_args()
    for name in args.memories:
        for chunk in args.chunks:
            print(json.dumps(measure(name, chunk, args)), flush=True)


if __name__ == "__main__":
    main()
