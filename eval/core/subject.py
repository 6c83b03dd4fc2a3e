"""What is evaluated: the model of a checkpoint, its tokenizer, and the scorer around it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
from jax.sharding import Mesh

from eval.core.bundle import checkpoint_hash, is_bundle, verify
from eval.core.reader import ModelReader, Reader
from eval.core.scoring import Scorer
from nested_jax.config import Config, MeshConfig
from nested_jax.data.identity import TRAIN_ORDER
from nested_jax.data.synthetic.rows import identity
from nested_jax.data.tokenizers.tokenizer import Tokenizer
from nested_jax.errors import require
from nested_jax.files import file_sha256
from nested_jax.models.flops import count_parameters
from nested_jax.models.lm import build_model
from nested_jax.models.memories import load_memory, pick
from nested_jax.sharding import make_mesh
from nested_jax.train.opened import open_checkpoint
from nested_jax.train.workdir import locate


@dataclass(frozen=True)
class Subject:
    """A model to evaluate."""

    name: str
    cfg: Config
    step: int
    tokenizer: Tokenizer
    scorer: Scorer
    parameters: int
    checkpoint: Path | None = None  # the folder of the step; None inside training
    checkpoint_sha256: str | None = None  # of the parameters on disk
    train_order_sha256: str | None = None  # of the rows that it was trained on, in their order
    state_sha256: str | None = None  # of the memory that every text begins with

    @property
    def reader(self) -> Reader:
        return self.scorer.reader

    @property
    def model_reader(self) -> ModelReader:
        """The reader of a model of ours, whose memory can be written."""
        reader = self.scorer.reader
        if not isinstance(reader, ModelReader):
            raise ValueError(f"{self.name}: test-time memorization wants a model of nested_jax")
        return reader

    def describe(self) -> dict[str, Any]:
        """Return what a result says about its subject."""
        return {
            "name": self.name,
            "checkpoint": str(self.checkpoint) if self.checkpoint else None,
            "checkpoint_sha256": self.checkpoint_sha256,
            "step": self.step,
            "block": self.cfg.model.block,
            "size": self.cfg.model.size,
            "parameters": self.parameters,
            "tokenizer_sha256": self.tokenizer.hash,
            "train_order_sha256": self.train_order_sha256,
            "state_sha256": self.state_sha256,
        }


class NoText:
    """Stands for the tokenizer of a run of synthetic tasks, whose ids mean nothing.

    Raises:
      ValueError: at every use but that of its hash.
    """

    def __init__(self, name: str, tasks_hash: str) -> None:
        self.name, self.hash = name, tasks_hash

    def __getattr__(self, attribute: str) -> Any:
        raise ValueError(
            f"{self.name}: was trained on synthetic tasks and reads no text; "
            "python -m eval recall scores it"
        )


def load_subject(
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    batch_size: int = 32,
    batch_tokens: int = 16_384,
    state: Path | None = None,
) -> Subject:
    """Load a workdir's newest checkpoint, or one of its ``checkpoints/STEP``, with its tokenizer.

    A release bundle serves as a workdir; all its files are checked first. `state` is a file of
    `python -m nested_jax.read`: every text is then read with what was learned.

    Raises:
      ValueError: no checkpoint, a damaged one, no tokenizer beside it, or not the one it was
        trained with.
    """
    run, _ = locate(path)
    name = verify(run)["name"] if is_bundle(run) else run.name
    opened = open_checkpoint(path)
    cfg, folder = opened.cfg, opened.saved.folder
    tokenizer = opened.tokenizer or cast(Tokenizer, NoText(name, identity(cfg.data.task)))
    model = build_model(cfg.model)
    memory = None
    if state is not None:
        memory, about = load_memory(state, model, opened.params, opened.named, "--state")
        memory = pick(memory, about, None, "--state")
    reader = ModelReader(model, opened.params, mesh, opened.symbols, opened.never, memory)
    return Subject(
        name=name,
        cfg=cfg,
        step=opened.step,
        tokenizer=tokenizer,
        scorer=Scorer(reader, batch_size, batch_tokens),
        parameters=count_parameters(model.param_info()),
        checkpoint=folder,
        checkpoint_sha256=checkpoint_hash(folder),
        train_order_sha256=opened.saved.meta.get("data", {}).get(TRAIN_ORDER),
        state_sha256=file_sha256(state) if state else None,
    )


def parse_mesh(text: str) -> Mesh:
    """Return the mesh of ``DATA,FSDP,MODEL``; -1 takes the devices that are left.

    Without a -1 the first devices are taken: 1,1,1 is one device of a machine with eight.

    Raises:
      ValueError: not three numbers, or sizes that do not fit the devices.
    """
    right = re.fullmatch(r"-?[0-9]{1,6}(,-?[0-9]{1,6}){2}", text.replace(" ", ""))
    require(right is not None, "--mesh", text, "wants DATA,FSDP,MODEL, three numbers")
    require(jax.process_count() == 1, "--mesh", text, "an evaluation runs in one process")
    data, fsdp, model = sizes = [int(part) for part in text.split(",")]
    wanted = math.prod(sizes)
    taken = wanted if min(sizes) > 0 and wanted <= jax.device_count() else None
    return make_mesh(MeshConfig(data, fsdp, model), jax.devices()[:taken])
