"""The embedded default data, from text to shards in the cache."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from nested_jax.data.cache import Report, build_once
from nested_jax.data.shards import (
    FORMAT,
    INDEX,
    Shard,
    TokenStore,
    open_store,
    write_index,
    write_shard,
)
from nested_jax.data.splits import SPLITS
from nested_jax.data.text.stdlib_text import (
    Collection,
    Document,
    collect,
    library_sha256,
    python_version,
    stdlib_root,
)
from nested_jax.data.tokenizers.byte_bpe import train_byte_bpe
from nested_jax.data.tokenizers.characters import build_characters
from nested_jax.data.tokenizers.tokenizer import Tokenizer, train_tokenizer

TRAIN_BYTES = 24 << 20  # of text that the tokenizer sees at most
# What makes a tokenizer from texts and a vocabulary size, by `DataConfig.tokenizer`.
TOKENIZERS: dict[str, Callable[[Sequence[str], int], Tokenizer]] = {
    "sentencepiece": partial(train_tokenizer, max_bytes=TRAIN_BYTES),
    "char": build_characters,
    "gpt2": partial(train_byte_bpe, max_bytes=TRAIN_BYTES),
}


def stdlib_store(
    cache: Path,
    vocab_size: int,
    report: Report,
    root: Path | None = None,
    tokenizer: str = "sentencepiece",
) -> TokenStore:
    """Return the shards of the standard library's text, building them in `cache` if need be.

    The folder is named by the Python version, the hash of the text, the vocabulary and the format.

    Args:
      root: folder of the library; None is the running Python's.
      tokenizer: a name of `TOKENIZERS`.
    Raises:
      ValueError: no library text, a cache that cannot be written or is damaged.
    """
    root = root or stdlib_root()
    symbols = str(vocab_size) if tokenizer == "sentencepiece" else f"{tokenizer}-{vocab_size}"
    name = f"stdlib-{python_version()}-{library_sha256(root)[:12]}-{symbols}-v{FORMAT}"
    train = lambda texts: TOKENIZERS[tokenizer](texts, vocab_size)  # noqa: E731
    target = build_once(
        cache / name,
        lambda folder: build_shards(folder, collect(root), train, report),
        report,
        is_whole=lambda folder: (folder / INDEX).is_file(),
    )
    try:
        return open_store(target)
    except ValueError as error:
        raise ValueError(f"{error}; remove {target} and it will be built again") from error


def build_shards(
    folder: Path,
    collection: Collection,
    train: Callable[[Sequence[str]], Tokenizer],
    report: Report,
) -> None:
    """Train the tokenizer on the train split, then write one shard for each segment and split."""
    documents = collection.documents
    size = sum(len(document.text) for document in documents)
    left_out = ", ".join(f"{count} {why}" for why, count in collection.dropped.items())
    report(
        f"embedded text: {len(documents)} documents, {size / 1e6:.1f} M characters of Python's "
        f"standard library (left out: {left_out})"
    )
    report("training the tokenizer")
    tokenizer = train(training_texts(documents))
    report(f"{tokenizer.kind} tokenizer of {tokenizer.vocab_size} symbols")
    report(f"writing token shards to {folder.parent}")
    shards = list(write_segments(folder, documents, tokenizer))
    source = {
        "name": "stdlib",
        "python": python_version(),
        "text_sha256": collection.sha256,
        "dropped": collection.dropped,
    }
    write_index(folder, shards, tokenizer, source)
    tokens = sum(shard.tokens for shard in shards)
    report(f"{tokens / 1e6:.2f} M tokens in {len(shards)} shards")


def training_texts(documents: Sequence[Document]) -> list[str]:
    """Return the train split's texts in a fixed random order, so that a bounded sample is fair."""
    texts = [document.text for document in documents if document.split == "train"]
    random.Random(0).shuffle(texts)
    return texts


def write_segments(
    folder: Path, documents: Sequence[Document], tokenizer: Tokenizer
) -> Iterator[Shard]:
    for segment in sorted({document.segment for document in documents}):
        for split in SPLITS:
            texts = [d.text for d in documents if (d.segment, d.split) == (segment, split)]
            if texts:
                encoded = tokenizer.encode_arrays(texts)
                yield write_shard(folder, segment, split, 0, encoded, tokenizer)
