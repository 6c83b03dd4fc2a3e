"""Folders, buckets, and copies that are read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from nested_jax.files import file_sha256
from nested_jax.storage import Store, as_path, check_client, free_bytes, scheme
from nested_jax.train.workdir import locate


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("runs/a", ""),
        ("/runs/a", ""),
        ("a:b/c", ""),
        ("gs://b/r", "gs"),
        (Path("gs://b/r"), "gs"),
        ("s3://b/r", "s3"),
        ("S3://b", "s3"),
        ("C:/runs", ""),
        ("hdfs://n:1/x", "hdfs"),
    ],
)
def test_schemes(path: str | Path, kind: str) -> None:
    assert scheme(path) == kind


def test_a_workdir_that_checkpoints_cannot_go_to_is_refused() -> None:
    with pytest.raises(ValueError, match=r"workdir='s3://b/r': wants.*train\.mirror='s3://BUCKET"):
        as_path("s3://b/r")
    with pytest.raises(ValueError, match=r"workdir='hdfs://n/r': wants a folder or gs://"):
        as_path("hdfs://n/r")
    with pytest.raises(ValueError, match=r"checkpoint='s3://b/r'"):
        locate("s3://b/r")
    with pytest.raises(ValueError, match=r"train\.mirror='ftp://h/r': wants a path, gs://"):
        check_client("ftp://h/r", "train.mirror")


def test_a_client_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"gcsfs is not installed .*nested-jax\[cloud\]"):
        as_path("gs://b/r")


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = str(tmp_path / "a b ü") if request.param == "file" else f"memory://{tmp_path.name}/m"
    return Store(url)


def test_what_is_put_is_read_back(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc" * 1000)
    assert store.put(file, "x/y/file") == file_sha256(file) == store.sha256("x/y/file")
    store.write("x/z.json", b"{}")
    assert store.files() == ["x/y/file", "x/z.json"]
    assert store.files("x/y") == ["x/y/file"]
    assert store.read("x/z.json") == b"{}"
    assert store.read("none") is None
    store.get("x/y/file", tmp_path / "back", file_sha256(file))
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    with pytest.raises(OSError, match=r"has SHA-256 .* wants 000000000000"):
        store.get("x/y/file", tmp_path / "back", "0" * 64)
    store.delete("x/y/file")
    store.delete("x/y/file")
    assert store.files() == ["x/z.json"]
    assert not (store.is_local and store.system.exists(store.path("x/y")))  # no empty folder
    assert store.sha256("x/y/file") is None


def test_a_file_that_is_there_is_not_sent_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, sent = tmp_path / "file", []
    file.write_bytes(b"abc")
    copy = Store._copy
    monkeypatch.setattr(Store, "_copy", lambda *a: (sent.append(a[2]), copy(*a)))
    store.put(file, "file")
    store.put(file, "file")
    assert sent == ["file"]
    store.write("file", b"abd")  # of the same size: the hash tells
    store.put(file, "file")
    assert sent == ["file", "file"]


def test_a_write_that_the_service_loses_is_an_error(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    monkeypatch.setattr(Store, "_copy", lambda self, file, name: self.write(name, b"ab"))
    with pytest.raises(OSError, match="not what is read back"):
        store.put(file, "file")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no account\nlong story")

    monkeypatch.setattr(type(store.system), "cat_file", refuse)
    with pytest.raises(OSError, match=r"RuntimeError: no account$"):
        store.read("file")


def test_free_bytes_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") > 0
