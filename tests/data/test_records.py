"""The reader of a user's JSON lines: one bad line costs one line, and what is lost is said."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest

from nested_jax.data.__main__ import main
from nested_jax.data.records import checked_row, json_rows

GOOD = [{"text": f"words of text {i} \u00e9"} for i in range(7)]
DEEP = b'{"text": "x", "deep": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n"


def lines_of(rows: list[dict[str, str]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def run_filter(
    data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str = "a.jsonl"
) -> tuple[int, list[str], str]:
    """Status, kept texts, and the last line of `data filter`."""
    path, out = tmp_path / name, tmp_path / "out.jsonl"
    path.write_bytes(data)
    out.unlink(missing_ok=True)
    command = ["filter", "--dataset", str(path), "--output-path", str(out), "--rules", "none"]
    status = main(command)
    said, wrong = capsys.readouterr()
    kept = [json.loads(line)["text"] for line in out.read_text().splitlines()] if not status else []
    return status, kept, (wrong or said).strip().splitlines()[-1]


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(GOOD, indent=2).encode(),
        json.dumps(GOOD).encode(),
        b"\xef\xbb\xbf\n " + json.dumps(GOOD, indent=1, ensure_ascii=False).encode(),
        b"\xef\xbb\xbf" + lines_of(GOOD),
        lines_of(GOOD[:3]) + b"\xef\xbb\xbf" + lines_of(GOOD[3:]),
        lines_of(GOOD).replace(b"\n", b"\r\n\r\n"),
        lines_of(GOOD)[:-1],
        b"\n\n" + lines_of(GOOD).replace(b"}", b', "score": NaN}'),
    ],
    ids=["pretty", "array", "marked-array", "mark", "joined", "crlf", "no-end", "nan"],
)
def test_every_record_is_read(
    data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jsonl", "a.json"):
        status, kept, _ = run_filter(data, tmp_path, capsys, name)
        assert (status, kept) == (0, [row["text"] for row in GOOD])


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (DEEP, "1 broken_json, first {}:4 (is nested too deeply)"),
        (b'{"text": "caf\xe9"}\n', "1 undecodable, first {}:4 (is not UTF-8"),
        (b'{"text": "half\n', "1 broken_json, first {}:4 (is not JSON: Unterminated"),
        (b'{"text": 3}\n', "1 no_text, first {}:4 ('text' is int, wants a string)"),
        (b'"text"\n', "1 no_text, first {}:4 (is str, wants an object)"),
        (b'{"text": "\\ud800"}\n', "1 undecodable, first {}:4 (holds what is not UTF-8)"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n", "1 broken_json, first {}:4 (is not JSON"),
        (b"[1, 2]\n", "1 no_text, first {}:4 (is list, wants an object)"),
    ],
    ids=range(8),
)
def test_one_bad_line_costs_one_line(
    bad: bytes, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = lines_of(GOOD[:3]) + bad + lines_of(GOOD[3:])
    status, kept, last = run_filter(data, tmp_path, capsys)
    assert (status, kept) == (0, [row["text"] for row in GOOD])
    assert f"could not read 1 of 8 records (12.5%): {why.format(tmp_path / 'a.jsonl')}" in last


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "nothing is kept: processed=0"),
        (b"\n\n\n", "nothing is kept: processed=0"),
        (b"[]", "nothing is kept: processed=0"),
        (b'{"text": ""}\n', "nothing is kept: processed=0"),
        (b"{broken\n", "could not read 1 of 1 records (100.0%)"),
        (json.dumps(GOOD[0], indent=1).encode(), "a.jsonl:1: a JSON value goes on over 3 lines"),
        (json.dumps({"data": GOOD}, indent=1).encode(), ":1: a JSON value goes on over"),
        (json.dumps(GOOD, indent=1).encode()[:-40], "a.jsonl:20: a JSON array that is broken"),
        (json.dumps(GOOD).encode() + b'\n{"text": "more"}\n', "a.jsonl:1: more follows the end"),
        (b"[1, 2]\n[3]\n", "a.jsonl:1: text_column='text' is not there"),
        (lines_of(GOOD).decode().encode("utf-16"), "a.jsonl: text in UTF-16"),
        (gzip.compress(lines_of(GOOD)), "could not read"),
    ],
    ids=range(12),
)
def test_what_is_no_source_is_status_2(
    data: bytes, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, last = run_filter(data, tmp_path, capsys)
    assert status == 2
    assert last.startswith("error: ")
    assert why in last
    assert not (tmp_path / "out.jsonl").exists()


def pack_zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").compress(data)


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", pack_zstd)],
)
def test_compressed_files_whole_and_cut(
    suffix: str, pack: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": f"{i} words {i**5}"} for i in range(40_000)]
    packed = pack(lines_of(rows))  # type: ignore[operator]
    for name in (f"a.jsonl.{suffix}", f"A.JSONL.{suffix.upper()}"):
        status, kept, _ = run_filter(packed, tmp_path, capsys, name)
        assert (status, len(kept)) == (0, len(rows))
    for data in (packed[: len(packed) // 2], packed[:-3], b"", b"no such thing at all"):
        status, _, last = run_filter(data, tmp_path, capsys, f"a.jsonl.{suffix}")
        assert status == 2
        assert f"a.jsonl.{suffix}: truncated or damaged" in last
        assert "bytes of text could be read" in last


def test_rows_for_evaluations_are_all_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"query": "q", "gold": 1}\n\n{"query": "r", "gold": 0}\n')
    places = [where for where, _ in json_rows(path)]
    assert places == [f"{path}:1", f"{path}:3"]
    for bad in (b'{"query"\n', b'{"query": "caf\xe9"}\n', DEEP, b'{"query": "\\udfff"}\n'):
        path.write_bytes(b'{"query": "q", "gold": 1}\n' + bad)
        with pytest.raises(ValueError, match=r"a\.jsonl:2: "):
            list(json_rows(path))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (["q"], "a:1: is a JSON list; wants an object"),
        ({"gold": 1}, "a:1: lacks query; the record has gold"),
        ({"query": 3, "gold": 1}, "a:1: query=3: wants str"),
        ({"query": "q", "gold": "1"}, "a:1: gold='1': wants int"),
        ({"query": "q", "gold": True}, "a:1: gold=True: wants int"),
    ],
)
def test_a_row_has_the_columns_that_are_wanted(row: object, why: str) -> None:
    assert checked_row({"query": "q", "gold": 1, "x": None}, "a:1", query=str, gold=int)
    with pytest.raises(ValueError, match=why.replace("[", r"\[")):
        checked_row(row, "a:1", query=str, gold=int)
