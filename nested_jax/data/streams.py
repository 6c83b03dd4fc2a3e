"""Streams of bytes and of bounded lines from files, plain or compressed; nothing is held whole."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from nested_jax.errors import import_extra

READ_BYTES = 1 << 20
SUFFIXES = (".txt", ".text", ".md", ".rst", ".jsonl", ".ndjson", ".json", ".parquet")
FOREIGN_MARKS = {  # byte order marks of what is no UTF-8; UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


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
def open_stream(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file of UTF-8 text, uncompressed on the way and without a byte order mark.

    Raises:
      ValueError: text in UTF-16 or UTF-32; a compressed file that is truncated or damaged, wherever
        reading meets it, with how far it was read.
    """
    with open(path, "rb") as file:
        stream = file
        kind = COMPRESSED.get(path.suffix.lower())
        if kind:
            stream = io.BufferedReader(Uncompressed(file, path, kind), READ_BYTES)
        start = stream.peek(4)[:4]
        for mark, name in FOREIGN_MARKS.items():
            if start.startswith(mark):
                raise ValueError(
                    f"{path}: text in {name}; wants UTF-8 (`iconv -f {name} -t UTF-8` writes it)"
                )
        if start.startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
        yield stream


class Compression(NamedTuple):
    """A kind of compressed file: its name, and what opens one for ``read1``."""

    name: str
    open: Callable[[IO[bytes], Path], Any]


class Uncompressed(io.RawIOBase):
    """The bytes of a compressed file; what cannot be read is an error that says how far it was."""

    def __init__(self, file: IO[bytes], path: Path, kind: Compression) -> None:
        self.file, self.path, self.kind = file, path, kind
        self.source = kind.open(file, path)
        self.given = 0  # bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.source.read1(len(buffer))
            if not data and self.file.tell() == 0:
                raise EOFError("the file is empty")
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise ValueError(
                f"{self.path}: truncated or damaged {self.kind.name} file, of which "
                f"{self.given:,} bytes of text could be read ({error})"
            ) from error
        buffer[: len(data)] = data
        self.given += len(data)
        return len(data)


class ZstdReader:
    """Concatenated zstd frames; one that does not end is an error, which zstandard does not see."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.zstandard = import_extra("zstandard", "data", f"to read {path}")
        self.file = file
        self.frame: Any = self.zstandard.ZstdDecompressor().decompressobj()
        self.started, self.rest, self.left = False, b"", b""

    def read1(self, size: int) -> bytes:
        while not self.left and self._advance():
            pass
        data, self.left = self.left[:size], self.left[size:]
        return data

    def _advance(self) -> bool:
        data = self.rest or self.file.read(READ_BYTES // 8)
        if not data:
            if self.started and not self.frame.eof:
                raise EOFError("the last frame does not end")
            return False
        if self.frame.eof:
            self.frame = self.zstandard.ZstdDecompressor().decompressobj()
        self.started = True
        try:
            self.left = self.frame.decompress(data)
        except self.zstandard.ZstdError as error:
            raise EOFError(str(error)) from error
        self.rest = self.frame.unused_data if self.frame.eof else b""
        return True


COMPRESSED = {  # suffix -> kind
    ".gz": Compression("gzip", lambda file, _: gzip.GzipFile(fileobj=file)),
    ".bz2": Compression("bzip2", lambda file, _: bz2.BZ2File(file)),
    ".xz": Compression("xz", lambda file, _: lzma.LZMAFile(file)),  # noqa: SIM115 - `file` is closed
    ".zst": Compression("zstd", ZstdReader),
}


def bounded_lines(stream: IO[bytes], max_bytes: int) -> Iterator[bytes | None]:
    """Yield the lines of a stream without their line ends; None stands for a line too long."""
    while line := stream.readline(max_bytes + 1):
        if len(line) > max_bytes and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(READ_BYTES)
            yield None
        else:
            yield line.rstrip(b"\r\n")


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, each with its line end as it is.

    Raises:
      ValueError: what `open_stream` raises; a line that is not UTF-8, with its number.
    """
    with open_stream(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: is not UTF-8 text ({error})") from error
