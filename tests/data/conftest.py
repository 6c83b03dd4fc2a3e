"""A small synthetic library and the tokenizer of it, shared by the data tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_data import make_store, synthetic_prose, synthetic_shards, synthetic_source

from nested_jax.data.shards import TokenStore
from nested_jax.data.tokenizers.tokenizer import Tokenizer, train_tokenizer


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


@pytest.fixture
def store(tmp_path: Path, tokenizer: Tokenizer) -> TokenStore:
    """Two segments of three splits; one of them in two shards."""
    return make_store(tmp_path / "store", tokenizer, synthetic_shards(tokenizer))
