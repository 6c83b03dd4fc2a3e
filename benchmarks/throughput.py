"""Step time of the models as ratios within one run, one JSON line each.

    python benchmarks/throughput.py                  what this machine can run
    python benchmarks/throughput.py --torch          beside eager PyTorch
                                                     (pip install torch==2.13.0)
    python benchmarks/throughput.py --only teach     transformer | teach | compile

The Transformer has 4 layers, width 256, vocabulary 8192 and reads 8 x 512 tokens, forward, backward
and AdamW. `teach` is the same model with two CMS levels in its last block and 64-token chunks.
Times are medians of steps after warm-up; what is compared runs in turn, so that a machine whose
speed drifts slows all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nested_jax
from nested_jax.config import Config, from_config_dict
from nested_jax.types import Batch

BATCH, TOKENS, VOCAB, DIM, LAYERS, HEADS, HIDDEN = 8, 512, 8192, 256, 4, 4, 704
TRANSFORMER = {
    "block": "transformer",
    "vocab_size": VOCAB,
    "dim": DIM,
    "layers": LAYERS,
    "heads": HEADS,
    "mlp_hidden": HIDDEN,
    "max_len": TOKENS,
}
HOPE = TRANSFORMER | {
    "block": "hope_attention",
    "window": 128,
    "mlp_hidden": HIDDEN // 2,
    "cms": {"periods": (64, 256), "fast_layers": 1},
}


def experiment(model: dict[str, Any], tokens: int = TOKENS, **teach: Any) -> Config:
    return from_config_dict({"model": model, "teach": teach, "data": {"seq_len": tokens}})


def batch(tokens: int = TOKENS) -> Batch:
    rng = np.random.default_rng(0)
    text = jnp.asarray(rng.integers(0, VOCAB, (BATCH, tokens + 1)), jnp.int32)
    ones = jnp.ones((BATCH, tokens))
    return Batch(text[:, :-1], text[:, 1:], ones, ones.astype(jnp.int32))


class Step:
    """One compiled training step with its state."""

    def __init__(self, cfg: Config, tokens: int = TOKENS) -> None:
        model, tx = nested_jax.build_model(cfg.model), optax.adamw(1e-3)
        self.batch = batch(tokens)

        def step(params: Any, opt: Any, batch: Batch) -> tuple[Any, Any, jax.Array]:
            loss = lambda p: nested_jax.loss_fn(model, p, batch, cfg)[0]  # noqa: E731
            value, grads = jax.value_and_grad(loss)(params)
            updates, opt = tx.update(grads, opt, params)
            return optax.apply_updates(params, updates), opt, value

        params = jax.jit(model.init)(jax.random.key(0))
        self.state = params, jax.jit(tx.init)(params)
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*self.state, self.batch)
        began = time.perf_counter()
        self.compiled = lowered.compile()
        self.compile_s = time.perf_counter() - began
        self.temp_bytes = self.compiled.memory_analysis().temp_size_in_bytes

    def __call__(self) -> None:
        *state, loss = self.compiled(*self.state, self.batch)
        self.state = tuple(state)
        loss.block_until_ready()


def torch_step() -> Callable[[], None]:
    """The same Transformer in eager PyTorch: RMSNorm, RoPE, SwiGLU, SDPA, tied head, AdamW."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    half = DIM // HEADS // 2
    angle = torch.outer(torch.arange(TOKENS), 10_000.0 ** (-torch.arange(half) / half))
    cos, sin = angle.cos(), angle.sin()

    def rotate(x: Any) -> Any:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.RMSNorm(DIM), nn.RMSNorm(DIM)])
            self.qkv = nn.Linear(DIM, 3 * DIM, bias=False)
            self.out = nn.Linear(DIM, DIM, bias=False)
            self.gate_up = nn.Linear(DIM, 2 * HIDDEN, bias=False)
            self.down = nn.Linear(HIDDEN, DIM, bias=False)

        def forward(self, x: Any) -> Any:
            qkv = self.qkv(self.norms[0](x)).view(*x.shape[:2], 3, HEADS, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).flatten(2))
            gate, up = self.gate_up(self.norms[1](x)).chunk(2, dim=-1)
            return x + self.down(F.silu(gate) * up)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(VOCAB, DIM)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm = nn.RMSNorm(DIM)

        def forward(self, tokens: Any) -> Any:
            x = self.embed(tokens)
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.embed.weight.T

    model = Model()
    tx = torch.optim.AdamW(model.parameters(), 1e-3)
    text = torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB, (BATCH, TOKENS + 1)))

    def step() -> None:
        loss = F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        tx.zero_grad()
        loss.backward()
        tx.step()

    return step


def times(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each step; every round runs each once, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if i:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def transformer(rounds: int, with_torch: bool) -> None:
    steps: dict[str, Callable[[], None]] = {"jax": Step(experiment(TRANSFORMER))}
    if with_torch:
        steps["torch"] = torch_step()
    for name, seconds in (measured := times(steps, rounds)).items():
        speed = {"step_s": seconds, "tokens_per_s": BATCH * TOKENS / seconds}
        ratio = measured["torch"] / seconds if with_torch else None
        emit("transformer", framework=name, **speed, speed_over_torch=ratio)


def teaching(rounds: int, with_torch: bool) -> None:
    del with_torch
    variants = {
        "off": {"mode": "off"},
        "stop": {"mode": "exact", "meta_gradient": "stop", "remat": "none"},
        "through": {"mode": "exact", "meta_gradient": "through", "remat": "none"},
        "through, remat chunk": {"mode": "exact", "meta_gradient": "through", "remat": "chunk"},
        "through, remat sqrt": {"mode": "exact", "meta_gradient": "through", "remat": "sqrt"},
    }
    steps = {name: Step(experiment(HOPE, **teach)) for name, teach in variants.items()}
    for name, seconds in (measured := times(dict(steps), rounds)).items():
        emit(
            "teach",
            variant=name,
            step_s=seconds,
            tokens_per_s=BATCH * TOKENS / seconds,
            over_off=seconds / measured["off"],
            temp_mib=steps[name].temp_bytes / 2**20,
        )


def compiling(rounds: int, with_torch: bool) -> None:
    """Compile time against depth and number of chunks, and temporary memory against chunks.

    `memory`: a longer text in chunks of 64 tokens. `memory of 2048 tokens`: the same text in more
    and shorter chunks, so that all that grows is what the chunk scan keeps.
    """
    del rounds, with_torch
    on = {"mode": "exact", "remat": "sqrt"}
    for layers in (4, 8, 16):
        step = Step(experiment(HOPE | {"layers": layers}, 256, **on), 256)
        emit("compile", layers=layers, chunks=4, compile_s=step.compile_s)
    for chunks in (4, 8, 16, 32, 64):
        for block, remat in (("full", "sqrt"), ("none", "none")):
            measure_memory("memory", 64 * chunks, 64, block, remat)
            measure_memory("memory of 2048 tokens", 2048, 2048 // chunks, block, remat)


def measure_memory(benchmark: str, tokens: int, chunk: int, block: str, remat: str) -> None:
    model = HOPE | {"dim": 128, "mlp_hidden": 128, "loss_chunk": 512, "remat": block}
    model |= {"cms": {"periods": (chunk, 4 * chunk), "fast_layers": 1}}
    step = Step(experiment(model, tokens, mode="exact", chunk=chunk, remat=remat), tokens)
    emit(
        benchmark,
        block_remat=block,
        teach_remat=remat,
        chunks=tokens // chunk,
        compile_s=step.compile_s,
        temp_mib=step.temp_bytes / 2**20,
    )


def emit(benchmark: str, **values: Any) -> None:
    print(json.dumps({"benchmark": benchmark, **values, **where()}), flush=True)


def where() -> dict[str, Any]:
    names = ("jax", "jaxlib", "flax", "torch", "titans-pytorch")
    installed = {d.name.lower() for d in metadata.distributions() if d.name}
    commit = partial(subprocess.run, capture_output=True, text=True, check=False)
    return {
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {n: metadata.version(n) for n in names if n in installed},
        "allocator": os.environ.get("GLIBC_TUNABLES", ""),
        "git": commit(["git", "rev-parse", "--short", "HEAD"]).stdout.strip(),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", action="store_true", help="compare with eager PyTorch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["transformer", "teach", "compile"])
    flags = parser.parse_args(arguments)
    parts = {"transformer": transformer, "teach": teaching, "compile": compiling}
    for name, part in parts.items():
        if flags.only in (None, name):
            part(flags.rounds, flags.torch)


if __name__ == "__main__":
    main(sys.argv[1:])
