"""Token shards on disk: flat uint16/uint32 files, document offsets, and one JSON index.

A folder holds ``index.json``, ``tokenizer.model`` and, for every shard, ``NAME.bin`` (token ids,
little-endian) and ``NAME.doc`` (int64 offsets, documents + 1 of them; document i is tokens
``[offset[i], offset[i+1])`` and ends with EOS). Two more files may stand beside them: ``NAME.sym``,
where domain tokens stand for other bytes than their names (int64 pairs: place, bytes beyond those
of the piece), and ``NAME.mask`` (a byte per token, 1 where it is learned). Nothing in a shard
depends on a sequence length.
The index is written last: a folder without one is not a dataset.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np

from nested_jax.config.schema import unknown_fields
from nested_jax.data.records import checked_row, read_object
from nested_jax.data.splits import SPLITS
from nested_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from nested_jax.errors import require
from nested_jax.files import file_sha256, whole_file, write_bytes, write_json

FORMAT = 1  # of the files and of the index
INDEX = "index.json"
TOKENIZER = "tokenizer.model"
DTYPES = ("uint16", "uint32")
HASH_BYTES = 256 << 20  # shards up to this size in all are hashed whenever they are opened

Report = Callable[[str], None]
NO_EXTRA = np.zeros((0, 2), np.int64)


@dataclass(frozen=True)
class Shard:
    """One shard, as the index records it; ``file`` is relative to the folder of the index."""

    segment: str
    split: str
    file: str  # NAME.bin; the offsets are in NAME.doc
    tokens: int  # with one EOS per document
    documents: int
    bytes: int  # UTF-8 bytes of the text
    target_bytes: int  # bytes of the tokens that are targets: all but the first of each document
    sha256: str  # of NAME.bin
    offsets_sha256: str  # of NAME.doc
    symbols: int = 0  # domain tokens in NAME.sym; 0: there is none
    symbols_sha256: str = ""  # of NAME.sym
    mask_sha256: str = ""  # of NAME.mask; "": there is none, and every token is learned

    def named(self, suffix: str) -> str:
        return self.file.removesuffix(".bin") + suffix

    @property
    def offsets_file(self) -> str:
        return self.named(".doc")

    @property
    def files(self) -> list[str]:
        """The names of its files."""
        extra = {".sym": self.symbols_sha256, ".mask": self.mask_sha256}
        return [self.file, self.offsets_file, *(self.named(s) for s, sha in extra.items() if sha)]


@dataclass(frozen=True)
class TokenStore:
    """An opened dataset: where its shards are, and the tokenizer that wrote them."""

    root: Path
    dtype: str
    tokenizer: Tokenizer
    tokenizer_path: Path
    shards: tuple[Shard, ...]
    weights: dict[str, float]  # sampling weight per segment; empty is in proportion to tokens
    source: dict[str, Any]  # how it was made, for reports

    @property
    def segments(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(shard.segment for shard in self.shards))

    @property
    def piece_byte_lengths(self) -> np.ndarray:
        """int64 [vocab_size]: bytes of the original text that a token stands for."""
        return byte_lengths(self.tokenizer, self.source.get("piece_bytes", {}))

    def select(self, split: str, segments: Sequence[str] = ()) -> tuple[Shard, ...]:
        """Return the shards of a split, of the given segments or of all.

        Raises:
          ValueError: a segment that the dataset does not have.
        """
        for name in segments:
            if name not in self.segments:
                raise ValueError(
                    f"data.segments={tuple(segments)!r}: {self.root} has no segment {name!r}; "
                    f"it has {', '.join(self.segments)}"
                )
        wanted = segments or self.segments
        return tuple(s for s in self.shards if s.split == split and s.segment in wanted)


def byte_lengths(tokenizer: Tokenizer, piece_bytes: Mapping[str, int]) -> np.ndarray:
    """Return int64 [vocab_size]: the bytes that tokens stand for, some of them given by piece."""
    lengths_S = tokenizer.piece_byte_lengths.copy()
    for piece, size in piece_bytes.items():
        lengths_S[tokenizer.id_of(piece)] = size
    return lengths_S


def token_dtype(vocab_size: int) -> str:
    """Return the smallest dtype that holds every token id."""
    return DTYPES[vocab_size > 1 << 16]


class Document(NamedTuple):
    """The token ids of a document, without EOS, and what is known of some of them."""

    ids: Sequence[int] | np.ndarray
    extra: np.ndarray | None = None  # int64 [n, 2]: places, bytes beyond those of the piece there
    mask: np.ndarray | None = None  # uint8, one per token and one of EOS: 1 where it is learned


def write_shard(
    folder: Path,
    segment: str,
    split: str,
    number: int,
    documents: Iterable[Document | Sequence[int] | np.ndarray],
    tokenizer: Tokenizer,
    lengths_S: np.ndarray | None = None,
) -> Shard:
    """Write one shard from its documents; EOS is added to each. All or none have a mask.

    Args:
      lengths_S: bytes of the original text that each token id stands for; None is the tokenizer's.

    All files appear whole and are on the disk before the record is returned, so that an index
    never names a shard that a crash could still lose.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    lengths_S = tokenizer.piece_byte_lengths if lengths_S is None else lengths_S
    name = f"{segment}-{split}-{number:05d}"
    offsets, text_bytes, first_bytes = [0], 0, 0
    extras, masks = [NO_EXTRA], []
    with whole_file(folder / f"{name}.bin") as file:
        for document in documents:
            if not isinstance(document, Document):
                document = Document(document)
            ids = np.asarray(document.ids, dtype)
            extra = NO_EXTRA if document.extra is None else document.extra
            text_bytes += int(lengths_S[ids].sum() + extra[:, 1].sum())
            first_bytes += int(lengths_S[ids[:1]].sum() + extra[extra[:, 0] == 0, 1].sum())
            file.write(ids.tobytes() + np.array(tokenizer.eos_id, dtype).tobytes())
            extras.append(extra + np.array([offsets[-1], 0]))
            if document.mask is not None:
                assert len(document.mask) == len(ids) + 1, "a mask is a byte per token, with EOS"
                masks.append(document.mask.astype(np.uint8))
            offsets.append(offsets[-1] + len(ids) + 1)
    assert len(masks) in (0, len(offsets) - 1), "all documents have a mask, or none"
    beside = {".doc": np.asarray(offsets, np.int64)}
    if symbols := sum(map(len, extras)):
        beside[".sym"] = np.concatenate(extras)
    if masks:
        beside[".mask"] = np.concatenate(masks)
    for suffix, array in beside.items():
        write_bytes(folder / f"{name}{suffix}", array.tobytes())
    return Shard(
        segment=segment,
        split=split,
        file=f"{name}.bin",
        tokens=offsets[-1],
        documents=len(offsets) - 1,
        bytes=text_bytes,
        target_bytes=text_bytes - first_bytes,
        sha256=file_sha256(folder / f"{name}.bin"),
        offsets_sha256=file_sha256(folder / f"{name}.doc"),
        symbols=symbols,
        symbols_sha256=file_sha256(folder / f"{name}.sym") if symbols else "",
        mask_sha256=file_sha256(folder / f"{name}.mask") if masks else "",
    )


def write_index(
    folder: Path, shards: Sequence[Shard], tokenizer: Tokenizer, source: dict[str, Any]
) -> None:
    """Write the tokenizer and then, atomically, the index that makes the folder a dataset."""
    write_bytes(folder / TOKENIZER, tokenizer.model)
    index = {
        "format": FORMAT,
        "dtype": token_dtype(tokenizer.vocab_size),
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "tokenizer": {"file": TOKENIZER, "sha256": tokenizer.hash},
        "source": source,
        "shards": [asdict(shard) for shard in shards],
    }
    write_json(folder / INDEX, index)


def open_store(folder: str | Path) -> TokenStore:
    """Open a folder of shards and check that it is whole and that its parts belong together.

    Sizes are always compared; the contents too (sha256) where the shards are small enough.

    Raises:
      ValueError: no index, an unknown format, a shard that is missing or not the one that the index
        describes, a tokenizer that did not write the shards.
    """
    root = Path(folder)
    index = read_index(root)
    tokenizer_path = root / index["tokenizer"]["file"]
    tokenizer = load_tokenizer(tokenizer_path)
    check_tokenizer(tokenizer, tokenizer_path, index["tokenizer"]["sha256"], root)
    store = TokenStore(
        root=root,
        dtype=index["dtype"],
        tokenizer=tokenizer,
        tokenizer_path=tokenizer_path,
        shards=tuple(Shard(**shard) for shard in index["shards"]),
        weights={},
        source=index["source"],
    )
    size = sum(shard.tokens for shard in store.shards) * np.dtype(store.dtype).itemsize
    for shard in store.shards:
        check_shard(store, shard, contents=size <= HASH_BYTES)
    return store


def read_index(root: Path) -> dict[str, Any]:
    """Return the checked JSON of ``root/index.json``."""
    path = root / INDEX
    if not path.is_file():
        raise ValueError(
            f"data.source={str(root)!r}: no {INDEX} there; give a folder written by "
            "`python -m nested_jax.data shard`, or 'stdlib' for the embedded text"
        )
    index = read_json(
        path, "an index of shards", dtype=str, tokenizer=dict, shards=list, source=dict
    )
    require(index["dtype"] in DTYPES, f"{path}: dtype", index["dtype"], f"wants one of {DTYPES}")
    checked_row(index["tokenizer"], f"{path}: tokenizer", file=str, sha256=str)
    require(bool(index["shards"]), f"{path}: shards", [], "wants at least one")
    for number, row in enumerate(index["shards"]):
        check_record(row, f"{path}: shards[{number}]")
    return index


def check_record(row: Any, where: str) -> None:
    """Raise unless a row of the index is the record of a shard."""
    fields = get_type_hints(Shard)
    optional = {field.name for field in dataclasses.fields(Shard) if field.default != MISSING}
    checked_row(row, where, **{n: t for n, t in fields.items() if n not in optional or n in row})
    unknown_fields(f"{where}.", row, fields)
    require(row["split"] in SPLITS, f"{where}: split", row["split"], f"wants one of {SPLITS}")
    plain = Path(row["file"]).name == row["file"] and row["file"].endswith(".bin")
    require(plain, f"{where}: file", row["file"], "wants NAME.bin, in the folder of the index")
    for name in ("tokens", "documents", "bytes", "target_bytes", "symbols"):
        count = row.get(name, 0)  # an index from before there were symbols has none
        require(count >= 0, f"{where}: {name}", count, "wants 0 or more")


def read_json(path: Path, what: str, /, **columns: type) -> dict[str, Any]:
    """Return the JSON object of a file with the given keys and the format of this version.

    Raises:
      ValueError: no such file, not JSON, not the object that is wanted, another format.
    """
    try:
        data = read_object(path, format=int, **columns)
    except ValueError as error:
        raise ValueError(f"{error}; wants {what}") from error
    if data["format"] != FORMAT:
        raise ValueError(
            f"{path}: format={data['format']!r}, this version reads format {FORMAT}; "
            "prepare the data again with `python -m nested_jax.data`"
        )
    return data


def check_tokenizer(tokenizer: Tokenizer, path: Path, expected: str, root: Path) -> None:
    """Raise unless the tokenizer is the one that wrote the shards of `root`."""
    if tokenizer.hash != expected:
        raise ValueError(
            f"{path}: sha256 {tokenizer.hash[:16]}..., but the shards of {root} were written "
            f"with the tokenizer {expected[:16]}...; put that tokenizer back or write "
            "the shards again"
        )


def check_shard(store: TokenStore, shard: Shard, *, contents: bool) -> None:
    """Raise unless the files of `shard` are the ones that the index describes."""
    itemsize = np.dtype(store.dtype).itemsize
    for file, size, digest in (
        (shard.file, shard.tokens * itemsize, shard.sha256),
        (shard.offsets_file, (shard.documents + 1) * 8, shard.offsets_sha256),
        (shard.named(".sym"), shard.symbols * 16, shard.symbols_sha256),
        (shard.named(".mask"), shard.tokens, shard.mask_sha256),
    ):
        if not digest:
            continue
        path = store.root / file
        if not path.is_file():
            raise ValueError(
                f"{path}: missing, and {store.root / INDEX} names it; write the shards again or "
                "copy the file back"
            )
        if path.stat().st_size != size:
            raise ValueError(
                f"{path}: {path.stat().st_size} bytes, {store.root / INDEX} says {size}; the "
                "file is truncated or foreign"
            )
        if contents and file_sha256(path) != digest:
            raise ValueError(
                f"{path}: its sha256 is not the one in {store.root / INDEX}; the file is "
                "damaged or foreign"
            )
