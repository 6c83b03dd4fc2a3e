"""A model of Hugging Face as ours: ``python -m nested_jax.hub import FOLDER --workdir runs/NAME``.

A folder with config.json, *.safetensors (one file, or those of an index) and a tokenizer, of
GPT2LMHeadModel or LlamaForCausalLM, becomes a workdir with one checkpoint of step 0. `generate`,
`export`, `python -m eval` and `train.init_from` read it as they read a run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from nested_jax.config import Config, DataConfig, ModelConfig
from nested_jax.data.tokenizers.base import Tokenizer
from nested_jax.hub.layouts import layout_of
from nested_jax.hub.tensors import read_folder
from nested_jax.hub.tokenizer_files import read_tokenizer
from nested_jax.hub.workdir import write_workdir
from nested_jax.types import PyTree

GENERATION = "generation_config.json"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workdir", required=True, type=Path)


def run(flags: argparse.Namespace) -> None:
    """Write a model of Hugging Face as a workdir."""
    count, tokenizer = import_folder(flags.folder, flags.workdir)
    sys.stdout.write(f"{count:,} parameters in {flags.workdir}, from {flags.folder}\n")
    lacking = sorted(tokenizer.lacking)
    if lacking:
        sys.stdout.write(
            f"its tokenizer has no token for the bytes {' '.join(f'{b:02x}' for b in lacking)}: "
            "characters that have one are read as U+FFFD\n"
        )


def import_folder(folder: Path, workdir: Path) -> tuple[int, Tokenizer]:
    """Write the model of a folder as a new workdir; return its parameters' number and tokenizer.

    Raises:
      ValueError: what `open_folder` raises; the workdir exists.
    """
    params, model, tokenizer = open_folder(folder)
    write_workdir(workdir, params, experiment(model, tokenizer), tokenizer, str(folder))
    return sum(x.size for x in _leaves(params)), tokenizer


def open_folder(folder: Path) -> tuple[PyTree, ModelConfig, Tokenizer]:
    """Return the parameters (numpy, float32), the model and the tokenizer of a folder.

    Raises:
      ValueError: files that are missing or damaged, a model that ours cannot be, a tensor that is
        missing, of another shape or left over, no tokenizer, or one that changes texts.
    """
    tensors, config = read_folder(folder)
    params, model = layout_of(config).read(tensors, config)
    generation = folder / GENERATION
    said = json.loads(generation.read_text("utf-8")) if generation.is_file() else {}
    ids = {name: value for name, value in said.items() if name.endswith("_token_id")}
    known = {name: value for name, value in config.items() if value is not None}
    return params, model, read_tokenizer(folder, {**ids, **known})


def experiment(model: ModelConfig, tokenizer: Tokenizer) -> Config:
    """Return the configuration of a model that was not trained here."""
    data = DataConfig(tokenizer=tokenizer.kind, seq_len=min(512, model.max_len))  # type: ignore[arg-type]
    return Config(model=model, data=data)


def _leaves(tree: Any) -> list[Any]:
    return [x for v in tree.values() for x in _leaves(v)] if isinstance(tree, dict) else [tree]
