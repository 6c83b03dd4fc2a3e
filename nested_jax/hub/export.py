"""Write a checkpoint as safetensors.

    python -m nested_jax.export --checkpoint runs/NAME --out DIR

    --checkpoint DIR           a workdir, or one of its checkpoints/STEP
    --out DIR                  made; model.safetensors, config.json, tokenizer.model
    --layout native | llama    native: our parameters by path ("prefix/mixer/q"), any block, and the
                               experiment as config.json. llama: Hugging Face's LlamaForCausalLM,
                               for `transformer` (AutoModelForCausalLM.from_pretrained reads it)

Exit status: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nested_jax.config import Config, from_saved
from nested_jax.config.schema import to_dict
from nested_jax.errors import require
from nested_jax.files import write_json
from nested_jax.hub.llama import Tensors, check_llama, import_safetensors, llama_config, to_llama
from nested_jax.machine import quiet_libraries
from nested_jax.train.opened import open_checkpoint
from nested_jax.train.workdir import TOKENIZER
from nested_jax.types import PyTree

WEIGHTS = "model.safetensors"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nested_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--layout", choices=["native", "llama"], default="native")
    flags = parser.parse_args(arguments)
    quiet_libraries()
    try:
        count = export(flags.checkpoint, flags.out, flags.layout)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{count:,} parameters in {flags.out / WEIGHTS}\n")
    return 0


def export(checkpoint: Path, out: Path, layout: str) -> int:
    """Write a checkpoint's parameters into the new folder `out`; return their number.

    Raises:
      ValueError: what `open_checkpoint` raises, a folder that exists, safetensors is not
        installed, or a model that the layout cannot hold.
    """
    library = import_safetensors()
    require(not out.exists(), "--out", str(out), "exists; wants a new folder")
    opened = open_checkpoint(checkpoint)
    params, cfg, step = opened.params, opened.cfg, opened.step
    if layout == "llama":
        check_llama(cfg.model)
        tensors, config = to_llama(params, cfg.model), llama_config(cfg.model)
    else:
        tensors, config = flat(params), {**to_dict(cfg), "step": step}
    out.mkdir(parents=True)
    library.save_file(
        tensors, out / WEIGHTS, metadata={"format": "np" if layout == "native" else "pt"}
    )
    write_json(out / "config.json", config)
    if opened.tokenizer is not None:
        shutil.copyfile(opened.workdir / TOKENIZER, out / TOKENIZER)
    return sum(x.size for x in tensors.values())


def flat(params: PyTree) -> Tensors:
    """Return parameters by path, ``prefix/mixer/q``; the layers of a stack stay stacked."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")  # noqa: E731
    return {name(path): np.ascontiguousarray(x) for path, x in leaves}


def unflat(tensors: Mapping[str, np.ndarray]) -> PyTree:
    """Return the tree of `flat`: what ``model.apply`` takes."""
    tree: dict[str, Any] = {}
    for path, value in tensors.items():
        *folders, leaf = path.split("/")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[leaf] = value
    return tree


def load_exported(folder: str | Path) -> tuple[PyTree, Config]:
    """Return (params, config) of a folder that was written in the native layout.

    Raises:
      ValueError: no such files, or safetensors is not installed.
    """
    folder = Path(folder)
    for name in (WEIGHTS, "config.json"):
        require((folder / name).is_file(), "folder", str(folder), f"wants a {name}")
    config = json.loads((folder / "config.json").read_text("utf8"))
    config.pop("step", None)
    return unflat(import_safetensors().load_file(folder / WEIGHTS)), from_saved(config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
