"""The tokenizers by name and by file; the interface and each kind have a module of their own."""

from __future__ import annotations

from pathlib import Path

from nested_jax.data.tokenizers import byte_bpe, characters
from nested_jax.data.tokenizers.base import Tokenizer
from nested_jax.data.tokenizers.byte_bpe import ByteBPE
from nested_jax.data.tokenizers.characters import CharTokenizer
from nested_jax.data.tokenizers.pieces import SentencePiece, train_tokenizer

__all__ = ["Tokenizer", "load_tokenizer", "train_tokenizer"]

KINDS = {characters.MAGIC: CharTokenizer, byte_bpe.MAGIC: ByteBPE}  # by how the file begins


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load ``tokenizer.model``, or the one in a folder.

    Raises:
      ValueError: no such file, or a file that is no tokenizer of ours.
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
        kinds = (kind for magic, kind in KINDS.items() if model.startswith(magic))
        return next(kinds, SentencePiece)(model)
    except RuntimeError as error:
        raise ValueError(f"tokenizer {str(file)!r}: not a SentencePiece model ({error})") from error
