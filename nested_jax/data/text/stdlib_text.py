"""The embedded default text: the running Python's own standard library.

Documents are files (and the help topics of ``pydoc_data``). A document's split is a function of its
content alone, and equal contents count once, so no text is in two splits.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nested_jax.data.splits import split_of_sha256

TOPICS = "pydoc_data/topics.py"
PROSE = (".txt", ".rst", ".md")
TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})
TABLE_FOLDERS = frozenset({"encodings"})  # generated code pages: a quarter of the library's bytes


@dataclass(frozen=True)
class Document:
    """One text with the segment it belongs to and the hash that names it."""

    segment: str
    text: str
    sha256: str

    @property
    def split(self) -> str:
        return split_of_sha256(self.sha256)


@dataclass(frozen=True)
class Collection:
    """The documents of a standard library in a fixed order, and what was left out."""

    documents: tuple[Document, ...]
    dropped: dict[str, int]  # undecodable, duplicate, empty

    @property
    def sha256(self) -> str:
        """The hash of all contents, in order: what a cache of them is keyed by."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(f"{document.segment}:{document.sha256}\n".encode())
        return digest.hexdigest()


@functools.cache
def library_sha256(root: Path) -> str:
    """Return the hash of a library's text, read once a process."""
    return collect(root).sha256


def stdlib_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def python_version() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def collect(root: Path) -> Collection:
    """Read every text of a standard library folder.

    Raises:
      ValueError: no Python sources there.
    """
    dropped: Counter[str] = Counter(undecodable=0, duplicate=0, empty=0)
    seen: set[str] = set()
    documents: list[Document] = []
    for segment, text in texts_of(root, dropped):
        if not text.strip():
            dropped["empty"] += 1
            continue
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        if sha256 in seen:
            dropped["duplicate"] += 1
            continue
        seen.add(sha256)
        documents.append(Document(segment, text, sha256))
    if not any(document.segment == "library" for document in documents):
        raise ValueError(
            f"data.source='stdlib': {root} holds no Python sources; use a Python with its standard "
            "library as files, or give data.source a folder of prepared shards"
        )
    return Collection(tuple(documents), dict(dropped))


def texts_of(root: Path, dropped: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield (segment, text) in the order of the relative paths; count what cannot be decoded."""
    for path in sorted(root.rglob("*"), key=lambda p: p.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        segment = segment_of(relative)
        if segment is None or not path.is_file():
            continue
        try:
            text = read_source(path) if path.suffix == ".py" else path.read_bytes().decode("utf8")
        except (UnicodeDecodeError, SyntaxError):  # SyntaxError: an unknown coding cookie
            dropped["undecodable"] += 1
            continue
        if relative.as_posix() == TOPICS:
            yield from (("prose", topic) for topic in help_topics(text))
        else:
            yield segment, text


def segment_of(relative: Path) -> str | None:
    """Return the segment of a file by its path below the root; None is not text of ours."""
    folders = relative.parts[:-1]
    if SKIPPED_FOLDERS.intersection(folders):
        return None
    if TEST_FOLDERS.intersection(folders):
        return "tests" if relative.suffix == ".py" else None
    if relative.suffix in PROSE:
        return "prose"
    if relative.suffix != ".py":
        return None
    return "tables" if TABLE_FOLDERS.intersection(folders) else "library"


def read_source(path: Path) -> str:
    """Read a Python source in the encoding that it declares, with every line end as it is."""
    with open(path, "rb") as file:
        encoding, _ = tokenize.detect_encoding(file.readline)
    return path.read_bytes().decode(encoding)


def help_topics(source: str) -> list[str]:
    """Return the texts of ``topics = {...}``, in the order of their names."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            topics = ast.literal_eval(statement.value)
            return [topics[name] for name in sorted(topics)]
    return []
