"""Write a checkpoint as safetensors.

    python -m nested_jax.export --checkpoint runs/NAME --out DIR

    --checkpoint DIR   a workdir, or one of its checkpoints/STEP
    --out DIR          made; model.safetensors, config.json, tokenizer.model
    --layout NAME      native: our parameters by path ("prefix/mixer/q"), any block, and the
                       experiment as config.json. llama: Hugging Face's LlamaForCausalLM, for
                       `transformer`. gpt2: its GPT2LMHeadModel, for `gpt2`. AutoModelForCausalLM
                       and AutoTokenizer read the latter two.
    --check            read the folder again and compare tensors, logits, greedy text and token ids
                       with the run's: against plain numpy, and against transformers where it is
                       installed. For the layouts llama and gpt2

Exit status: 0 done, 1 the folder is not the run's model, 2 bad input.
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
from nested_jax.hub.check import Exported, Line, check
from nested_jax.hub.imports import GENERATION
from nested_jax.hub.layouts import LAYOUTS
from nested_jax.hub.tensors import WEIGHTS, Tensors, import_safetensors
from nested_jax.hub.tokenizer_files import token_ids, write_tokenizer
from nested_jax.machine import quiet_libraries
from nested_jax.train.opened import Opened, open_checkpoint
from nested_jax.train.workdir import TOKENIZER
from nested_jax.types import PyTree


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nested_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--layout", choices=["native", *LAYOUTS], default="native")
    parser.add_argument("--check", action="store_true")
    flags = parser.parse_args(arguments)
    quiet_libraries()
    try:
        compared = flags.layout in LAYOUTS or not flags.check
        require(compared, "--check", flags.layout, f"wants --layout {' or '.join(LAYOUTS)}")
        opened = export(flags.checkpoint, flags.out, flags.layout)
        count = sum(x.size for x in jax.tree.leaves(opened.params))
        sys.stdout.write(f"{count:,} parameters in {flags.out / WEIGHTS}\n")
        if not flags.check:
            return 0
        lines = check(
            Exported(
                flags.out,
                opened.params,
                opened.cfg.model,
                opened.tokenizer,
                opened.symbols,
                opened.never,
            )
        )
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return report(lines)


def report(lines: list[Line]) -> int:
    """Print what was compared; return the exit status."""
    words = {True: "equal", False: "DIFFERENT", None: "not compared"}
    for line in lines:
        sys.stdout.write(f"{line.what}: {words[line.holds]} ({line.said})\n")
    return 1 if any(line.holds is False for line in lines) else 0


def export(checkpoint: Path, out: Path, layout: str) -> Opened:
    """Write a checkpoint's parameters into the new folder `out`; return the checkpoint.

    Raises:
      ValueError: what `open_checkpoint` raises, a folder that exists, safetensors is not
        installed, or a model that the layout cannot hold.
    """
    library = import_safetensors()
    require(not out.exists(), "--out", str(out), "exists; wants a new folder")
    opened = open_checkpoint(checkpoint)
    params, model = opened.params, opened.cfg.model
    if layout == "native":
        tensors, config = flat(params), {**to_dict(opened.cfg), "step": opened.step}
    else:  # raises for a model that the layout cannot hold, before anything is made
        config = LAYOUTS[layout].config(model)
        tensors = LAYOUTS[layout].write(params, model)
    out.mkdir(parents=True)
    metadata = {"format": "np" if layout == "native" else "pt"}
    library.save_file(tensors, out / WEIGHTS, metadata=metadata)
    if opened.tokenizer is not None:
        shutil.copyfile(opened.workdir / TOKENIZER, out / TOKENIZER)
    if layout != "native" and opened.tokenizer is not None:
        write_tokenizer(out, opened.tokenizer, model.max_len)
        ids = token_ids(opened.tokenizer, model.vocab_size)
        write_json(out / GENERATION, ids)
        config |= {name: ids[name] for name in ids if name.endswith("_token_id")}
    write_json(out / "config.json", config)
    return opened


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
