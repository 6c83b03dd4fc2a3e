"""What transformers makes of our folders, and what we make of its own. Needs it, and torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hub.test_folders import MODELS, SYMBOL, layouts, run_of, runs  # noqa: F401  (a fixture)

from nested_jax.data.tokenizers.base import Tokenizer
from nested_jax.hub import export
from nested_jax.hub.__main__ import main as hub
from nested_jax.hub.layouts import LAYOUTS, layout_of
from nested_jax.hub.tensors import INDEX, read_folder
from nested_jax.hub.tokenizer_files import write_tokenizer
from nested_jax.models.lm import build_model
from nested_jax.train.opened import open_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@layouts
def test_our_folder_is_read_as_our_model(
    layout: str,
    runs: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Equal logits, equal greedy text by their `generate`, equal ids; symbols survive decoding."""
    run, out = run_of(runs, layout), tmp_path / "out"
    command = ["--checkpoint", str(run), "--layout", layout, "--out", str(out), "--check"]
    assert export.main(command) == 0
    said = capsys.readouterr().out
    for what in (
        "logits, transformers",
        "greedy text, transformers",
        "generate()",
        "AutoTokenizer",
    ):
        assert f"{what}: equal" in said, said
    loaded = transformers.AutoTokenizer.from_pretrained(out)
    ours = open_checkpoint(run).text_tokenizer
    assert (loaded.eos_token_id, loaded.pad_token_id) == (ours.eos_id, ours.pad_id)
    text = f"a {SYMBOL[layout]} b"
    ids = ours.encode(text)
    assert loaded.encode(text, add_special_tokens=False) == ids
    assert loaded.decode([*ids, ours.eos_id], skip_special_tokens=True) == text


@layouts
def test_their_random_model_is_ours_and_theirs_again(
    layout: str,
    runs: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Imported from several files, equal logits; exported, equal tensors, byte by byte in GPT-2."""
    opened = open_checkpoint(run_of(runs, layout))
    theirs = random_model(layout, opened.text_tokenizer)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    assert (tmp_path / "theirs" / INDEX).is_file()
    assert write_tokenizer(tmp_path / "theirs", opened.text_tokenizer, 48)
    if layout != "gpt2":  # whose tokenizer.json is no byte-level BPE: ours lies beside it
        (tmp_path / "theirs" / "tokenizer.model").write_bytes(opened.text_tokenizer.model)
    assert hub(["import", str(tmp_path / "theirs"), "--workdir", str(tmp_path / "run")]) == 0
    again = open_checkpoint(tmp_path / "run")
    tokens = np.random.default_rng(0).integers(0, 470, (2, 31))
    with torch.no_grad():
        want = theirs(torch.tensor(tokens)).logits.numpy()
    assert_same_logits(again.cfg.model, again.params, tokens, want)
    export.export(tmp_path / "run", tmp_path / "ours", layout)
    before, after = (read_folder(tmp_path / name)[0] for name in ("theirs", "ours"))
    assert before.keys() == after.keys()
    for name, x in before.items():
        np.testing.assert_allclose(
            after[name], x, rtol=0 if layout == "gpt2" else 3e-7, err_msg=name
        )


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_other_layouts_of_theirs_are_ours(kind: str, tmp_path: Path) -> None:
    """Qwen2, whose biases Llama has not, and a plain Llama with a tied table: equal logits."""
    size = {"vocab_size": 480, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48}
    make = {"qwen2": transformers.Qwen2Config, "llama": transformers.LlamaConfig}[kind]
    theirs = with_noise(make(**size, **heads, tie_word_embeddings=kind == "llama"))
    theirs.save_pretrained(tmp_path)
    tensors, config = read_folder(tmp_path)
    params, cfg = layout_of(config).read(tensors, config)
    assert cfg.qkv_bias == (kind == "qwen2")
    tokens = np.random.default_rng(0).integers(0, 470, (2, 31))
    with torch.no_grad():
        want = theirs(torch.tensor(tokens)).logits.numpy()
    assert_same_logits(cfg, jax.tree.map(jnp.asarray, params), tokens, want)


def assert_same_logits(cfg: Any, params: Any, tokens: np.ndarray, want: np.ndarray) -> None:
    model = build_model(cfg)
    state = model.init_state(params, len(tokens), capacity=tokens.shape[1])
    with jax.default_matmul_precision("highest"):
        got = jax.jit(model.apply)(params, state, jnp.asarray(tokens, jnp.int32))[1]
    assert np.abs(np.asarray(got) - want).max() < 1e-4 * want.std()


def random_model(layout: str, tokenizer: Tokenizer) -> Any:
    """Return a model of transformers, all of whose parameters are random, biases included."""
    kind = {"gpt2": transformers.GPT2Config, "llama": transformers.LlamaConfig}[layout]
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_id") for n in ("bos", "eos", "pad")}
    return with_noise(kind(**LAYOUTS[layout].config(MODELS[layout]), **ids))


def with_noise(config: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.endswith("o_proj.bias"):  # which ours has not
                p.add_(0.3 * torch.randn_like(p))
    return model.eval()
