"""A small synthetic library and the tokenizer of it, shared by the data tests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from nested_jax.data.shards import TokenStore, open_store, write_index, write_shard
from nested_jax.data.tokenizers.tokenizer import Tokenizer, train_tokenizer

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


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out like a standard library, with what must be skipped."""
    root = tmp_path_factory.mktemp("library")
    for folder in ("json", "test", "encodings", "site-packages/x", "json/__pycache__"):
        (root / folder).mkdir(parents=True)
    for number in range(120):
        folder = ("", "json/", "test/", "encodings/")[number % 4]
        (root / f"{folder}m{number}.py").write_text(synthetic_source(number), "utf8")
    (root / "site-packages/x/secret.py").write_text("secret = 1\n")
    (root / "json/__pycache__/m.py").write_text("cached = 1\n")
    (root / "copy_of_m0.py").write_text(synthetic_source(0), "utf8")
    (root / "broken.py").write_bytes(b"x = '\xff\xfe'\n")
    (root / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'Käse'\n".encode("latin-1"))
    (root / "__init__.py").write_text("")
    (root / "LICENSE.txt").write_text("Permission is granted to read and write.\n" * 9)
    (root / "pydoc_data").mkdir()
    topics = {f"topic{i}": synthetic_prose(i) for i in range(12)}
    (root / "pydoc_data/topics.py").write_text(f"topics = {topics!r}\n")
    return root


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([synthetic_source(i) for i in range(200)], 400)


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


@pytest.fixture
def store(tmp_path: Path, tokenizer: Tokenizer) -> TokenStore:
    """Two segments of three splits; one of them in two shards."""
    return make_store(tmp_path / "store", tokenizer, synthetic_shards(tokenizer))


def synthetic_shards(tokenizer: Tokenizer) -> dict[str, list[list[list[int]]]]:
    encoded = tokenizer.encode_batch([synthetic_source(i) for i in range(90)])
    return {
        "code/train": [encoded[:20], encoded[20:50]],
        "code/valid": [encoded[50:60]],
        "notes/train": [encoded[60:80]],
        "notes/valid": [encoded[80:90]],
    }
