"""The tokenizers by name and by file; the interface and each kind have a module of their own."""

from __future__ import annotations

from pathlib import Path

from nested_jax.data.tokenizers.base import Tokenizer
from nested_jax.data.tokenizers.characters import MAGIC, CharTokenizer
from nested_jax.data.tokenizers.pieces import SentencePiece, train_tokenizer

__all__ = ["Tokenizer", "load_tokenizer", "train_tokenizer"]


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load ``tokenizer.model``, or the one in a folder.

    Raises:
      ValueError: no such file, or a file that is no SentencePiece model of ours.
    """
    file = Path(path)
    file = file / "tokenizer.model" if file.is_dir() else file
    if not file.is_file():
        raise ValueError(
            f"tokenizer {str(file)!r}: no such file; train one with "
            "`python -m nested_jax.data tokenizer`"
        )
    model = file.read_bytes()
    try:
        if not model:
            raise RuntimeError("it is empty")
        return CharTokenizer(model) if model.startswith(MAGIC) else SentencePiece(model)
    except RuntimeError as error:
        raise ValueError(f"tokenizer {str(file)!r}: not a SentencePiece model ({error})") from error
