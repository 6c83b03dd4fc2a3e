"""A small synthetic library and stores of its tokens, shared by the data tests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from nested_jax.data.shards import TokenStore, open_store, write_index, write_shard
from nested_jax.data.tokenizers.tokenizer import Tokenizer

WORDS = (
    "alpha beta gamma delta value index tensor memory level chunk write read".split()  # noqa: SIM905
)


def synthetic_source(number: int) -> str:
    """Return a small Python-like text, a function of its number."""
    rng = random.Random(number)
    lines = [f"def {rng.choice(WORDS)}_{number}({rng.choice(WORDS)}):"]
    for _ in range(rng.randrange(3, 40)):
        lines.append(f"    {rng.choice(WORDS)} = {rng.choice(WORDS)}({rng.randrange(1000)})\t# é")
    return "\n".join(lines) + "\n"


def synthetic_prose(number: int) -> str:
    """Return a few lines of words, a function of its number."""
    rng = random.Random(-number)
    lines = [" ".join(rng.choice(WORDS) for _ in range(12)) for _ in range(9)]
    return f"Topic {number}.\n" + ".\n".join(lines) + ".\n"


def make_store(
    folder: Path, tokenizer: Tokenizer, shards: dict[str, Sequence[Sequence[Sequence[int]]]]
) -> TokenStore:
    """Write a dataset from token ids: ``{"segment/split": [shard [document [id]]]}``."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for name, parts in shards.items():
        segment, split = name.split("/")
        for number, documents in enumerate(parts):
            records.append(write_shard(folder, segment, split, number, documents, tokenizer))
    write_index(folder, records, tokenizer, {"name": "test"})
    return open_store(folder)


def synthetic_shards(tokenizer: Tokenizer) -> dict[str, list[list[list[int]]]]:
    encoded = tokenizer.encode_batch([synthetic_source(i) for i in range(90)])
    return {
        "code/train": [encoded[:20], encoded[20:50]],
        "code/valid": [encoded[50:60]],
        "notes/train": [encoded[60:80]],
        "notes/valid": [encoded[80:90]],
    }
