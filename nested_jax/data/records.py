"""Records of a user's JSON lines: the one reader of such files, for training and evaluation.

A file holds one JSON value per line, or one array of them, in any print. What cannot be read
is told by its kind, file and line to a function of the caller's: `refuse` raises (an evaluation
wants every row), `Problems` counts (a corpus may lose a few).
"""

from __future__ import annotations

import codecs
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nested_jax.data.manifest import SourceSpec
from nested_jax.data.splits import split_of_name
from nested_jax.data.streams import bounded_lines, open_stream
from nested_jax.errors import require

MAX_DOCUMENT_BYTES = 64 << 20  # a longer line is counted as `giant` and left out
MAX_ARRAY_BYTES = 256 << 20  # a JSON array is held whole
HELD_OUT_SHARE = 10  # a limit of n training documents keeps n / 10 of each held-out split
BAD_GRACE = 10  # unreadable records that are always tolerated
ONE_A_LINE = "wants one JSON object a line, which `jq -c` writes"

Bad = Callable[[str, str, str], None]  # told the kind, FILE:LINE and why


class Record(NamedTuple):
    """One document and the split that its source puts it in; None lets its content decide."""

    text: str
    split: str | None = None


class Problems:
    """Counts of unreadable records by kind, and the threshold above which reading stops."""

    KINDS = ("undecodable", "broken_json", "no_text", "giant")

    def __init__(self, spec: SourceSpec) -> None:
        self.spec = spec
        self.read = 0  # records, with the unreadable ones
        self.empty = 0  # not an error
        self.counts: Counter[str] = Counter(dict.fromkeys(self.KINDS, 0))
        self.first: dict[str, str] = {}  # kind -> where it was first met
        self.why = ""  # of the first of all
        self.unknown_splits = 0  # records whose split has a name that stands for none
        self.first_unknown = ""

    def add(self, kind: str, where: str, why: str) -> None:
        """Count one unreadable record.

        Raises:
          ValueError: more than the share ``max_bad`` of the records so far.
        """
        self.read += 1
        self.counts[kind] += 1
        self.first.setdefault(kind, where)
        self.why = self.why or f"{where} ({why})"
        bad = self.counts.total()
        if bad > BAD_GRACE and bad > self.spec.max_bad * self.read:
            raise ValueError(
                f"{self.spec.dataset}: reading stops, since more than max_bad="
                f"{self.spec.max_bad:g} is unreadable: {self.summary()}"
            )

    def add_split(self, value: Any, where: str) -> None:
        """Count a record whose split is unknown; its content decides."""
        self.unknown_splits += 1
        self.first_unknown = self.first_unknown or f"{value!r} at {where}"

    def merge(self, other: Problems) -> None:
        """Count what another reader of the same source met after this one."""
        self.read += other.read
        self.empty += other.empty
        self.counts += other.counts
        self.first = {**other.first, **self.first}
        self.why = self.why or other.why
        self.unknown_splits += other.unknown_splits
        self.first_unknown = self.first_unknown or other.first_unknown

    def summary(self) -> str:
        """Return what could not be read: count, share, kinds and the first place; "" is nothing."""
        parts = []
        if bad := self.counts.total():
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.items() if count)
            parts.append(
                f"could not read {bad} of {self.read} records ({bad / self.read:.1%}): {kinds}, "
                f"first {self.why}"
            )
        if self.unknown_splits:
            parts.append(
                f"{self.unknown_splits} of {self.read} records name an unknown split, first "
                f"{self.first_unknown}; their content decided"
            )
        return "; ".join(parts)

    def lost(self) -> str:
        """Return how it came that nothing is there, for an error."""
        unread = self.summary() or "nothing was unreadable"
        return f" in {self.read} records, {self.empty} of them empty; {unread}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "empty": self.empty,
            **self.counts,
            "unknown_split": self.unknown_splits,
            "first": dict(self.first),
        }


class Limit:
    """How many documents of every split may pass the rules."""

    def __init__(self, documents: int) -> None:
        self.documents = documents
        self.passed: Counter[str] = Counter()

    def quota(self, split: str | None) -> int:
        held_out = split in ("valid", "test")
        return max(1, self.documents // HELD_OUT_SHARE) if held_out else self.documents

    def admits(self, record: Record) -> bool:
        """Count a document that passed the rules; False where its split is full."""
        split = record.split or "train"
        if self.documents and self.passed[split] >= self.quota(split):
            return False
        self.passed[split] += 1
        return True

    def within(self, source: Iterable[Record]) -> Iterator[Record]:
        """Yield the documents of a source that are within the limit."""
        for record in source:
            if self.admits(record):
                yield record
            if self.full:
                return

    @property
    def full(self) -> bool:
        """Whether the training split, which comes last, is full."""
        return self.documents > 0 and self.passed["train"] >= self.documents


def refuse(kind: str, where: str, why: str) -> None:
    """Raise for a record that cannot be read."""
    raise ValueError(f"{where}: {why} ({kind})")


def json_rows(path: Path, bad: Bad = refuse) -> Iterator[tuple[str, Any]]:
    """Yield (FILE:LINE, value) of every JSON value of a file; empty lines hold none.

    Args:
      bad: told of what cannot be read; where it returns, the line is left out.
    Raises:
      ValueError: what `open_stream` and `bad` raise; a value that goes on over several lines and is
        no array; an array that is broken, or larger than MAX_ARRAY_BYTES.
    """
    with open_stream(path) as stream:
        if stream.peek(1).lstrip()[:1] == b"[":
            yield from array_rows(stream, path, bad)
            return
        first = True
        for number, line in enumerate(bounded_lines(stream, MAX_DOCUMENT_BYTES), 1):
            where = f"{path}:{number}"
            if line is None:
                bad("giant", where, f"is longer than {MAX_DOCUMENT_BYTES:,} bytes")
                continue
            if not line.strip():
                continue
            try:
                value = parse(line)
            except Unreadable as error:
                if first:
                    check_one_line(path, where)
                bad(error.kind, where, str(error))
            else:
                yield where, value
            first = False


class Unreadable(ValueError):
    """A line that is no JSON."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def parse(line: bytes) -> Any:
    """Return the JSON value of a line, or raise `Unreadable`."""
    try:
        text = line.removeprefix(codecs.BOM_UTF8).decode()
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise Unreadable("undecodable", f"is not UTF-8: {error.reason}") from error
    except json.JSONDecodeError as error:
        why = f"is not JSON: {error.msg} at character {error.pos + 1}"
        raise Unreadable("broken_json", why) from error
    except ValueError as error:  # a number of thousands of digits
        raise Unreadable("broken_json", f"is not JSON: {error}") from error
    except RecursionError as error:
        raise Unreadable("broken_json", "is nested too deeply") from error
    check_encodable(text, value)
    return value


def check_encodable(source: str, value: Any) -> None:
    """Raise `Unreadable` where a value cannot be UTF-8: JSON can smuggle in lone surrogates."""
    if source.isascii() and "\\u" not in source:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Unreadable("undecodable", "holds what is not UTF-8") from error
    except RecursionError as error:
        raise Unreadable("broken_json", "is nested too deeply") from error


def check_one_line(path: Path, where: str) -> None:
    """Raise where the first value of a file is whole only with the lines below it."""
    with open_stream(path) as stream:
        text = stream.read(MAX_DOCUMENT_BYTES).decode(errors="surrogateescape").lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return
    lines = text.count("\n", 0, end)
    if lines:
        raise ValueError(f"{where}: a JSON value goes on over {lines + 1} lines; {ONE_A_LINE}")


def array_rows(stream: io.BufferedReader, path: Path, bad: Bad) -> Iterator[tuple[str, Any]]:
    """Yield (FILE:LINE, item) of a file that is one JSON array."""
    data = stream.read(MAX_ARRAY_BYTES + 1)
    if len(data) > MAX_ARRAY_BYTES:
        raise ValueError(
            f"{path}: a JSON array of more than {MAX_ARRAY_BYTES:,} bytes; {ONE_A_LINE} (-c '.[]')"
        )
    text = data.decode(errors="surrogateescape")  # `check_encodable` finds such an item
    place, line, counted, items = text.index("["), 1, 0, 0
    while True:
        place = skip_space(text, place + 1)
        line, counted = line + text.count("\n", counted, place), place
        where = f"{path}:{line}"
        if not items and text.startswith("]", place):
            break
        try:
            item, end = json.JSONDecoder().raw_decode(text, place)
            check_encodable(text[place:end], item)
        except Unreadable as error:
            bad(error.kind, where, str(error))
        except (ValueError, RecursionError) as error:
            raise broken_array(where, items, error) from error
        else:
            yield where, item
        items, place = items + 1, skip_space(text, end)
        if text.startswith("]", place):
            break
        if not text.startswith(",", place):
            raise broken_array(where, items, "no comma after an item")
    if text[place + 1 :].strip():
        raise ValueError(f"{where}: more follows the end of a JSON array; {ONE_A_LINE}")


def broken_array(where: str, items: int, why: object) -> ValueError:
    why = "nested too deeply" if isinstance(why, RecursionError) else why
    return ValueError(
        f"{where}: a JSON array that is broken or cut short; {items} of its items could be read "
        f"({why})"
    )


def skip_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def checked_row(row: Any, where: str, /, **columns: type) -> dict[str, Any]:
    """Return a row that is an object with the given columns, each of its type; float is finite.

    Raises:
      ValueError: what it is, or lacks, with its place.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where}: is a JSON {type(row).__name__}; wants an object")
    missing = [name for name in columns if name not in row]
    if missing:
        raise ValueError(
            f"{where}: lacks {', '.join(missing)}; the record has {', '.join(map(str, row))}"
        )
    for name, wanted in columns.items():
        value = row[name]
        fits = isinstance(value, (float, int) if wanted is float else wanted)
        if wanted is float:
            fits = fits and math.isfinite(value)
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise ValueError(f"{where}: {name}={repr(value)[:80]}: wants {wanted.__name__}")
    return row


def not_of_source(output: Path, files: Iterable[Path]) -> None:
    """Raise where a file that is to be written is a folder, or one of those that are read."""
    require(not output.is_dir(), "output", str(output), "is a folder; wants a file")
    for file in files:
        same = output.exists() and output.samefile(file)
        require(not same, "output", str(output), "is the source itself; wants another file")


def read_object(path: Path, **columns: type) -> dict[str, Any]:
    """Return the JSON object that a file is, with the given keys.

    Raises:
      ValueError: no such file, not JSON, not the object that is wanted.
    """
    try:
        return checked_row(json.loads(path.read_text(encoding="utf8")), str(path), **columns)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: is not JSON ({error.msg})") from error
    except RecursionError as error:
        raise ValueError(f"{path}: is not JSON (nested too deeply)") from error


def row_record(
    row: Any, where: str, spec: SourceSpec, problems: Problems
) -> Iterator[tuple[str, str | None, str]]:
    """Yield (text, split, where) of a table's row, or count it; a first row without it raises."""
    column = spec.text_column
    if isinstance(row, dict) and isinstance(row.get(column), str):
        yield row[column], row_split(row.get("split"), where, problems), where
    elif problems.read == 0 and not (isinstance(row, dict) and column in row):
        found = f"columns {', '.join(row)}" if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{where}: text_column={column!r} is not there; the record has {found}")
    elif isinstance(row, dict):
        found = f"is {type(row[column]).__name__}" if column in row else "is not there"
        problems.add("no_text", where, f"{column!r} {found}, wants a string")
    else:
        problems.add("no_text", where, f"is {type(row).__name__}, wants an object")


def row_split(value: Any, where: str, problems: Problems) -> str | None:
    """Return the split that a row names; one that is unknown is counted."""
    if value is None:
        return None
    try:
        split = split_of_name(value) if isinstance(value, str) else None
    except ValueError:
        split = None
    if split is None:
        problems.add_split(value, where)
    return split
