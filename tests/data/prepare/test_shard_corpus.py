"""The sharder: the same bytes whoever writes them, however often they were interrupted."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small_data import synthetic_source

from nested_jax.data.manifest import SourceSpec
from nested_jax.data.prepare.audit import document_lengths, stats
from nested_jax.data.prepare.inject import PAIRS, Injection
from nested_jax.data.prepare.shard_block import PROGRESS, ShardOptions
from nested_jax.data.prepare.shard_corpus import (
    shard_source,
    shard_stats,
)
from nested_jax.data.shards import INDEX, open_store
from nested_jax.data.splits import split_of_content
from nested_jax.data.tokenizers.tokenizer import Tokenizer, train_tokenizer
from nested_jax.files import hold_folder

BLOCK = 2000  # characters: many small blocks

SHARDER = """
import sys
from pathlib import Path
from nested_jax.data.manifest import SourceSpec
from nested_jax.data.prepare.shard_block import ShardOptions
from nested_jax.data.prepare.shard_corpus import shard_source
corpus, tokenizer, folder, workers, block = sys.argv[1:]
if __name__ == "__main__":
    print("begins", flush=True)
    options = ShardOptions(block_chars=int(block), workers=int(workers))
    shard_source(SourceSpec(name="c", dataset=corpus), Path(tokenizer), Path(folder), options, print)
"""  # noqa: E501


def quiet(_: str) -> None:
    pass


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    rows = [{"text": synthetic_source(i)} for i in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def model(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer.model)
    return path


def shard(corpus: Path, model: Path, folder: Path, **fields: object) -> dict[str, bytes]:
    """Shard the corpus and return the contents of the folder."""
    force = bool(fields.pop("force", False))
    options = ShardOptions(**{"block_chars": BLOCK, **fields})
    spec = SourceSpec(name="c", dataset=str(corpus))
    shard_source(spec, model, folder, options, quiet, force=force)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def spawn(corpus: Path, model: Path, folder: Path) -> subprocess.Popen[str]:
    """Start a sharder in a process of its own."""
    script = folder.parent / "sharder.py"
    script.write_text(SHARDER)
    root = str(Path(__file__).resolve().parents[3])
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, (corpus, model, folder, 1, BLOCK))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )


def test_nothing_is_lost_and_stats_agree(corpus: Path, model: Path, tmp_path: Path) -> None:
    files = shard(corpus, model, tmp_path / "out")
    store = open_store(tmp_path / "out")
    texts = [synthetic_source(i) for i in range(200)]
    want: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for text in texts:
        want[split_of_content(text, 0.02)].append(text)
    counted: Counter[str] = Counter()
    for split, expected in want.items():
        got = []
        for record in store.select(split):
            ids = np.fromfile(store.root / record.file, store.dtype)
            ends = np.cumsum(document_lengths(store, record))
            got += [store.tokenizer.decode(part) for part in np.split(ids, ends[:-1])]
            counted["tokens"] += len(ids)
        assert got == expected
    assert len(store.select("train")) > 20
    about = stats(store)
    assert about["tokens"] == counted["tokens"]
    assert about["documents"] == 200
    assert about["bytes"] == sum(len(text.encode()) for text in texts)
    rows = {row["split"]: row for row in about["rows"]}
    lengths = [len(store.tokenizer.encode(text)) + 1 for text in want["train"]]
    assert rows["train"]["tokens"] == sum(lengths)
    assert rows["train"]["document_tokens"][0::4] == [min(lengths), max(lengths)]
    summary = shard_stats(store, SourceSpec(name="c", dataset=str(corpus)), seq_len=64)
    assert summary["records"] == 200
    assert summary["sequences"] == counted["tokens"] // 64
    assert PROGRESS not in files


def test_workers_do_not_change_a_byte(corpus: Path, model: Path, tmp_path: Path) -> None:
    one = shard(corpus, model, tmp_path / "one")
    assert shard(corpus, model, tmp_path / "two", workers=2) == one


def test_killed_runs_go_on_and_end_equal(corpus: Path, model: Path, tmp_path: Path) -> None:
    whole = shard(corpus, model, tmp_path / "whole")
    folder = tmp_path / "killed"
    for delay in (0.02, 0.06, 0.12):
        with spawn(corpus, model, folder) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begins\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        if not (folder / INDEX).is_file():
            with pytest.raises(ValueError, match=r"no index\.json there"):
                open_store(folder)
    assert shard(corpus, model, folder) == whole


def test_a_run_killed_between_its_index_and_its_cleaning_is_cleaned_by_the_next(
    corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nested_jax.data.prepare import shard_corpus

    def dies(_: Path) -> None:
        raise KeyboardInterrupt

    whole = shard(corpus, model, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(shard_corpus, "clear_leftovers", dies)
        with pytest.raises(KeyboardInterrupt):
            shard(corpus, model, tmp_path / "out")
    assert (tmp_path / "out" / PROGRESS).is_dir()
    assert shard(corpus, model, tmp_path / "out") == whole


def test_a_killed_run_is_resumed_not_begun_again(
    corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nested_jax.data.prepare import shard_corpus

    whole = shard(corpus, model, tmp_path / "whole")
    written: list[int] = []
    original = shard_corpus.write_block

    def dies_at_seven(task: shard_corpus.Task) -> shard_corpus.Block:
        if task.number == 7:
            raise KeyboardInterrupt
        written.append(task.number)
        return original(task)

    monkeypatch.setattr(shard_corpus, "write_block", dies_at_seven)
    with pytest.raises(KeyboardInterrupt):
        shard(corpus, model, tmp_path / "out")
    monkeypatch.setattr(
        shard_corpus, "write_block", lambda t: written.append(t.number) or original(t)
    )
    assert shard(corpus, model, tmp_path / "out") == whole
    assert written == sorted(set(written))


def test_two_processes_on_one_target(corpus: Path, model: Path, tmp_path: Path) -> None:
    whole = shard(corpus, model, tmp_path / "whole")
    folder = tmp_path / "shared"
    with hold_folder(folder), spawn(corpus, model, folder) as second:
        said = second.communicate(timeout=120)
        assert second.returncode != 0
        assert f"HeldError: {folder} is in use by process {os.getpid()} on" in said[1]
    assert shard(corpus, model, folder) == whole


def test_other_settings_need_force(corpus: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    before = shard(corpus, model, folder)
    assert shard(corpus, model, folder) == before
    with pytest.raises(ValueError, match=r"holds shards of other settings .* --force"):
        shard(corpus, model, folder, held_out=0.1)
    assert contents(folder) == before
    after = shard(corpus, model, folder, held_out=0.1, force=True)
    assert after == shard(corpus, model, tmp_path / "fresh", held_out=0.1)
    corpus.write_text(corpus.read_text() + json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(ValueError, match="of another source"):
        shard(corpus, model, folder, held_out=0.1)


def test_a_full_disk(corpus: Path, model: Path, tmp_path: Path) -> None:
    whole = shard(corpus, model, tmp_path / "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))  # bytes per file; shards have more
    try:
        with pytest.raises(OSError, match="File too large"):
            shard(corpus, model, tmp_path / "full", block_chars=10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(ValueError, match=r"no index\.json there"):
        open_store(tmp_path / "full")
    assert shard(corpus, model, tmp_path / "full") == whole


def test_held_out_share(corpus: Path, model: Path, tmp_path: Path) -> None:
    shard(corpus, model, tmp_path / "none", held_out=0.0)
    assert {s.split for s in open_store(tmp_path / "none").shards} == {"train"}
    splits = Counter(split_of_content(f"{i}", 0.1) for i in range(5000))
    assert splits["valid"] / 5000 == pytest.approx(0.1, abs=0.015)
    assert splits["test"] / 5000 == pytest.approx(0.1, abs=0.015)


def test_injection_reports_and_counts_original_bytes(tmp_path: Path) -> None:
    texts = [synthetic_source(i) + f"# {i % 10} * {i // 10} = ?\n" for i in range(60)]
    corpus, model = tmp_path / "c.jsonl", tmp_path / "tokenizer.model"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model.write_bytes(train_tokenizer(texts, 480, symbols=PAIRS).model)
    shard(corpus, model, tmp_path / "base")
    shard(corpus, model, tmp_path / "mul", injection=Injection("mul_tokens"))
    base, mul = open_store(tmp_path / "base"), open_store(tmp_path / "mul")
    assert sum(s.bytes for s in mul.shards) == sum(s.bytes for s in base.shards)
    assert sum(s.tokens for s in mul.shards) < sum(s.tokens for s in base.shards)
    assert mul.source["injection"]["rewritten"] == 60
    assert (mul.piece_byte_lengths != base.piece_byte_lengths).any()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": ""}] * 3, "no document in 3 records, 3 of them empty"),
        ([{"body": "x"}], "text_column='text' is not there"),
    ],
)
def test_bad_corpora(rows: list[dict[str, str]], message: str, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        shard(path, model, tmp_path / "out")
    assert not (tmp_path / "out" / INDEX).exists()
