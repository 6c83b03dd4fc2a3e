"""Streams of bytes and of bounded lines from files, plain or compressed; nothing is held whole."""

from __future__ import annotations

import gzip
import importlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

READ_BYTES = 1 << 20
SUFFIXES = (".txt", ".text", ".md", ".rst", ".jsonl", ".ndjson", ".json", ".parquet")
COMPRESSED = (".gz", ".zst")


def find_files(dataset: str, data_files: str = "") -> list[Path]:
    """Return the files of a local source in sorted order: a file, a folder, or a glob.

    Raises:
      ValueError: nothing there that can be read.
    """
    path = Path(dataset).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = path.glob(data_files) if data_files else path.rglob("*")
    else:
        base = Path(path.anchor) if path.is_absolute() else Path()
        found = base.glob(str(path.relative_to(path.anchor) if path.is_absolute() else path))
    files = sorted(file for file in found if file.is_file() and file_format(file))
    if not files:
        raise ValueError(
            f"dataset={dataset!r}: no text there (looked for {path.absolute()}); wants a file, a "
            f"folder or a glob of {', '.join(SUFFIXES)}, also with {' or '.join(COMPRESSED)}"
        )
    return files


def file_format(path: Path) -> str:
    """Return the suffix that tells the format, without the compression's; "" is none of ours."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else ""


@contextmanager
def open_stream(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, uncompressed on the way.

    Raises:
      ValueError: a compressed file that is truncated or damaged, wherever reading meets it.
    """
    try:
        with open(path, "rb") as file:
            if path.suffix == ".gz":
                with gzip.open(file) as unzipped:
                    yield io.BufferedReader(unzipped, READ_BYTES)
            elif path.suffix == ".zst":
                yield io.BufferedReader(ZstdReader(file, path), READ_BYTES)
            else:
                yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged gzip file ({error})") from error


class ZstdReader(io.RawIOBase):
    """A stream over concatenated zstd frames; a frame that does not end is an error."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.zstandard = import_extra("zstandard", "data", f"to read {path}")
        self.file, self.path = file, path
        self.frame: Any = self.zstandard.ZstdDecompressor().decompressobj()
        self.started, self.rest, self.left = False, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.left:
            if not self._advance():
                return 0
        size = min(len(buffer), len(self.left))
        buffer[:size] = self.left[:size]
        self.left = self.left[size:]
        return size

    def _advance(self) -> bool:
        data = self.rest or self.file.read(READ_BYTES // 8)
        if not data:
            if self.started and not self.frame.eof:
                raise ValueError(f"{self.path}: truncated zstd file")
            return False
        if self.frame.eof:
            self.frame = self.zstandard.ZstdDecompressor().decompressobj()
        self.started = True
        try:
            self.left = self.frame.decompress(data)
        except self.zstandard.ZstdError as error:
            raise ValueError(f"{self.path}: damaged zstd file ({error})") from error
        self.rest = self.frame.unused_data if self.frame.eof else b""
        return True


def bounded_lines(stream: IO[bytes], max_bytes: int) -> Iterator[bytes | None]:
    """Yield the lines of a stream without their line ends; None stands for a line too long."""
    while line := stream.readline(max_bytes + 1):
        if len(line) > max_bytes and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(READ_BYTES)
            yield None
        else:
            yield line.rstrip(b"\r\n")


def import_extra(module: str, extra: str, why: str) -> Any:
    """Import an optional dependency.

    Raises:
      ValueError: it is not installed; says which extra has it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{module} is not installed and is needed {why}; run `pip install nested-jax[{extra}]`"
        ) from error
