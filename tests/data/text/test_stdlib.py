"""The embedded text: what is taken, how it is split, and that its build survives anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nested_jax.data.cache import build_once, cache_root
from nested_jax.data.shards import INDEX
from nested_jax.data.splits import SPLITS, split_of_sha256
from nested_jax.data.text.stdlib_build import stdlib_store
from nested_jax.data.text.stdlib_text import collect, stdlib_root

BUILDER = """
import sys
from pathlib import Path
from nested_jax.data.splits import SPLITS, split_of_sha256
from nested_jax.data.text.stdlib_build import stdlib_store
store = stdlib_store(Path(sys.argv[2]), 400, print, root=Path(sys.argv[1]))
print("root", store.root)
"""


def start_builder(library: Path, cache: Path) -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[3])
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(library), str(cache)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_collection(library: Path) -> None:
    collection = collect(library)
    segments: dict[str, int] = {}
    for document in collection.documents:
        segments[document.segment] = segments.get(document.segment, 0) + 1
    assert segments == {"library": 61, "tests": 30, "tables": 30, "prose": 13}
    assert collection.dropped == {"undecodable": 1, "duplicate": 1, "empty": 1}
    texts = {document.text for document in collection.documents}
    assert any("Käse" in text for text in texts)
    assert not any("secret" in text or "cached" in text for text in texts)
    assert collection == collect(library)


def test_splits_are_disjoint_and_by_content(library: Path) -> None:
    documents = collect(library).documents
    assert len({d.sha256 for d in documents}) == len(documents)
    hashes = [f"{i * 2654435761 % 2**32:08x}" for i in range(20_000)]
    shares = [sum(split_of_sha256(h) == split for h in hashes) / len(hashes) for split in SPLITS]
    assert shares == pytest.approx([0.96, 0.02, 0.02], abs=0.002)


def test_the_running_python_has_a_library() -> None:
    assert (stdlib_root() / "os.py").is_file()


def test_no_library(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no Python sources"):
        collect(tmp_path)


def test_a_library_without_tests_works(library: Path, tmp_path: Path) -> None:
    store = stdlib_store(tmp_path, 400, lambda _: None, root=library / "json")
    assert store.segments == ("library",)


def test_store_is_built_once_and_loses_nothing(library: Path, tmp_path: Path) -> None:
    said: list[str] = []
    store = stdlib_store(tmp_path, 400, said.append, root=library)
    assert any("training the tokenizer" in line for line in said)
    assert "1 undecodable, 1 duplicate, 1 empty" in said[0]
    documents = collect(library).documents
    assert sum(s.documents for s in store.shards) == len(documents)
    assert sum(s.bytes for s in store.shards) == sum(len(d.text.encode()) for d in documents)
    said.clear()
    again = stdlib_store(tmp_path, 400, said.append, root=library)
    assert again.root == store.root
    assert not said


def test_a_damaged_cache_says_how_to_repair_it(library: Path, tmp_path: Path) -> None:
    store = stdlib_store(tmp_path, 400, lambda _: None, root=library)
    (store.root / store.shards[0].file).unlink()
    with pytest.raises(ValueError, match=r"missing.*remove .* and it will be built again"):
        stdlib_store(tmp_path, 400, lambda _: None, root=library)


def test_two_builders_at_once(library: Path, tmp_path: Path) -> None:
    builders = [start_builder(library, tmp_path / "cache") for _ in range(2)]
    outputs = [builder.communicate(timeout=60)[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert sum("training the tokenizer" in output for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1


def test_killed_builds_leave_nothing_that_passes_for_whole(library: Path, tmp_path: Path) -> None:
    whole = stdlib_store(tmp_path / "undisturbed", 400, lambda _: None, root=library)
    cache = tmp_path / "killed"
    for delay in (0.0, 0.02, 0.05):
        builder = start_builder(library, cache)
        assert builder.stdout is not None
        builder.stdout.readline()  # the build has begun
        time.sleep(delay)
        builder.send_signal(signal.SIGKILL)
        builder.wait()
        builder.stdout.close()
    store = stdlib_store(cache, 400, lambda _: None, root=library)
    assert contents(store.root) == contents(whole.root)
    assert {path.name for path in cache.iterdir()} == {store.root.name}


def test_a_build_that_dies_half_way_is_not_taken_for_whole(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "data"

    def dies(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("power cut")

    def builds(folder: Path) -> None:
        (folder / INDEX).write_text("whole")

    with pytest.raises(RuntimeError, match="power cut"):
        build_once(target, dies, print)
    assert not target.exists()
    build_once(target, builds, print)
    assert [path.name for path in target.iterdir()] == [INDEX]


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write the prepared data"):
        build_once(tmp_path / "file" / "data", lambda _: None, print)


def test_cache_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("NESTED_JAX_CACHE", raising=False)
    assert cache_root() == Path("/x/nested_jax")
    monkeypatch.setenv("NESTED_JAX_CACHE", "/y")
    assert cache_root() == Path("/y")
    assert cache_root("/z") == Path("/z")


def test_an_account_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user is a number that nobody has a name for."""
    for name in ("NESTED_JAX_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["nobody"])
    with pytest.raises(ValueError, match=r"data\.cache_dir='': this account has no home folder"):
        cache_root()
    assert cache_root("/z") == Path("/z")
