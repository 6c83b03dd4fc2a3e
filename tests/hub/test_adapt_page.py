"""The five commands of docs/adapt.md, on folders of Hugging Face's layouts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import jax
import pytest
from docs_commands import commands
from quick_compile import ROOT

from nested_jax import generate, read
from nested_jax.config import Config, DataConfig, ModelConfig
from nested_jax.data.tokenizers.byte_bpe import train_byte_bpe
from nested_jax.data.tokenizers.tokenizer import train_tokenizer
from nested_jax.hub import export
from nested_jax.hub.__main__ import main as hub
from nested_jax.hub.workdir import write_workdir
from nested_jax.models.lm import build_model
from nested_jax.train.checkpoint import load_checkpoint

MAINS = {"nested_jax.hub": hub, "nested_jax.read": read.main, "nested_jax.generate": generate.main}
SMALLER = {
    "calibrate": ["--tokens", "1024", "--length", "128", "--minutes", "0.05"],
    "nested_jax.read": ["--documents", "1"],
    "nested_jax.generate": ["--max-tokens", "8"],
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["gpt2", "llama"])
def test_the_commands_of_the_page_make_a_generator_that_adapts(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("safetensors.numpy")
    texts = [(ROOT / name).read_text() for name in ("CONTRIBUTING.md", "LICENSE", "launch.py")]
    if layout == "gpt2":
        pytest.importorskip("tokenizers.models")
    tokenizer = train_byte_bpe(texts, 470) if layout == "gpt2" else train_tokenizer(texts, 470)
    size = {"vocab_size": 480, "dim": 20, "layers": 2, "heads": 5, "mlp_hidden": 28}
    block = {"gpt2": "gpt2", "llama": "transformer"}[layout]
    model = ModelConfig(block=block, max_len=192, norm_eps=1e-5, **size)  # type: ignore[arg-type]
    data = DataConfig(tokenizer=tokenizer.kind, seq_len=128)  # type: ignore[arg-type]
    params = jax.jit(build_model(model).init)(jax.random.key(0))
    write_workdir(tmp_path / "ours", params, Config(model=model, data=data), tokenizer, "a test")
    monkeypatch.chdir(tmp_path)
    out = ["--out", "FOLDER", "--layout", layout]
    assert export.main(["--checkpoint", "ours", *out]) == 0
    page = (ROOT / "docs" / "adapt.md").read_text()
    five = [shlex.split(command)[2:] for command in commands(page)][:5]
    assert [words[0] for words in five].count("nested_jax.hub") == 3
    for module, *arguments in five:
        more = SMALLER.get(module, []) + SMALLER.get(arguments[0], [])
        capsys.readouterr()
        assert MAINS[module]([*arguments, *more]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.startswith("The return statement")
    before, after = (load_checkpoint(f"runs/{name}")[1].model for name in ("base", "reader"))
    assert before.block == block
    assert after.block == {"gpt2": "gpt2_cms", "transformer": "hope_attention"}[block]
