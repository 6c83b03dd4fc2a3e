"""Opening a checkpoint with the tokenizer of its text, for every command that reads one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nested_jax.config import Config
from nested_jax.data.synthetic import rows as synthetic
from nested_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from nested_jax.errors import require
from nested_jax.train.checkpoint import Saved, read_checkpoint
from nested_jax.train.integrity import digest
from nested_jax.train.workdir import TOKENIZER
from nested_jax.types import PyTree


@dataclass(frozen=True)
class Opened:
    """A checkpoint, and the tokenizer that its model was trained with."""

    saved: Saved
    params: PyTree
    tokenizer: Tokenizer | None  # None: synthetic tasks, whose ids mean nothing

    @property
    def workdir(self) -> Path:
        return self.saved.workdir

    @property
    def cfg(self) -> Config:
        return self.saved.cfg

    @property
    def step(self) -> int:
        return self.saved.step

    @property
    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
          ValueError: the model was trained on synthetic tasks.
        """
        if self.tokenizer is None:
            raise ValueError(
                f"checkpoint={str(self.workdir)!r}: was trained on synthetic tasks and reads no "
                "text; python -m eval recall scores it"
            )
        return self.tokenizer

    @property
    def named(self) -> dict[str, str]:
        """Hashes of the parameters and the tokenizer: what a memory belongs to."""
        prints = {"params": self.saved.meta["fingerprints"]["params"]}
        return {"model": digest(prints), "tokenizer": self.text_tokenizer.hash}

    @property
    def symbols(self) -> int:
        """The ids that stand for something are those below it.

        A model may have more, for a size that divides well. They are never drawn, and are no
        candidates of an evaluation.
        """
        if self.tokenizer is None:
            return synthetic.symbols(self.cfg.data.task)
        return self.tokenizer.vocab_size

    @property
    def never(self) -> tuple[int, ...]:
        """The control tokens that are never written: all but the end of a text."""
        return () if self.tokenizer is None else self.tokenizer.never_written


def open_checkpoint(path: str | Path) -> Opened:
    """Open a workdir's newest checkpoint, or one of its ``checkpoints/STEP``, with its tokenizer.

    Raises:
      ValueError: what `find_checkpoint` raises; no tokenizer there, or not the one that the model
        was trained with; damaged parameters.
    """
    saved, params = read_checkpoint(path)
    return Opened(saved, params, tokenizer_of(saved))


def tokenizer_of(saved: Saved) -> Tokenizer | None:
    """Return the tokenizer that a run keeps in its workdir; None of synthetic tasks.

    Raises:
      ValueError: there is none, or another one, or one with more symbols than the model has.
    """
    if saved.cfg.data.is_synthetic:
        return None
    file, trained = saved.workdir / TOKENIZER, saved.meta["tokenizer_sha256"]
    want = f"is missing; wants the tokenizer {trained[:12]} that the run put there: copy it back"
    require(file.is_file(), "tokenizer", str(file), want)
    tokenizer = load_tokenizer(file)
    want = f"has SHA-256 {tokenizer.hash[:12]}; this checkpoint was trained with {trained[:12]}"
    require(tokenizer.hash == trained, "tokenizer", str(file), want)
    symbols = saved.cfg.model.vocab_size
    want = f"has {tokenizer.vocab_size} symbols, the model {symbols}"
    require(tokenizer.vocab_size <= symbols, "tokenizer", str(file), want)
    return tokenizer
