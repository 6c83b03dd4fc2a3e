"""Our neural memory and `titans_mac` beside titans-pytorch on one machine, one JSON line each.

    pip install torch titans-pytorch
    python benchmarks/compare_titans_pytorch.py [--only memory mac] [--rounds 5]

`memory`: one neural memory layer of width 256 with 4 heads of 64, 2 x 1024 tokens, forward and
backward to input and parameters, chunks of 16 and 64. `mac`: training steps (AdamW) of 4-layer
models of width 256 with segments of 128 on 2 x 1024 tokens. Both frameworks use the same number of
threads and take turns. The settings are matched: a memory is an MLP of two 64 x 64 matrices with
momentum, forgetting and data-dependent rates; no convolution; equal parameters of the models within
2 %. What cannot be matched is in `DIFFERENCES`, and in every line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blocks import Step, count, equal_config, interleave
from flax import linen as nn
from throughput import where

from nested_jax.config import from_config_dict
from nested_jax.layers.titans import NeuralMemory
from nested_jax.models.stream import empty_context, make_span

try:
    import titans_pytorch as theirs
    import torch
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"{missing.name} is not installed; this comparison wants `pip install torch titans-pytorch`"
    ) from missing

ROWS, TOKENS, WIDTH, HEADS, LAYERS, SEGMENT, VOCAB = 2, 1024, 256, 4, 4, 128, 2048
DIFFERENCES = {
    "memory": (
        "theirs normalises its input and the memory's output (LayerNorm and residual inside the"
        " memory), ours the answers, with an output gate of its own; `read`: theirs answers from"
        " the last chunk boundary, ours does in 'chunk' and from the running memory in 'token'"
    ),
    "mac": (
        "theirs attends to persistent tokens and the segment and adds the memory's answer to the"
        " residual stream, ours also to the 128 answers (Titans Sec. 4.1); theirs has axial"
        " position embeddings and an untied head; one residual stream in both"
    ),
}
MEMORY = {"arch": "mlp", "depth": 2, "hidden": 1.0, "rule": "titans", "conv": 0}
THEIR_MEMORY = {
    "dim_head": WIDTH // HEADS,
    "heads": HEADS,
    "momentum": True,
    "default_model_kwargs": {"depth": 2, "expansion_factor": 1.0},
}


def our_memory(chunk: int, read: str) -> Callable[[], None]:
    memory = MEMORY | {"chunk": chunk, "generator_chunk": chunk, "read": read}
    model = {"block": "titans_lmm", "dim": WIDTH, "heads": HEADS, "layers": 1, "memory": memory}
    cfg = from_config_dict({"model": model}).model
    layer = NeuralMemory(cfg)
    begin = layer.init(jax.random.key(0), ROWS, 0, method="init_state")
    variables = nn.meta.unbox(begin)
    x_BTD = jax.random.normal(jax.random.key(1), (ROWS, TOKENS, WIDTH))

    def loss(variables: Any, x_BTD: jax.Array) -> jax.Array:
        state = layer.apply(variables, ROWS, 0, method="init_state")
        span = make_span(empty_context(cfg, ROWS, 1), TOKENS, origin="fresh")
        return jnp.mean(jnp.square(layer.apply(variables, state, x_BTD, span, None)[1]))

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return lambda: jax.block_until_ready(step(variables, x_BTD))


def their_memory(chunk: int) -> Callable[[], None]:
    torch.manual_seed(0)
    layer = theirs.NeuralMemory(dim=WIDTH, chunk_size=chunk, **THEIR_MEMORY)
    x = torch.randn(ROWS, TOKENS, WIDTH, requires_grad=True)

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x)[0].square().mean().backward()

    return step


def compare_memories(rounds: int) -> None:
    for chunk in (16, 64):
        steps = {
            "titans-pytorch": their_memory(chunk),
            "ours, read chunk": our_memory(chunk, "chunk"),
            "ours, read token": our_memory(chunk, "token"),
        }
        report("memory", interleave(steps, rounds), chunk=chunk)


def their_mac() -> tuple[Callable[[], None], int]:
    torch.manual_seed(0)
    model = theirs.MemoryAsContextTransformer(
        num_tokens=VOCAB,
        dim=WIDTH,
        depth=LAYERS,
        segment_len=SEGMENT,
        num_persist_mem_tokens=4,
        dim_head=WIDTH // HEADS,
        heads=HEADS,
        num_residual_streams=1,
        neural_memory_kwargs=THEIR_MEMORY,
    )
    for weight in model.parameters():  # theirs are views that repeat one head, which AdamW refuses
        weight.data = weight.data.contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    text = torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB, (ROWS, TOKENS + 1)))

    def step() -> None:
        optimizer.zero_grad()
        model(text, return_loss=True).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step, sum(p.numel() for p in model.parameters())


def compare_macs(rounds: int) -> None:
    their_step, wanted = their_mac()
    memory = MEMORY | {"chunk": SEGMENT, "generator_chunk": SEGMENT, "segment": SEGMENT}
    model = {"block": "titans_mac", "tie_embeddings": False, "memory": memory}
    cfg = equal_config(model, TOKENS, wanted)
    steps = {"titans-pytorch": their_step, "ours": Step(cfg, ROWS, TOKENS)}
    sizes = {"titans-pytorch": wanted, "ours": count(cfg)}
    report("mac", interleave(steps, rounds), segment=SEGMENT, parameters=sizes)


def report(benchmark: str, measured: dict[str, list[float]], **fields: Any) -> None:
    base = statistics.median(measured["titans-pytorch"])
    for name, seconds in measured.items():
        median = statistics.median(seconds)
        record = {
            "benchmark": f"titans_pytorch {benchmark}",
            "implementation": name,
            **fields,
            "median_s": round(median, 4),
            "least_s": round(min(seconds), 4),
            "tokens_per_s": round(ROWS * TOKENS / median),
            "speed_over_titans_pytorch": round(base / median, 2),
            "threads": torch.get_num_threads(),
            "differences": DIFFERENCES[benchmark],
        }
        print(json.dumps(record | where()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {"memory": compare_memories, "mac": compare_macs}
    parser.add_argument("--only", nargs="+", default=list(parts), choices=parts)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for name in args.only:
        parts[name](args.rounds)


if __name__ == "__main__":
    main()
