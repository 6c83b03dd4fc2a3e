"""What is read once, kept in a file and used later; rates that a text chooses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import assert_close, assert_equal
from tiny import synthetic_text, tiny_config, write_data

from eval.core.subject import load_subject
from nested_jax import generate, read
from nested_jax.config import TeachConfig
from nested_jax.data.tokenizers.tokenizer import load_tokenizer
from nested_jax.hub.__main__ import main
from nested_jax.hub.workdir import write_workdir
from nested_jax.models.lm import build_model
from nested_jax.models.memories import load_memory, pick
from nested_jax.teach import flush, teach
from nested_jax.train.checkpoint import load_checkpoint
from nested_jax.train.opened import open_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with memories, of other parameters, and two texts."""
    folder = tmp_path_factory.mktemp("reading")
    data = write_data(folder / "data")
    cfg = tiny_config(data, {"model.window": 8})
    tokenizer = data / "tokenizer.model"
    for seed in (0, 1):
        params = jax.jit(build_model(cfg.model).init)(jax.random.key(seed))
        write_workdir(folder / f"base-{seed}", params, cfg, load_tokenizer(tokenizer), "a test", 7)
        command = ["retrofit", "--checkpoint", f"{folder}/base-{seed}", "--periods", "8,16"]
        assert main([*command, "--workdir", f"{folder}/run-{seed}"]) == 0
    (folder / "texts").mkdir()
    for i in (0, 1):
        text = "\n".join(synthetic_text(n) for n in range(5 * i, 5 * i + 3 + i))
        (folder / "texts" / f"{i}.txt").write_text(text)
    return folder


def read_files(folder: Path, state: Path, *more: str, run: int = 0) -> int:
    flags = ["--checkpoint", f"{folder}/run-{run}", "--files", f"{folder}/texts", "--state"]
    return read.main([*flags, str(state), *more])


@pytest.mark.slow
def test_readers_of_a_batch_learn_what_each_would_alone(folder: Path, tmp_path: Path) -> None:
    assert read_files(folder, tmp_path / "each.npz", "--each") == 0
    opened = open_checkpoint(folder / "run-0")
    model = build_model(opened.cfg.model)
    memory, about = load_memory(
        tmp_path / "each.npz", model, opened.params, opened.named, "--state"
    )
    assert len(about["readers"]) == 2
    for i, name in enumerate(about["readers"]):
        text = (folder / "texts" / f"{i}.txt").read_text()
        tokenizer = opened.text_tokenizer
        tokens = np.asarray([[tokenizer.eos_id, *tokenizer.encode(text)]], np.int32)
        state = model.init_state(opened.params, 1)
        teaching = replace(opened.cfg.teach, meta_gradient="stop")
        state, _ = teach(model, opened.params, state, tokens[:, :-1], tokens[:, 1:], teaching)
        state = flush(model, opened.params, state, teaching)
        mine = pick(memory, about, name, "--reader")
        for got, want in zip(mine.fast, state.fast, strict=True):
            assert_close(got.delta, want.delta, rtol=1e-4, atol=1e-7)
            assert got.writes_B.tolist() == want.writes_B.tolist()


@pytest.mark.slow
def test_a_memory_goes_on_and_serves_a_generator_and_an_evaluation(
    folder: Path, tmp_path: Path, capsys: Any
) -> None:
    state = tmp_path / "memory.npz"
    assert read_files(folder, state) == 0
    assert "bits per token" in capsys.readouterr().out
    assert read_files(folder, state) == 2
    assert "exists; wants a new file" in capsys.readouterr().err
    opened = open_checkpoint(folder / "run-0")
    model = build_model(opened.cfg.model)
    first, _ = load_memory(state, model, opened.params, opened.named, "--state")
    assert read_files(folder, state, "--from", str(state)) == 0
    second, _ = load_memory(state, model, opened.params, opened.named, "--state")
    assert second.fast[0].writes_B[0] == 2 * first.fast[0].writes_B[0]
    capsys.readouterr()
    write = ["--checkpoint", f"{folder}/run-0", "--prompt", "alpha = ", "--max-tokens", "9"]
    texts = []
    for more in ([], ["--state", str(state)], ["--state", str(state), "--adapt"]):
        assert generate.main([*write, "--temperature", "0", *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] != texts[1]
    base = load_subject(folder / "run-0").scorer.rolling([list(range(9, 40))], 1)[0]
    subject = load_subject(folder / "run-0", state=state)
    assert not np.array_equal(subject.scorer.rolling([list(range(9, 40))], 1)[0], base)
    assert subject.describe()["state_sha256"]


def test_a_memory_of_another_model_is_refused(folder: Path, tmp_path: Path, capsys: Any) -> None:
    state = tmp_path / "memory.npz"
    assert read_files(folder, state) == 0
    write = ["--prompt", "a", "--max-tokens", "3", "--state"]
    assert generate.main(["--checkpoint", f"{folder}/run-1", *write, str(state)]) == 2
    assert "was learned with model" in capsys.readouterr().err
    (tmp_path / "other.npz").write_bytes(b"no memory")
    assert generate.main(["--checkpoint", f"{folder}/run-0", *write, f"{tmp_path}/other.npz"]) == 2
    assert "is no memory that" in capsys.readouterr().err
    assert read_files(folder, tmp_path / "new.npz", "--from", str(state), run=1) == 2
    short = folder / "short.txt"
    short.write_text("a b")
    flags = ["--files", str(short), "--state", f"{tmp_path}/new.npz"]
    assert read.main(["--checkpoint", f"{folder}/run-0", *flags]) == 2
    assert "wants at least a chunk of teach.chunk=8" in capsys.readouterr().err
    assert read.main(["--checkpoint", f"{folder}/base-0", *flags]) == 2
    assert "has no CMS levels" in capsys.readouterr().err
    assert not (tmp_path / "new.npz").exists()


def test_a_rate_that_diverges_is_named_and_nothing_is_kept(folder: Path) -> None:
    """Worse than a uniform guess, or not a number; a few tokens may be unlikely by chance."""
    params, cfg, _ = load_checkpoint(folder / "run-0")
    model = build_model(cfg.model)
    uniform = np.log(cfg.model.vocab_size)
    read.check_loss(model, np.full(64, uniform + 0.4), 64)
    read.check_loss(model, np.full(2, 3 * uniform), 2)
    for nats in (np.full(640, uniform + 1.0), np.asarray([np.nan] * 64)):
        with pytest.raises(ValueError, match=r"model.cms.inner_lr=\(0.01,\): diverges"):
            read.check_loss(model, nats, 64)
    broken = {**params, "norm": params["norm"] * np.nan}
    with pytest.raises(ValueError, match="nothing was kept"):
        read.read(model, broken, cfg, [np.arange(60, dtype=np.int32)])


@pytest.mark.slow
def test_a_calibration_is_written_into_the_checkpoint(folder: Path, capsys: Any) -> None:
    (folder / "many.txt").write_text("\n".join(synthetic_text(n) for n in range(60)))
    out = folder / "calibrated"
    retrofit = ["retrofit", "--checkpoint", f"{folder}/base-0", "--periods", "8,16"]
    assert main([*retrofit, "--workdir", str(out), "--fast-layers", "2"]) == 0
    before, cfg, _ = load_checkpoint(out)
    command = ["calibrate", "--checkpoint", str(out), "--text", f"{folder}/many.txt"]
    assert main([*command, "--length", "64", "--tokens", "512", "--minutes", "3"]) == 0
    said = capsys.readouterr().out
    for text in ("trial 2", "a second text", "rates x4"):
        assert text in said
    after, changed, _ = load_checkpoint(out)
    assert_equal(after, before)
    assert changed.model.cms.inner_lr != cfg.model.cms.inner_lr
    assert json.loads((out / "config.json").read_text())["model"]["cms"]["inner_lr"] == list(
        changed.model.cms.inner_lr
    )
    assert isinstance(changed.teach, TeachConfig)
