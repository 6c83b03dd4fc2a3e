"""Requests per second of `eval.core.scoring` against the same requests one by one, as JSON lines.

    python benchmarks/scoring.py [--only choices|needles|intents] [--blocks transformer,hope]

One by one is what a plain script does: prompt and answer are one text, read in one compiled call,
padded to the same widths, so neither side compiles while it is timed. Both sides must give the same
log-likelihoods (1e-3) or nothing is reported. `choices` has questions of four answers, with the
lengths of HellaSwag and ARC (drawn evenly); `needles` ten values after each long prompt; `intents`
the 150 intents of CLINC150 after a text and its examples, as eval/tasks/classification.py asks
for them in context.

tokens_ratio is how many times as many tokens are read one by one: where the cores are busy in both
cases it is what can be won at most, but for the batches' better use of them. slots_ratio counts the
padding too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from eval.core.reader import ModelReader
from eval.core.requests import Request, bucket, pad
from eval.core.scoring import Scorer
from nested_jax import machine
from nested_jax.config import from_config_dict
from nested_jax.models.lm import build_model
from nested_jax.types import Array

MODEL = {
    "vocab_size": 4096,
    "dim": 128,
    "layers": 4,
    "heads": 4,
    "mlp_hidden": 352,
    "max_len": 1024,
}
VARIANTS = {
    "transformer": {"block": "transformer"},
    "hope_attention": {
        "block": "hope_attention",
        "window": 128,
        "mlp_hidden": 176,
        "cms": {"periods": (64, 256), "fast_layers": 1},
    },
    "hope": {
        "block": "hope",
        "mlp_hidden": 176,
        "memory": {"chunk": 64},
        "cms": {"periods": (64, 256), "fast_layers": 1},
    },
}


def choices(rng: np.random.Generator) -> list[Request]:
    return drawn(rng, prompts=96, prompt=(20, 120), answers=4, answer=(5, 40))


def needles(rng: np.random.Generator) -> list[Request]:
    return drawn(rng, prompts=16, prompt=(500, 513), answers=10, answer=(4, 9))


def intents(rng: np.random.Generator) -> list[Request]:
    examples = text(rng, 512, 513)
    asked = [examples + text(rng, 8, 20) for _ in range(2)]
    labels = [text(rng, 2, 6) for _ in range(150)]
    return [Request(context, label) for context in asked for label in labels]


def drawn(
    rng: np.random.Generator,
    prompts: int,
    prompt: tuple[int, int],
    answers: int,
    answer: tuple[int, int],
) -> list[Request]:
    shared = [text(rng, *prompt) for _ in range(prompts)]
    return [Request(context, text(rng, *answer)) for context in shared for _ in range(answers)]


def text(rng: np.random.Generator, low: int, high: int) -> tuple[int, ...]:
    length = int(rng.integers(low, high))
    return tuple(int(t) for t in rng.integers(4, MODEL["vocab_size"], length))


SETS = {"choices": choices, "needles": needles, "intents": intents}


class Counted(ModelReader):
    """Counts the tokens that it reads, and the slots that they and their padding fill."""

    tokens = filled = 0

    def put(self, *arrays: np.ndarray) -> tuple[Array, ...]:
        if len(arrays) > 1:  # tokens, targets where there are some, lengths
            self.tokens += int(arrays[-1].sum())
            self.filled += arrays[0].size
        return super().put(*arrays)


def one_by_one(reader: ModelReader, requests: Sequence[Request]) -> list[float]:
    """Score each request by itself, in one call."""
    found = []
    for context, continuation in requests:
        whole = context + continuation
        width = bucket(len(whole) - 1)
        tokens_BT, lengths_B = pad([whole[:-1]], 1, width)
        targets_BT, _ = pad([whole[1:]], 1, width)
        state = reader.fresh(1, width)
        nats_BT, _ = reader.score_last(state, tokens_BT, targets_BT, lengths_B)
        found.append(-float(nats_BT[0, len(context) - 1 : len(whole) - 1].sum()))
    return found


def batched(scorer: Scorer, requests: Sequence[Request]) -> list[float]:
    return [score.logprob for score in scorer.loglikelihood(requests)]


def seconds(score: Callable[[], list[float]], rounds: int) -> float:
    """Return the median of some rounds; everything was compiled before."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        score()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def counted(
    reader: Counted, score: Callable[[], list[float]]
) -> tuple[list[float], tuple[int, int]]:
    """Return the log-likelihoods, and the tokens and slots that were read for them."""
    before = reader.tokens, reader.filled
    found = score()
    return found, (reader.tokens - before[0], reader.filled - before[1])


def measure(block: str, name: str, flags: argparse.Namespace) -> dict[str, object]:
    cfg = from_config_dict({"model": MODEL | VARIANTS[block]})
    model = build_model(cfg.model)
    reader = Counted(model, jax.jit(model.init)(jax.random.key(0)))
    scorer = Scorer(reader, flags.batch_size)
    requests = SETS[name](np.random.default_rng(0))
    one, (tokens, slots) = counted(reader, lambda: one_by_one(reader, requests))
    many, (fewer_tokens, fewer_slots) = counted(reader, lambda: batched(scorer, requests))
    difference = float(np.abs(np.subtract(one, many)).max())
    if difference > 1e-3:
        raise SystemExit(f"{block}, {name}: log-likelihoods differ by {difference}")
    slow = seconds(lambda: one_by_one(reader, requests), flags.rounds)
    fast = seconds(lambda: batched(scorer, requests), flags.rounds)
    return {
        "benchmark": f"scoring, {name}",
        "block": block,
        "requests": len(requests),
        "tokens": tokens,
        "batch_size": flags.batch_size,
        "batched_tokens": fewer_tokens,
        "tokens_ratio": round(tokens / fewer_tokens, 2),
        "slots_ratio": round(slots / fewer_slots, 2),
        "one_by_one_per_s": round(len(requests) / slow, 2),
        "batched_per_s": round(len(requests) / fast, 2),
        "ratio": round(slow / fast, 2),
        "largest_difference": difference,
        "device": machine.device_name(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": machine.versions(),
        "git": machine.git_commit(),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(SETS))
    parser.add_argument("--blocks", default="transformer,hope_attention,hope")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args(arguments)
    for block in flags.blocks.split(","):
        for name in SETS:
            if flags.only in (None, name):
                print(json.dumps(measure(block, name, flags)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
