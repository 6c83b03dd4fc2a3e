"""The cases of the golden files: what is run for them, and where their programs come from.

Every case is a configuration of a two-layer model. Batches and texts are drawn with numpy from
fixed seeds, so that a case needs no tokenizer and no shards. `tests/test_golden.py` compares.
"""

from __future__ import annotations

import os
import platform
import shlex
import zlib
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Every import from the package stands here: a file that moves is followed in this place only.
from nested_jax import Batch, Config, build_model, load_config
from nested_jax.config import BLOCKS, ModelConfig, from_config_dict, parse_overrides
from nested_jax.config.schema import to_dict
from nested_jax.train.state import new_state
from nested_jax.train.step import make_program, new_carry, train_step

ROOT = Path(__file__).resolve().parent.parent
STEPS = 3
ROWS, T, SYMBOLS = 2, 32, 29
CHUNK = 8  # documents start at multiples of it
WHOLE, PACKED = (T,), (16, 5, 3)  # tokens of the documents of a row
NOISE = 0.1  # added to fresh parameters: gates start at their bias, and noise puts them to work

Numbers = dict[str, list[float]]

# --- training steps -------------------------------------------------------------------------------

TAUGHT = {"teach.mode": "exact"}
DEEP = {"model.memory.arch": "mlp"}
UNWRITTEN = {"model.cms.fast_layers": 0}
STREAM = {"data.mode": "stream"}

TAUGHT_BLOCKS = ("hope", "hope_attention", "hope_hybrid", "lstm_cms", "gpt2_cms")
TITANS = ("titans_lmm", "titans_mac", "titans_mag", "titans_mal")


def block_case(block: str) -> dict[str, Any]:
    """Return the changes of the case of a block kind, which has the name of the kind."""
    changes: dict[str, Any] = {"model.block": block}
    if block in TAUGHT_BLOCKS:
        changes |= TAUGHT
    if block in TITANS:
        changes |= DEEP
    if block in ("transformer", "gpt2", "gpt2_cms"):
        changes["model.window"] = 0
    return changes


# Changes to `fields`, by the name of the case.
CASES: dict[str, dict[str, Any]] = {block: block_case(block) for block in BLOCKS}
CASES |= {
    "hope, erase gate, own generators": {
        "model.block": "hope",
        "model.memory.rule": "dgd",
        "model.memory.objective": "dot",
        "model.memory.momentum": False,
        "model.memory.max_rate": 2.0,
        "model.memory.erase_gate": True,
        "model.memory.generator_pace": 0.3,
        "model.memory.generator_inputs": "own",
        **UNWRITTEN,
    },
    "teach local": {"model.block": "hope_attention", "teach.mode": "local"},
    "teach stop, nested momentum": {
        **CASES["hope_attention"],
        "teach.meta_gradient": "stop",
        "model.cms.chain": "nested",
        "model.cms.optimizer": "momentum",
    },
    "teach last 2 chunks, independent adam, surprise threshold": {
        **CASES["hope_attention"],
        "teach.meta_gradient": 2,
        "teach.surprise_threshold": 3.4,
        "model.cms.chain": "independent",
        "model.cms.optimizer": "adam",
    },
    "teach two layers, dgd of low rank, clip, sqrt remat": {
        **CASES["hope_attention"],
        "teach.clip": 0.05,
        "teach.remat": "sqrt",
        "model.cms.fast_layers": 2,
        "model.cms.fast_rank": 3,
        "model.cms.keep": 0.9,
        "model.cms.optimizer": "dgd",
    },
    "muon with levels": {
        **CASES["lstm_cms"],
        **UNWRITTEN,
        "optim.name": "muon",
        "optim.periods": (1, 2, 3),
    },
    "two microbatches": {"model.block": "lstm", "train.grad_accum": 2},
    "surprise objectives": {**CASES["lstm_cms"], **UNWRITTEN, "model.cms.surprise": (0.5, 0.2)},
    "label smoothing": {"model.block": "lstm", "train.label_smoothing": 0.1},
    "stream, mixers carried": {
        **CASES["lstm_cms"],
        **UNWRITTEN,
        **STREAM,
        "train.carry": "mixers",
    },
    "stream, all carried": {**CASES["hope_attention"], **STREAM, "train.carry": "all"},
    "packed documents": {**CASES["hope_attention"]},
}
# Documents of the rows of a batch, where they differ from one whole row and one packed row.
DOCUMENTS = {
    "packed documents": (PACKED, (8, 7, 1, 6)),
    "stream, mixers carried": (WHOLE, (16, 16)),
    "stream, all carried": (WHOLE, (16, 16)),
}
# One case of each family, not marked slow: 40 s of one core. All cases take four minutes.
QUICK = ("transformer", "hope_attention", "titans_lmm", "gated_deltanet", "lstm_cms")


def fields(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a small model whose sizes all differ; `changes` maps dotted names."""
    found: dict[str, Any] = {
        "seed": 5,
        "model": {
            "vocab_size": SYMBOLS,
            "dim": 16,
            "layers": 2,
            "heads": 2,
            "mlp_hidden": 24,
            "lstm_hidden": 20,
            "window": 12,
            "max_len": T,
            "memory": {
                "chunk": 4,
                "generator_chunk": 2,
                "segment": CHUNK,
                "inner_lr": 0.3,
                "keep_init": 0.95,
                "persistent": 3,
            },
            "cms": {"periods": (CHUNK, 2 * CHUNK), "hidden": 18, "inner_lr": 0.1},
        },
        "teach": {"chunk": CHUNK},
        "data": {"seq_len": T},
        # A large eps: where a gradient is almost 0, Adam would turn its rounding into a whole step.
        "optim": {"warmup_steps": 0, "learning_rate": 1e-2, "eps": 1e-3},
        "train": {"steps": STEPS, "batch_size": ROWS},
    }
    for name, value in changes.items():
        *blocks, leaf = name.split(".")
        target = found
        for block in blocks:
            target = target[block]
        target[leaf] = value
    return found


def make_batch(documents: tuple[tuple[int, ...], ...], seed: int) -> Batch:
    """Return rows of documents of these lengths, each aligned to `CHUNK`; padding is between."""
    text = np.random.default_rng(seed).integers(1, SYMBOLS, (ROWS, T + 1)).astype(np.int32)
    tokens, targets = text[:, :-1].copy(), text[:, 1:].copy()
    weights, segments = np.zeros((ROWS, T), np.float32), np.zeros((ROWS, T), np.int32)
    for row, lengths in enumerate(documents):
        at = 0
        for number, length in enumerate(lengths, start=1):
            segments[row, at : at + length] = number
            weights[row, at : at + length - 1] = 1.0  # the last token has no target
            at += -(-length // CHUNK) * CHUNK
    exists = segments > 0
    return Batch(*map(jnp.asarray, (tokens * exists, targets * exists, weights, segments)))


def with_noise(params: Any) -> Any:
    """Return the parameters with noise that depends on the path and the shape of each."""

    def add(path: Any, p: jax.Array) -> jax.Array:
        rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
        return p + jnp.asarray(NOISE * rng.standard_normal(p.shape), p.dtype)

    return jax.tree_util.tree_map_with_path(add, params)


@lru_cache
def prepare(cfg: ModelConfig) -> tuple[Any, np.ndarray]:
    """Return the parameters of a model and its logits of a fixed text, [ROWS, T, SYMBOLS]."""
    model = build_model(cfg)
    params = with_noise(jax.jit(model.init)(jax.random.key(5)))

    @jax.jit
    def read(params: Any, text_BT: jax.Array) -> jax.Array:
        state = model.init_state(params, ROWS, capacity=T)
        return model.apply(params, state, text_BT, start="fresh")[1]

    text = np.random.default_rng(11).integers(0, SYMBOLS, (ROWS, T)).astype(np.int32)
    return params, np.asarray(read(params, jnp.asarray(text)))


def run_case(name: str) -> Numbers:
    """Return the logits of the fresh model, and losses and gradient norms of three steps."""
    cfg = from_config_dict(fields(CASES[name]))
    model = build_model(cfg.model)
    params, logits = prepare(cfg.model)
    program = make_program(cfg, model)
    state = new_state(params, program.optimizer, new_carry(cfg, model, params, ROWS))
    step = jax.jit(lambda state, batch: train_step(state, batch, program))
    documents = DOCUMENTS.get(name, (WHOLE, PACKED))
    losses, norms = [], []
    for i in range(STEPS):
        # Streams read on; rows are the same in every step.
        batch = make_batch(documents, seed=0 if cfg.train.carry == "none" else i)
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    wide = logits.astype(np.float64)
    return {
        "logits": [float(x) for x in logits[1, T - 1, :4]],
        "logits_sum": [float(wide.sum())],
        "logits_abs_sum": [float(np.abs(wide).sum())],
        "loss": losses,
        "grad_norm": norms,
    }


def machine() -> dict[str, str]:
    """Return what decides the last bits: versions, processor, flags of the compiler."""
    packages = ("jax", "jaxlib", "numpy")
    return {
        **{name: version(name) for name in packages},
        "cpu": cpu(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def cpu() -> str:
    """Return the model of the processor as Linux names it."""
    file = Path("/proc/cpuinfo")
    found: dict[str, str] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    if "model name" not in found:
        return platform.processor() or platform.machine()
    family, model = found.get("cpu family"), found.get("model")
    return f"{found['model name']}, family {family}, model {model}"


# --- configurations -------------------------------------------------------------------------------

SIZES = ("test", "smoke", "pilot", "mid", "target")
BLOCKS_OF_TITANS = ("titans_mac", "titans_mag", "titans_mal")
TASKS = (
    *("parity", "aa", "abab", "anbn", "anbncn", "shuffle2", "shuffle2_nested"),
    *("mqar", "induction", "copy", "needle", "in_context_recall", "noisy_recall"),
    *("fuzzy_recall", "selective_copy", "compression", "memorization"),
)
# What stands after --config, as the config files document it.
COMMANDS = (
    "configs/pilot.py",
    *(f"configs/pilot.py:{size}" for size in SIZES),
    "configs/pilot.py:smoke,block=hope",
    "configs/pilot.py:smoke,block=hope_hybrid",
    "configs/pilot.py:size=mid,seq=4096",
    "configs/pilot.py:smoke,window=64,seq=1024,batch=4,steps=800,lr=3e-3,source=MIX/mixture.json",
    "configs/pilot.py:test,chunk=8,meta=stop,seed=3",
    "configs/mid.py",
    "configs/mid.py --config.mesh.fsdp=8",
    "configs/mid.py:smoke",
    "configs/target.py",
    "configs/target.py --config.mesh.fsdp=8 --config.mesh.data=-1",
    "configs/test.py",
    "configs/transformer.py",
    *(f"configs/transformer.py:{size}" for size in SIZES),
    "configs/titan_baseline.py",
    *(f"configs/titan_baseline.py:{size}" for size in SIZES),
    *(f"configs/titan_baseline.py:smoke,block={block}" for block in BLOCKS_OF_TITANS),
    "configs/titan_baseline.py:smoke --config.model.memory.arch=linear",
    "configs/titan_baseline.py:smoke --config.model.memory.conv=0",
    "configs/titan_baseline.py:smoke --config.model.memory.momentum=False",
    "configs/titan_baseline.py:smoke --config.model.memory.retention=False",
    "configs/titan_baseline.py:smoke,block=titans_mac --config.model.memory.persistent=0",
    "configs/sft.py:tulu,init=runs/x,source=data/tulu3",
    "configs/sft.py:gsm8k,init=runs/tulu,source=data/gsm8k",
    "configs/char_lstm.py",
    "configs/char_lstm.py:test",
    "configs/char_lstm.py:source=FOLDER",
    "configs/char_lstm.py:seq=2048",
    "configs/char_lstm.py --config.train.carry=none",
    "configs/char_lstm.py --config.model.cms.surprise=()",
    "configs/char_lstm.py --config.model.cms.surprise=() --config.model.cms.fast_layers=1 "
    "--config.teach.mode=exact --config.train.carry=all",
    "configs/gpt2.py",
    "configs/gpt2.py:test",
    "configs/gpt2.py:smoke",
    "configs/gpt2.py:124m_10b,source=FOLDER,documents=joined,vocab=50304,accum=2",
    "configs/real_text.py",
    "configs/real_text.py:test",
    "configs/real_text.py:text",
    "configs/real_text.py:writes=off",
    "configs/real_text.py:model=hope,source=FOLDER",
    "configs/real_text.py:text,rows=16,model=hope,writes=off,frozen=True,steps=250,batch=4,lr=0.003",
    *(f"configs/synthetic.py:{task}" for task in TASKS),
    "configs/synthetic.py:parity,model=hope,width=32,steps=400",
    "configs/synthetic.py:mqar,pairs=4,vocab=256,model=gated_deltanet",
    *(f"configs/synthetic.py:parity,model={block}" for block in BLOCKS),
    *(f"configs/synthetic.py:mqar,model={block}" for block in BLOCKS),
)


def resolve(command: str) -> dict[str, Any]:
    """Return every field of the configuration of a command, by dotted name."""
    spec, *overrides = shlex.split(command.replace("()", "'()'"))
    return flat(to_dict(load_config(str(ROOT / spec), parse_overrides(overrides))))


def defaults() -> dict[str, Any]:
    """Return every field of a configuration in which nothing is chosen, by dotted name."""
    return flat(to_dict(Config()))


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested data as one dict with dotted names."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        nested = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found
