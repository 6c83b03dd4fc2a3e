"""Release bundles: a folder that says what it holds, and is checked before it is believed.

``manifest.json`` has the SHA-256 and the size of every other file, and seals itself. A bundle is
laid out as a workdir is, so whatever takes a checkpoint takes a bundle.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nested_jax.errors import require
from nested_jax.files import file_sha256, folder_sha256, write_json
from nested_jax.train.integrity import seal, unseal
from nested_jax.train.workdir import CHECKPOINTS

MANIFEST = "manifest.json"
FORMAT = 1


def checkpoint_hash(step: Path) -> str:
    """Return the SHA-256 of a checkpoint's parameters: its files' names and contents, in order.

    The optimizer's state is no part of it: a release without it is the same model.
    """
    return folder_sha256(step / "params")


def write_manifest(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest of all files in the folder, and return it."""
    files = {
        file.relative_to(folder).as_posix(): {
            "sha256": file_sha256(file),
            "bytes": file.stat().st_size,
        }
        for file in sorted(p for p in folder.rglob("*") if p.is_file())
    }
    body = {"format": FORMAT, **about, "files": files}
    write_json(folder / MANIFEST, seal(body))
    return body


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a bundle.

    Raises:
      ValueError: it is damaged, or of another format.
    """
    file = folder / MANIFEST
    try:
        body = unseal(json.loads(file.read_text("utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: damaged ({error}); fetch the bundle again") from error
    require(body["format"] == FORMAT, str(file), body["format"], f"wants format {FORMAT}")
    return body


def verify(folder: Path) -> dict[str, Any]:
    """Return the manifest of a bundle whose files are all as it says.

    Raises:
      ValueError: a file that is missing, was changed, or is a checkpoint's and not listed.
    """
    body = read_manifest(folder)
    for name, wanted in body["files"].items():
        file = folder / name
        require(file.is_file(), "bundle file", str(file), "is missing; fetch the bundle again")
        found = {"sha256": file_sha256(file), "bytes": file.stat().st_size}
        require(
            found == wanted,
            "bundle file",
            str(file),
            f"is not the one of the manifest: {describe(found)}, wants {describe(wanted)}",
        )
    for file in (folder / CHECKPOINTS).rglob("*"):
        listed = file.is_dir() or file.relative_to(folder).as_posix() in body["files"]
        require(listed, "bundle file", str(file), "is not in the manifest; take it away")
    return body


def describe(file: dict[str, Any]) -> str:
    return f"{file['bytes']:,} bytes with SHA-256 {file['sha256'][:12]}"


def is_bundle(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()
