"""Plain text files as data: a file is a document, and nothing has to be prepared.

A folder gives its splits by name (``train.txt``, ``valid.txt``, ``test.txt``, or folders of these
names) or, where no file has such a name, by the hash of each file's content. One file alone is cut
into splits at line ends. Files may be compressed (``.txt.gz``).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from nested_jax.data.cache import Report, build_once
from nested_jax.data.shards import (
    FORMAT,
    INDEX,
    TokenStore,
    open_store,
    write_index,
    write_shard,
)
from nested_jax.data.splits import SPLITS, split_of_content, split_of_path
from nested_jax.data.streams import file_format, text_lines
from nested_jax.data.text.stdlib_build import TOKENIZERS
from nested_jax.data.tokenizers.tokenizer import Tokenizer

SEGMENT = "text"
CUT = {"train": 0.9, "valid": 0.95, "test": 1.0}  # where the splits of a lone file end


class Text(NamedTuple):
    split: str
    text: str


def text_files(path: Path) -> list[Path]:
    """Return the text files that `path` is or holds, in a fixed order."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sorted(p for p in files if file_format(p) == ".txt")


def read_texts(path: Path) -> list[Text]:
    """Read a file or folder of text into documents with their splits.

    Raises:
      ValueError: no text, text that is not UTF-8, names of splits on some files only, a split
        without text.
    """
    files = text_files(path)
    if path.is_file():
        texts = cut(read_text(path))
    else:
        named = {file: split_of_path(file.relative_to(path)) for file in files}
        without = [str(file) for file, split in named.items() if split is None]
        if 0 < len(without) < len(files):
            raise ValueError(
                f"data.source={str(path)!r}: some files are named after a split and {without[0]} "
                "is not; wants all of them, or their folders, named after train, valid or test, or "
                "none"
            )
        contents = [(named[file], read_text(file)) for file in files]
        texts = [Text(split or split_of_content(text), text) for split, text in contents]
    texts = [text for text in texts if text.text.strip()]
    for split in ("train", "valid"):
        if not any(text.split == split for text in texts):
            raise ValueError(
                f"data.source={str(path)!r}: no text for the {split} split in {len(files)} files; "
                "wants train.txt and valid.txt, many files, or one long file"
            )
    return texts


def cut(text: str) -> list[Text]:
    """Cut one text into its splits, each at the first line end after its share."""
    texts, start = [], 0
    for split, share in CUT.items():
        end = len(text)
        if split != "test":
            end = text.find("\n", round(share * len(text))) + 1 or len(text)
        texts.append(Text(split, text[start:end]))
        start = max(start, end)
    return texts


def read_text(path: Path) -> str:
    """Read a file, compressed or not, with every line end as it is."""
    return "".join(text_lines(path))


def text_store(
    cache: Path, path: Path, tokenizer: str, vocab_size: int, report: Report
) -> TokenStore:
    """Return the shards of plain text, building them in `cache` if need be.

    The folder is named by the hash of the text, the tokenizer, the vocabulary and the format.

    Args:
      tokenizer: a name of `TOKENIZERS`; it is trained on the train split.
    Raises:
      ValueError: what `read_texts` raises; a vocabulary that does not fit the text; a cache that
        cannot be written or is damaged.
    """
    texts = read_texts(path)
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text.split}:{len(text.text)}\n{text.text}".encode())
    name = f"text-{digest.hexdigest()[:12]}-{tokenizer}-{vocab_size}-v{FORMAT}"
    train = lambda texts: TOKENIZERS[tokenizer](texts, vocab_size)  # noqa: E731
    target = build_once(
        cache / name,
        lambda folder: write_texts(folder, texts, train, str(path), report),
        report,
        is_whole=lambda folder: (folder / INDEX).is_file(),
    )
    return open_store(target)


def write_texts(
    folder: Path,
    texts: Sequence[Text],
    train: Callable[[Sequence[str]], Tokenizer],
    path: str,
    report: Report,
) -> None:
    """Train the tokenizer on the train split and write one shard per split."""
    learned = [text.text for text in texts if text.split == "train"]
    random.Random(0).shuffle(learned)  # a tokenizer that reads only a part reads a fair one
    tokenizer = train(learned)
    report(f"{sum(len(t.text) for t in texts):,} characters in {len(texts)} texts of {path}")
    report(f"{tokenizer.kind} tokenizer of {tokenizer.vocab_size} symbols; writing token shards")
    shards = []
    for split in SPLITS:
        documents = tokenizer.encode_arrays([t.text for t in texts if t.split == split])
        if documents:
            shards.append(write_shard(folder, SEGMENT, split, 0, documents, tokenizer))
    write_index(folder, shards, tokenizer, {"name": "text", "path": path})
