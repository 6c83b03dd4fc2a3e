"""Release bundles: what was released is what was trained, and a changed byte is found."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from doubles import tokenizer
from helpers import assert_equal

from eval.__main__ import main
from eval.core import bundle
from eval.core.subject import Subject, load_subject
from nested_jax.config import Config, from_config_dict
from nested_jax.data.tokenizers.tokenizer import train_tokenizer
from nested_jax.models.lm import build_model
from nested_jax.train.checkpoint import Checkpoints, load_checkpoint
from nested_jax.train.fits import run_meta
from nested_jax.train.integrity import seal, unseal
from nested_jax.train.state import TrainState

# Orbax leaves futures that are collected when they please; see tests/train/test_checkpoint.py.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
STEP = 3
MISSING = ("--allow-missing", "all")


def config() -> Config:
    model = {"vocab_size": 300, "dim": 8, "layers": 1, "heads": 2, "mlp_hidden": 12, "max_len": 32}
    return from_config_dict({"model": model})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with a checkpoint that nobody trained."""
    workdir, cfg = tmp_path_factory.mktemp("release") / "tiny", config()
    params = jax.jit(build_model(cfg.model).init)(jax.random.key(0))
    opt = {"m": jax.tree.map(jnp.ones_like, params)}
    checkpoints = Checkpoints(workdir, cfg.train, print)
    state = TrainState(jnp.int32(STEP), params, opt)
    checkpoints.save(state, {}, run_meta(cfg, STEP, {"tokenizer": tokenizer().hash}))
    checkpoints.close()
    (workdir / "tokenizer.model").write_bytes(tokenizer().model)
    (workdir / "config.json").write_text("{}")
    (workdir / "summary.json").write_text(json.dumps({"valid_loss": 1.25}))
    return workdir


def write_result(file: Path, subject: Subject) -> Path:
    found = {"task": "zeroshot", "subject": subject.describe(), "metrics": {"piqa": {"acc": 0.5}}}
    file.write_text(json.dumps({**found, "seconds": 1.0, "device": "1 x cpu"}))
    return file


@pytest.fixture(scope="module")
def released(run: Path) -> Path:
    result, out = write_result(run.parent / "zs.json", load_subject(run)), run.parent / "bundle"
    words = ["--results", str(result), "--out", str(out), "--name", "tiny-1", *MISSING]
    assert main(["release", "--checkpoint", str(run), *words]) == 0
    return out


def test_a_bundle_is_the_model_that_was_trained(run: Path, released: Path) -> None:
    before, after = load_subject(run), load_subject(released)
    assert_equal(load_checkpoint(released)[0], load_checkpoint(run)[0])
    assert after.checkpoint_sha256 == before.checkpoint_sha256
    assert (after.name, after.step, after.tokenizer.hash) == ("tiny-1", STEP, tokenizer().hash)
    assert load_subject(released / "checkpoints" / str(STEP)).name == "tiny-1"
    assert not (released / "checkpoints" / str(STEP) / "opt").exists()
    report = (released / "report.md").read_text()
    assert "| piqa | 0.5 |" in report
    assert "| valid_loss | 1.25 |" in report
    kept = json.loads((released / "results/zs.json").read_text())
    assert kept["subject"]["checkpoint"] == f"checkpoints/{STEP}"


def test_the_hash_of_a_checkpoint_is_of_names_and_contents_in_order(tmp_path: Path) -> None:
    for name, content in (("b", b"2"), ("a/c", b"1")):
        (tmp_path / "params" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "params" / name).write_bytes(content)
    (tmp_path / "opt").write_bytes(b"no part of it")
    lines = ((name, hashlib.sha256(x).hexdigest()) for name, x in (("a/c", b"1"), ("b", b"2")))
    wanted = hashlib.sha256("".join(f"{n}\0{digest}\n" for n, digest in lines).encode())
    assert bundle.checkpoint_hash(tmp_path) == wanted.hexdigest()


def test_resumable_keeps_the_optimizer(run: Path, tmp_path: Path) -> None:
    words = ["--out", str(tmp_path / "all"), "--resumable", *MISSING]
    assert main(["release", "--checkpoint", str(run), *words]) == 0
    assert (tmp_path / f"all/checkpoints/{STEP}/opt").is_dir()
    assert bundle.verify(tmp_path / "all")["resumable"]


def test_a_changed_byte_is_found_in_every_file(released: Path) -> None:
    files = [file for file in sorted(released.rglob("*")) if file.is_file()]
    assert {"report.md", "config.json", "zs.json", "tokenizer.model"} < {f.name for f in files}
    for file in files:
        before = file.read_bytes()
        if not before:
            continue
        middle = len(before) // 2
        file.write_bytes(before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :])
        with pytest.raises(ValueError, match=file.name):
            bundle.verify(released)
        file.write_bytes(before)
    bundle.verify(released)


def test_a_damaged_bundle_ends_with_2(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(released, tmp_path / "b")
    words = ["zeroshot", "--checkpoint", str(tmp_path / "b")]
    (tmp_path / "b/checkpoints/4").mkdir()
    (tmp_path / "b/checkpoints/4/params").write_text("")
    assert main(words) == 2
    assert "checkpoints/4/params': is not in the manifest" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "b/checkpoints/4")
    (tmp_path / "b/report.md").unlink()
    assert main(words) == 2
    assert "report.md': is missing" in capsys.readouterr().err
    manifest = tmp_path / "b/manifest.json"
    body = unseal(json.loads(manifest.read_text()))
    manifest.write_text(json.dumps(seal({**body, "format": 9})))
    assert main(words) == 2
    assert "=9: wants format 1" in capsys.readouterr().err


def test_what_cannot_be_released(
    run: Path, released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["release", "--checkpoint", str(run), "--out"]
    assert main([*words, str(released)]) == 2
    assert "exists; wants the path of a new folder" in capsys.readouterr().err
    foreign = write_result(tmp_path / "other.json", load_subject(run))
    found = json.loads(foreign.read_text())
    found["subject"]["checkpoint_sha256"] = "0" * 64
    foreign.write_text(json.dumps(found))
    assert main([*words, str(tmp_path / "x"), "--results", str(foreign)]) == 2
    assert "is of tiny, parameters 000000000000; this checkpoint is" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "x"), "--results", str(run / "checkpoints")]) == 2
    assert "a folder without .json files" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "x"), "--results", str(run / "config.json")]) == 2
    assert "is no result of a task" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_release_has_everything_or_names_what_it_lacks(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = {"validation.json": {"content_overlap": []}}
    reports["coverage.json"] = {"avg_tokens_per_word": [2]}
    for name, content in reports.items():
        (tmp_path / name).write_text(json.dumps(content))
    files = [str(tmp_path / name) for name in reports]
    words = ["release", "--checkpoint", str(run), "--out", str(tmp_path / "r")]
    assert main(words) == 2
    said = capsys.readouterr().err
    for name in ("validation", "coverage", "data_commit", "tasks", "plots"):
        assert f"{name} (" in said
    assert "checkpoint (" not in said
    assert "preset smoke, without zeroshot, perplexity, books, niah, passkey" in said
    assert main([*words, "--reports", *files, "--allow-missing", "plots,data_commit"]) == 2
    assert "lacks tasks (" in capsys.readouterr().err
    assert main([*words, "--allow-missing", "plot"]) == 2
    assert "--allow-missing='plot': wants all, or some of validation" in capsys.readouterr().err
    assert main([*words, "--reports", str(run / "summary.json"), *MISSING]) == 2
    assert "is no report of data validate or coverage" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    assert not (tmp_path / "r.partial").exists()
    allowed = ["--allow-missing", "plots,data_commit,tasks"]
    assert main([*words, "--reports", *files, *allowed]) == 0
    made = bundle.verify(tmp_path / "r")
    assert made["missing"] == ["data_commit", "tasks", "plots"]
    assert json.loads((tmp_path / "r/data/validation.json").read_text()) == {"content_overlap": []}
    report = (tmp_path / "r/report.md").read_text()
    assert "- [x] export" in report
    assert "- [ ] tasks" in report


def test_another_tokenizer_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    other = train_tokenizer(["a foreign text of other words. " * 40], 290)
    (tmp_path / "run/tokenizer.model").write_bytes(other.model)
    with pytest.raises(ValueError, match=r"tokenizer.model'.*this checkpoint was trained with"):
        load_subject(tmp_path / "run")
