"""Our neural memory and `titans_mac` beside titans-pytorch on one machine, one JSON line each.

    pip install torch titans-pytorch
    python benchmarks/compare_titans_pytorch.py [--only memory mac] [--rounds 5] [--devices 2]

`memory`: one neural memory layer of width 256 with 4 heads of 64, 2 x 1024 tokens, forward and
backward to input and parameters, chunks of 16 and 64. `mac`: training steps (AdamW) of 4-layer
models of width 256 with segments of 128 on 2 x 1024 tokens. Both frameworks use the same number of
threads and take turns. The settings are matched: a memory is an MLP of two matrices, 64 to 64 times
`--hidden` and back (titans-pytorch's own default is 4), with momentum, forgetting and
data-dependent rates; no convolution; equal parameters of the models within 2 %. What cannot be
matched is in `DIFFERENCES`, and in every line.

With `--compute bfloat16` the products of ours have that type (its fast weights stay float32), and
theirs runs under `torch.autocast`.

With `--devices N` ours runs as data parallel over N virtual devices of the CPU, a part of the rows
each. XLA's loops over chunks use one core per device, so that this is how ours uses two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blocks import Step, count, equal_config, interleave
from flax import linen as nn
from throughput import where

from nested_jax.config import MeshConfig, from_config_dict
from nested_jax.layers.titans import NeuralMemory
from nested_jax.models.stream import empty_context, make_call
from nested_jax.ops.chunking import Rows
from nested_jax.sharding import batch_sharding, make_mesh, replicated

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


class Mode(NamedTuple):
    """How both run."""

    remat: Literal["full", "none"]  # of ours
    compute: Literal["float32", "bfloat16"]

    def autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.compute == "bfloat16")


def memory_sizes(hidden: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the same memory as ours and theirs; `hidden`: its hidden width over its head width."""
    ours = {"arch": "mlp", "depth": 2, "hidden": hidden, "rule": "titans", "conv": 0}
    theirs = {
        "dim_head": WIDTH // HEADS,
        "heads": HEADS,
        "momentum": True,
        "default_model_kwargs": {"depth": 2, "expansion_factor": hidden},
    }
    return ours, theirs


def our_memory(hidden: float, chunk: int, read: str, mode: Mode) -> Callable[[], None]:
    memory = memory_sizes(hidden)[0] | {"chunk": chunk, "generator_chunk": chunk, "read": read}
    sizes = {"block": "titans_lmm", "dim": WIDTH, "heads": HEADS, "layers": 1}
    ours = {"memory": memory, "remat": mode.remat, "compute_dtype": mode.compute}
    cfg = from_config_dict({"model": sizes | ours}).model
    layer = NeuralMemory(cfg)
    begin = layer.init(jax.random.key(0), ROWS, 0, method="init_state")
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1))
    whole, by_row = replicated(mesh), batch_sharding(mesh)
    variables = jax.device_put(nn.meta.unbox(begin), whole)
    x_BTD = jax.device_put(jax.random.normal(jax.random.key(1), (ROWS, TOKENS, WIDTH)), by_row)

    def loss(variables: Any, x_BTD: jax.Array) -> jax.Array:
        state = layer.apply(variables, ROWS, 0, method="init_state")
        call = make_call(cfg, empty_context(cfg, ROWS, 1), Rows(ROWS, TOKENS, start="fresh"))
        return jnp.mean(jnp.square(layer.apply(variables, state, x_BTD, call)[1]))

    gradients = jax.value_and_grad(loss, argnums=(0, 1))
    step = jax.jit(gradients, out_shardings=(whole, (whole, by_row)))
    return lambda: jax.block_until_ready(step(variables, x_BTD))


def their_memory(hidden: float, chunk: int, mode: Mode) -> Callable[[], None]:
    torch.manual_seed(0)
    layer = theirs.NeuralMemory(dim=WIDTH, chunk_size=chunk, **memory_sizes(hidden)[1])
    x = torch.randn(ROWS, TOKENS, WIDTH, requires_grad=True)

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        with mode.autocast():
            loss = layer(x)[0].square().mean()
        loss.backward()

    return step


def compare_memories(hidden: float, mode: Mode, rounds: int) -> None:
    for chunk in (16, 64):
        steps = {
            "titans-pytorch": their_memory(hidden, chunk, mode),
            "ours, read chunk": our_memory(hidden, chunk, "chunk", mode),
            "ours, read token": our_memory(hidden, chunk, "token", mode),
        }
        seconds = interleave(steps, rounds)
        report("memory", seconds, chunk=chunk, hidden=hidden, **mode._asdict())


def their_mac(hidden: float, mode: Mode) -> tuple[Callable[[], None], int]:
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
        neural_memory_kwargs=memory_sizes(hidden)[1],
    )
    for weight in model.parameters():  # theirs are views that repeat one head, which AdamW refuses
        weight.data = weight.data.contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    text = torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB, (ROWS, TOKENS + 1)))

    def step() -> None:
        optimizer.zero_grad()
        with mode.autocast():
            loss = model(text, return_loss=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step, sum(p.numel() for p in model.parameters())


def compare_macs(hidden: float, mode: Mode, rounds: int) -> None:
    their_step, wanted = their_mac(hidden, mode)
    chunks = {"chunk": SEGMENT, "generator_chunk": SEGMENT, "segment": SEGMENT}
    model = {"block": "titans_mac", "tie_embeddings": False}
    model |= {"remat": mode.remat, "compute_dtype": mode.compute}
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1))
    steps, sizes = {"titans-pytorch": their_step}, {"titans-pytorch": wanted}
    for write_from in ("attended", "input"):  # the paper's order, and theirs
        memory = memory_sizes(hidden)[0] | chunks | {"write_from": write_from}
        cfg = equal_config(model | {"memory": memory}, TOKENS, wanted)
        name = f"ours, written from {write_from}"
        steps[name], sizes[name] = Step(cfg, ROWS, TOKENS, mesh), count(cfg)
    seconds = interleave(steps, rounds)
    fields = mode._asdict() | {"segment": SEGMENT, "hidden": hidden, "parameters": sizes}
    report("mac", seconds, **fields)


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
            "devices": jax.device_count(),
            "differences": DIFFERENCES[benchmark],
        }
        print(json.dumps(record | where()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {"memory": compare_memories, "mac": compare_macs}
    parser.add_argument("--only", nargs="+", default=list(parts), choices=parts)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--devices", type=int, default=1, help="virtual devices for ours")
    parser.add_argument(
        "--hidden", type=float, nargs="+", default=[1.0, 4.0], help="of a memory, over its width"
    )
    parser.add_argument("--remat", choices=["full", "none"], default="full", help="of ours")
    parser.add_argument("--compute", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    if args.devices < 1 or ROWS % args.devices:
        parser.error(f"--devices={args.devices}: wants a divisor of the {ROWS} rows")
    if args.rounds < 1:
        parser.error(f"--rounds={args.rounds}: wants at least 1")
    if min(args.hidden) <= 0:
        parser.error(f"--hidden={args.hidden}: wants factors above 0")
    jax.config.update("jax_num_cpu_devices", args.devices)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for name in args.only:
        for hidden in args.hidden:
            parts[name](hidden, Mode(args.remat, args.compute), args.rounds)


if __name__ == "__main__":
    main()
