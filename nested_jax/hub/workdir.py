"""A workdir that no run has trained: parameters that were imported or retrofitted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from nested_jax import machine
from nested_jax.config import Config, TrainConfig
from nested_jax.config.schema import to_dict
from nested_jax.data.tokenizers.base import Tokenizer
from nested_jax.errors import require
from nested_jax.files import write_bytes, write_json
from nested_jax.train.checkpoint import Checkpoints
from nested_jax.train.fits import run_meta
from nested_jax.train.state import TrainState
from nested_jax.train.workdir import CONFIG, TOKENIZER, hold_workdir
from nested_jax.types import PyTree


def write_workdir(
    workdir: Path,
    params: PyTree,
    cfg: Config,
    tokenizer: Tokenizer,
    source: str,
    step: int = 0,
    data: Mapping[str, str] | None = None,
) -> None:
    """Write what `generate`, `export`, `python -m eval` and `train.init_from` read.

    Args:
      source: where the parameters are from, for the record.
      step: what the checkpoint is called.
      data: hashes of what the model was trained on, where that is known.
    Raises:
      ValueError: the workdir exists, or the tokenizer has more symbols than the model.
    """
    require(not workdir.exists(), "--workdir", str(workdir), "exists; wants a new folder")
    symbols, rows = tokenizer.vocab_size, cfg.model.vocab_size
    want = f"has {symbols} symbols, the model {rows}"
    require(symbols <= rows, "tokenizer", tokenizer.hash[:12], want)
    with hold_workdir(workdir):
        write_json(workdir / CONFIG, to_dict(cfg))
        write_bytes(workdir / TOKENIZER, tokenizer.model)
        store = Checkpoints(workdir, TrainConfig(async_save=False), lambda _: None)
        state = TrainState(jnp.int32(step), jax.tree.map(jnp.asarray, params), ())
        meta = run_meta(cfg, step, data or {"tokenizer": tokenizer.hash})
        store.save(state, {}, {**meta, "source": source, "versions": machine.versions()})
        store.close()
