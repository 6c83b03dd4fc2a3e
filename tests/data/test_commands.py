"""The command line: recipes end to end on a small library, every command, exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_data import synthetic_source

from nested_jax.config import DataConfig
from nested_jax.data.__main__ import COMMANDS, main
from nested_jax.data.pipeline import make_train_iterator, prepare
from nested_jax.data.prepare import recipes, text_sources

MANIFESTS = Path(__file__).resolve().parents[2] / "configs" / "data"


@pytest.fixture(autouse=True)
def small_library(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (text_sources, recipes):
        monkeypatch.setattr(module, "stdlib_root", lambda: library)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def sample(capsys: pytest.CaptureFixture[str], out: Path, *more: str) -> tuple[int, str, str]:
    return run(capsys, "sample", "--out", out, "--vocab-size", 400, *more)


def test_sample_end_to_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, err = sample(capsys, tmp_path / "out")
    assert status == 0, err
    assert f"--config.data.source={tmp_path / 'out' / 'mixture.json'}" in out
    cfg = DataConfig(source=str(tmp_path / "out/mixture.json"), seq_len=32)
    info = prepare(cfg)
    assert set(info.tokens) == {"prose", "library", "tests", "tables"}
    assert next(make_train_iterator(cfg, batch_size=4, align=8, seed=0))["weights_BT"].any()
    status, out, _ = run(capsys, "stats", cfg.source)
    about = json.loads(out)
    assert about["tokens"] == sum(sum(by.values()) for by in info.tokens.values())
    log = json.loads((tmp_path / "out/shards.json").read_text())["stats"]
    assert sum(entry["tokens"] for entry in log) == about["tokens"]
    assert set(log[0]) >= {"name", "dataset", "subset", "records", "sequences", "tokens", "shards"}

    status, again, _ = sample(capsys, tmp_path / "out")
    assert again.count("is up to date") == 8  # 4 filtered, 4 sharded
    assert "keeping" in again


def test_sample_switches(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample(capsys, tmp_path / "one")
    monkeypatch.setenv("CODE_LIMIT", "20")
    monkeypatch.setenv("TESTS_OUTPUT", str(tmp_path / "kept.jsonl"))
    monkeypatch.setenv("NL_SHARD_DIR_TABLES", str(tmp_path / "one/shards/tables"))
    monkeypatch.setenv("TOKENIZER_MODEL", str(tmp_path / "one/tokenizer/tokenizer.model"))
    monkeypatch.setenv("SHARD_LOG", str(tmp_path / "log.json"))
    status, out, err = sample(capsys, tmp_path / "two", "--limit", "WIKI=3", "--limit", "30")
    assert status == 0, err
    assert "taking the shards of" in out
    assert (tmp_path / "kept.jsonl").is_file()
    stats = {row["name"]: row for row in json.loads((tmp_path / "log.json").read_text())["stats"]}
    assert stats["prose"]["records"] == 3
    assert stats["library"]["records"] == 30  # a flag wins over the environment
    monkeypatch.delenv("TOKENIZER_MODEL")
    monkeypatch.setenv("FORCE_FILTER", "1")
    status, out, err = sample(capsys, tmp_path / "one", "--limit", "prose=4")
    assert out.count("processed=") == 3
    status, _, err = sample(capsys, tmp_path / "one", "--limit", "poems=4")
    assert (status, "--limit poems=...: no such source" in err) == (2, True)


def test_shipped_manifests() -> None:
    from nested_jax.data.manifest import load_manifest

    keys = {"RW", "WIKI", "C4", "RPJ", "CODE"}
    for spec in ("sample.py:some/root", "full.py"):
        manifest = load_manifest(str(MANIFESTS / spec))
        assert {source.env_key for source in manifest.sources} == keys
        assert all(source.license and source.limit for source in manifest.sources)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "raw.jsonl"
    rows = [{"body": synthetic_source(i) + "# 2 * 3\n"} for i in range(80)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_command_by_command(
    capsys: pytest.CaptureFixture[str], corpus: Path, tmp_path: Path
) -> None:
    kept, model, out = tmp_path / "kept.jsonl", tmp_path / "tok", tmp_path / "shards/code"
    source = ("--dataset", corpus, "--text-column", "body", "--rules", "code", "--max-records", 60)
    assert run(capsys, "filter", *source, "--output-path", kept)[0] == 0
    flags = ("--vocab-size", 500, "--symbols", "mul_tokens", "--log-file", tmp_path / "log.json")
    trained = run(capsys, "tokenizer", "--dataset", kept, "--output-dir", model, *flags)
    assert trained[0] == 0
    log = json.loads((tmp_path / "log.json").read_text())
    assert log["datasets"] == [{"name": "corpus", "dataset": str(kept), "samples": 60}]

    status, shown, _ = run(
        capsys, "shard", "--dataset", kept, "--tokenizer-path", model, "--output-dir", out,
        "--condition", "mul_tokens", "--held-out", 0.1,
    )  # fmt: skip
    assert status == 0
    assert json.loads(shown[shown.index("[\n") :])[0]["records"] == 60
    manifest = tmp_path / "m.py"
    manifest.write_text(
        "def get_manifest(arg=None):\n"
        "    return {'name': 'm', 'sources': [{'name': 'code', 'dataset': 'x', 'weight': 2.0}]}\n"
    )
    target = tmp_path / "mixture.json"
    flags = ("--shards", tmp_path / "shards", "--output", target)
    assert run(capsys, "mixture", manifest, *flags)[0] == 0
    status, shown, _ = run(
        capsys, "validate", "--manifest", target, "--output", tmp_path / "v.json"
    )
    assert status == 0
    assert json.loads((tmp_path / "v.json").read_text())["sources"][0]["documents"] == 60


def test_check_and_coverage(
    capsys: pytest.CaptureFixture[str], corpus: Path, tmp_path: Path
) -> None:
    model = tmp_path / "tok"
    source = ("--dataset", corpus, "--text-column", "body")
    run(capsys, "tokenizer", *source, "--output-dir", model, "--vocab-size", 400)
    status, shown, _ = run(
        capsys, "check", "--tokenizer-path", model, "--metadata-json", tmp_path / "meta.json"
    )
    sha256 = shown.split()[0]
    assert json.loads((tmp_path / "meta.json").read_text())["sha256"] == sha256
    check = ("check", "--tokenizer-path", model, "--quiet", "--expected-sha256")
    assert run(capsys, *check, sha256) == (0, "", "")
    assert run(capsys, *check, "0" * 64)[0] == 2

    text = tmp_path / "sample.txt"
    text.write_text("alpha beta gamma\n\nalpha beta zzzzqqqq\nnever read\n")
    cover = ("coverage", "--tokenizer-path", model, "--sample-file", text, "--max-lines", 3)
    status, shown, _ = run(capsys, *cover, "--output", tmp_path / "base.json")
    report = json.loads(shown)
    assert (report["lines_processed"], report["total_words"]) == (3, 6)
    assert report["pct_single_token_words"] == pytest.approx(5 / 6)
    assert report["avg_chars_per_word"] == pytest.approx((5 + 4 + 5 + 5 + 4 + 8) / 6)
    assert report["avg_tokens_per_word"] == pytest.approx(report["total_tokens"] / 6)
    assert run(capsys, *cover, "--baseline", tmp_path / "base.json")[0] == 0
    text.write_text("qqqq zzzz wwww\n")
    status, shown, _ = run(capsys, *cover, "--baseline", tmp_path / "base.json")
    assert status == 2
    assert len(json.loads(shown)["violations"]) == 3


def test_inject_and_back(capsys: pytest.CaptureFixture[str], corpus: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there.jsonl", tmp_path / "back.jsonl"
    flags = ("--text-column", "body", "--condition", "mul_tokens")
    _, shown, _ = run(capsys, "inject", "--input", corpus, "--output", there, *flags)
    assert json.loads(shown)["rewritten"] == 80
    run(capsys, "inject", "--input", there, "--output", back, *flags, "--restore")
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in (corpus, back)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("filter", "--dataset", "absent", "--output-path", "out"),
        ("shard", "--dataset", "absent", "--tokenizer-path", "absent", "--output-dir", "out"),
        ("tokenizer", "--manifest", "absent.py", "--output-dir", "out"),
        ("validate", "--manifest", "absent"),
        ("stats", "absent"),
        ("mixture", "absent.py", "--shards", "absent"),
        ("copy", "absent", "target"),
        ("sample", "--limit", "some", "--out", "out"),
        ("filter", "--dataset", "x", "--min-chars", "few", "--output-path", "out"),
    ],
)
def test_bad_input_is_status_2(
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert err.startswith("error: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: python -m nested_jax.data" in capsys.readouterr().out


def test_copies_are_verified(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    sample(capsys, tmp_path / "out")
    source = tmp_path / "out/shards/library"
    assert run(capsys, "copy", source, "memory://bucket/library")[0] == 0
    assert run(capsys, "copy", "memory://bucket/library", tmp_path / "back")[0] == 0
    for path in (tmp_path / "back").iterdir():
        assert path.read_bytes() == (source / path.name).read_bytes()
    next(source.glob("*train*.bin")).write_bytes(b"short")
    assert run(capsys, "copy", source, tmp_path / "bad")[0] == 2
    assert not (tmp_path / "bad").exists()
