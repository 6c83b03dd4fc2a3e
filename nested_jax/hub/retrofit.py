"""Give a trained Transformer memories that it writes while it reads.

    python -m nested_jax.hub retrofit --checkpoint RUN --workdir OUT

    --checkpoint RUN       a workdir, or one of its checkpoints/STEP, of a block with an MLP
    --workdir OUT          made; a workdir with one checkpoint, for every command that reads one
    --periods 64           or 64,256: tokens between the writes of each level, the fastest first
    --fast-layers 1        blocks that are written: the last N, -1 for all, or their indices, 0,5,11

The MLP of a block becomes the first level of a continuum memory; further levels start as exact
identities. Nothing is trained: until the first write the model gives the logits that it gave
before, bit for bit, and after a reset again. Blocks that are not written stay as they are.

Exit status: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from nested_jax.config import CMSConfig, Config, ModelConfig
from nested_jax.errors import require
from nested_jax.hub.workdir import write_workdir
from nested_jax.models.lm import build_model
from nested_jax.train.opened import open_checkpoint
from nested_jax.types import PyTree

PERIODS, FAST_LAYERS = "64", "1"
# Safe without a look at the text: a write moves each matrix by one per cent of its own norm,
# whatever the loss is, and what has lost 16 nats to the model without writes is undone.
SAFE: dict[str, Any] = {"optimizer": ("unit",), "inner_lr": (0.01,), "trust": 16.0}


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, type=Path)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--periods", default=PERIODS)
    parser.add_argument("--fast-layers", default=FAST_LAYERS)


def run(flags: argparse.Namespace) -> None:
    """Write the retrofitted checkpoint.

    Raises:
      ValueError: flags of another form, a folder that exists, a block without an MLP, and what
        `open_checkpoint` raises.
    """
    require(not flags.workdir.exists(), "--workdir", str(flags.workdir), "exists; wants a new one")
    opened = open_checkpoint(flags.checkpoint)
    cfg = retrofit_config(opened.cfg, flags.periods, flags.fast_layers)
    params = retrofit(opened.params, opened.cfg.model, cfg.model)
    tokenizer, source = opened.text_tokenizer, f"retrofit of {opened.workdir}"
    data = opened.saved.meta.get("data", {"tokenizer": opened.saved.meta["tokenizer_sha256"]})
    write_workdir(flags.workdir, params, cfg, tokenizer, source, opened.step, data)
    layers = fast_layers(flags.fast_layers, cfg.model.layers)
    sys.stdout.write(
        f"{flags.workdir}: {cfg.model.block} of {opened.workdir}, blocks {layers} write their MLP "
        f"every {' and '.join(map(str, cfg.model.cms.periods))} tokens\n"
    )


def retrofit_config(cfg: Config, periods: str, layers: str) -> Config:
    """Return the configuration of a run with levels in the place of MLPs.

    Args:
      cfg: of the trained model.
      periods: the flag, ``"64,256"``.
      layers: the flag, ``"1"``, ``"-1"`` or ``"0,5,11"``.
    """
    model = cfg.model
    kinds = "wants a block with an MLP: 'transformer', 'gpt2' or 'lstm'"
    require(bool(model.kind.taught), "model.block", model.block, kinds)
    right = re.fullmatch(r"[0-9]+(,[0-9]+)*", periods) is not None
    require(right, "--periods", periods, "wants tokens, the fastest first, as in 64,256")
    written = fast_layers(layers, model.layers)
    times = tuple(map(int, periods.split(",")))
    count = model.layers - written[0]
    require(min(times) > 0, "--periods", periods, "wants 1 or more tokens each")
    cms = CMSConfig(periods=times, fast_layers=count, slow_levels="first", **SAFE)
    align = math.lcm(cfg.align, times[0])  # of documents in rows, where the reader is trained on
    want = f"wants a first period that divides the run's data.seq_len={cfg.data.seq_len}"
    require(cfg.data.seq_len % align == 0, "--periods", periods, want)
    suffix = tuple(range(written[0], model.layers))
    teach = replace(
        cfg.teach,
        mode="exact",
        chunk=times[0],
        layers=None if written == suffix else written,
    )
    changed = replace(model, block=model.kind.taught, cms=cms)
    data = cfg.data if align == cfg.align else replace(cfg.data, align=align)
    return replace(cfg, model=changed, teach=teach, data=data)


def fast_layers(text: str, layers: int) -> tuple[int, ...]:
    """Return the blocks that ``--fast-layers`` names, in order."""
    want = f"wants a number of last blocks, -1 for all, or indices below {layers} as in 0,5,11"
    right = re.fullmatch(r"-1|[0-9]+(,[0-9]+)*,?", text) is not None
    require(right, "--fast-layers", text, want)
    if "," not in text:
        count = layers if text == "-1" else int(text)
        require(1 <= count <= layers, "--fast-layers", text, want)
        return tuple(range(layers - count, layers))
    chosen = tuple(sorted({int(part) for part in text.split(",") if part}))
    require(chosen[-1] < layers, "--fast-layers", text, want)
    return chosen


def retrofit(params: PyTree, old: ModelConfig, new: ModelConfig) -> PyTree:
    """Return the parameters of `new`, which has CMS levels where `old` has MLPs.

    Args:
      params: of `old`, leaves [L, ...] in ``prefix``.
      old: a model whose blocks have an MLP.
      new: of `retrofit_config`.
    """
    first = old.layers - new.fast_layers
    fresh = jax.jit(build_model(new).init)(jax.random.key(0))
    made = {name: x for name, x in params.items() if name != "prefix"}
    for name, part in (("prefix", slice(0, first)), ("suffix", slice(first, None))):
        if name in fresh:
            blocks = jax.tree.map(lambda x: jnp.asarray(x)[part], params["prefix"])  # noqa: B023
            made[name] = {**blocks, "cms": levels(blocks, fresh[name]["cms"])}
            del made[name]["mlp"], made[name]["mlp_norm"]
    return made


def levels(blocks: PyTree, fresh: PyTree) -> PyTree:
    """Return a chain whose first level is the MLP of the blocks and whose others add nothing."""
    chain: dict[str, Any] = {
        name: jnp.zeros_like(x) if re.fullmatch(r"level_\d+_down(_bias)?", name) else x
        for name, x in fresh.items()
    }
    chain |= {f"level_0_{name}": x for name, x in blocks["mlp"].items()}
    return {**chain, "norm_0": blocks["mlp_norm"]}
