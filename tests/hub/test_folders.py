"""Runs become folders of Hugging Face and folders become runs, by the commands."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from helpers import assert_equal

from nested_jax.config import Config, DataConfig, ModelConfig
from nested_jax.data.tokenizers.base import Tokenizer
from nested_jax.data.tokenizers.byte_bpe import CHARACTERS, END, train_byte_bpe
from nested_jax.data.tokenizers.tokenizer import train_tokenizer
from nested_jax.generate import main as generate
from nested_jax.hub import export
from nested_jax.hub.__main__ import main as hub
from nested_jax.hub.imports import open_folder
from nested_jax.hub.tensors import INDEX, WEIGHTS, read_folder
from nested_jax.hub.workdir import write_workdir
from nested_jax.models.lm import build_model
from nested_jax.train.opened import open_checkpoint

numpy = pytest.importorskip("safetensors.numpy")
ROOT = Path(__file__).resolve().parents[2]
TEXTS = [(ROOT / name).read_text() for name in ("CONTRIBUTING.md", "LICENSE", "launch.py")]
SIZE = {"vocab_size": 480, "dim": 20, "layers": 2, "heads": 5, "mlp_hidden": 28, "max_len": 48}
MODELS = {
    "gpt2": ModelConfig(block="gpt2", norm_eps=1e-5, **SIZE),
    "llama": ModelConfig(
        block="transformer",
        kv_heads=1,
        rope_theta=500.0,
        rope_scaling=(8.0, 1.0, 4.0, 16.0),  # one frequency is mixed, the other divided
        qkv_bias=True,
        **SIZE,
    ),
}
SYMBOL = {"gpt2": "<MUL_6_9_54>", "llama": "<mul_1_1>"}  # an added token
layouts = pytest.mark.parametrize("layout", MODELS)


def tokenizer_for(layout: str) -> Tokenizer:
    if layout != "gpt2":
        return train_tokenizer(TEXTS, 470, symbols=(SYMBOL[layout],))
    pytest.importorskip("tokenizers.models")
    return train_byte_bpe(TEXTS, 470, symbols=(SYMBOL[layout],))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A workdir of each layout; all parameters are random, norms and biases included."""
    found = {}
    for layout, model in MODELS.items():
        try:
            tokenizer = tokenizer_for(layout)
        except pytest.skip.Exception:
            continue
        params = jax.jit(build_model(model).init)(jax.random.key(0))
        rng = np.random.default_rng(1)
        noisy = jax.tree.map(partial(add_noise, rng), params)
        data = DataConfig(tokenizer=tokenizer.kind, seq_len=48)  # type: ignore[arg-type]
        workdir = tmp_path_factory.mktemp(layout) / "run"
        write_workdir(workdir, noisy, Config(model=model, data=data), tokenizer, "a test")
        found[layout] = workdir
    return found


def add_noise(rng: np.random.Generator, x: Any) -> Any:
    return x + 0.3 * rng.standard_normal(x.shape, np.float32)


def run_of(runs: dict[str, Path], layout: str) -> Path:
    if layout not in runs:
        pytest.skip("`tokenizers` is not installed")
    return runs[layout]


@layouts
def test_there_and_back_by_the_commands(
    layout: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exported, checked, imported, exported: the same parameters, the same bytes, a run to use."""
    run, first, second = run_of(runs, layout), tmp_path / "first", tmp_path / "second"
    command = ["--checkpoint", str(run), "--layout", layout, "--out"]
    assert export.main([*command, str(first), "--check"]) == 0
    said = capsys.readouterr().out
    for what in ("tensors", "logits, numpy", "greedy text, numpy"):
        assert f"{what}: equal" in said
    assert hub(["import", str(first), "--workdir", str(tmp_path / "again")]) == 0
    again, before = open_checkpoint(tmp_path / "again"), open_checkpoint(run)
    assert again.text_tokenizer.hash == before.text_tokenizer.hash
    if layout == "gpt2":
        assert_equal(again.params, before.params)
    command[1] = str(tmp_path / "again")
    assert export.main([*command, str(second)]) == 0
    assert (first / "config.json").read_text() == (second / "config.json").read_text()
    got, want = (numpy.load_file(folder / WEIGHTS) for folder in (second, first))
    assert got.keys() == want.keys()
    for name, x in want.items():
        np.testing.assert_allclose(got[name], x, rtol=0 if layout == "gpt2" else 3e-7, err_msg=name)
    prompt = ["--prompt", "def main(", "--max-tokens", "4", "--temperature", "0"]
    assert generate(["--checkpoint", str(tmp_path / "again"), *prompt]) == 0


@layouts
def test_the_ids_that_end_a_text_are_ours(
    layout: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    opened = export.export(run_of(runs, layout), out, layout)
    tokenizer = opened.text_tokenizer
    config = json.loads((out / "config.json").read_text())
    generation = json.loads((out / "generation_config.json").read_text())
    for name in ("bos", "eos", "pad"):
        want = getattr(tokenizer, f"{name}_id")
        assert config[f"{name}_token_id"] == generation[f"{name}_token_id"] == want
    never = generation["suppress_tokens"]
    assert set(range(tokenizer.vocab_size, 480)) <= set(never)
    assert tokenizer.eos_id not in never
    assert all(not tokenizer.bytes_of(t) for t in never if t < tokenizer.vocab_size)
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == tokenizer.piece(tokenizer.eos_id)
    assert settings["model_max_length"] == 48


@layouts
def test_tokenizer_json_gives_the_same_ids(
    layout: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("tokenizers.models")
    from tokenizers import Tokenizer as Library

    opened = export.export(run_of(runs, layout), tmp_path / "out", layout)
    tokenizer = opened.text_tokenizer
    read = Library.from_file(str(tmp_path / "out" / "tokenizer.json"))
    symbol = SYMBOL[layout]
    odd = ["", "  x\t\n\n é日本語\u00a0😀", f"is {symbol}, {symbol}{symbol} 12345"]
    for text in (*TEXTS, *odd):
        ids = tokenizer.encode(text)
        assert read.encode(text, add_special_tokens=False).ids == ids
        assert read.decode(ids) == text
    assert symbol in read.decode(tokenizer.encode(odd[-1]))


@layouts
def test_an_exporter_that_is_wrong_ends_with_1(
    layout: str,
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The square output matrix of attention transposed: it fits, and the model is another one."""
    right = export.LAYOUTS[layout]

    def write(params: Any, model: ModelConfig) -> Any:
        tensors = right.write(params, model)
        wrong = ("attn.c_proj.weight", "self_attn.o_proj.weight")
        return {n: x.T.copy() if n.endswith(wrong) else x for n, x in tensors.items()}

    monkeypatch.setitem(export.LAYOUTS, layout, right._replace(write=write))
    command = ["--checkpoint", str(run_of(runs, layout)), "--layout", layout, "--check"]
    assert export.main([*command, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "tensors: DIFFERENT" in said
    assert "logits, numpy: DIFFERENT" in said


# --- folders from elsewhere ----------------------------------------------------------------------


@pytest.fixture
def folder(runs: dict[str, Path], tmp_path: Path) -> Path:
    export.export(run_of(runs, "gpt2"), tmp_path / "folder", "gpt2")
    return tmp_path / "folder"


def test_a_vocabulary_may_lack_rare_bytes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As SmolLM2's: a character with such a byte is U+FFFD, and the import says so."""
    _, _, before = open_folder(folder)
    (folder / "tokenizer.model").unlink()
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    vocab = data["model"]["vocab"]
    for byte in (0xC0, 0xF1, 0x05):
        del vocab[CHARACTERS[byte]]
    file.write_text(json.dumps(data))
    workdir = folder.parent / "run"
    assert hub(["import", str(folder), "--workdir", str(workdir)]) == 0
    assert "no token for the bytes 05 f1: characters" in capsys.readouterr().out
    tokenizer = open_checkpoint(workdir).text_tokenizer
    assert tokenizer.encode_batch(TEXTS) == before.encode_batch(TEXTS)
    odd = "a \x05 and \U00046131, \U0001f600"
    assert tokenizer.decode(tokenizer.encode(odd)) == "a \ufffd and \ufffd, \U0001f600"
    del vocab[CHARACTERS[ord("e")]]
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"model\.vocab=\[101\]: has no token for these bytes"):
        open_folder(folder)


def test_a_tokenizer_with_normal_form_c_is_read_without_it(folder: Path) -> None:
    """As Qwen2's: text in this form gets the ids of the library, other text is given back."""
    pytest.importorskip("tokenizers.models")
    from tokenizers import Tokenizer as Library

    (folder / "tokenizer.model").unlink()
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "normalizer": {"type": "NFC"}}))
    _, _, tokenizer = open_folder(folder)
    whole, apart = "na\u00efve caf\u00e9", "nai\u0308ve cafe\u0301"
    library = Library.from_file(str(file))
    assert tokenizer.encode(whole) == library.encode(whole, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode(apart)) == apart


def test_sharded_half_precision_files_are_read(folder: Path) -> None:
    """Files by an index, bfloat16, names without prefix: what the hub has."""
    want, _ = read_folder(folder)
    (folder / WEIGHTS).unlink()
    names = sorted(want)
    parts = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    for file, chosen in parts.items():
        short = {n.removeprefix("transformer."): want[n].astype(ml_dtypes.bfloat16) for n in chosen}
        save_bfloat16(short, folder / file)
    places = {n.removeprefix("transformer."): f for f, chosen in parts.items() for n in chosen}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    params, model, _ = open_folder(folder)
    assert model == dataclasses.replace(MODELS["gpt2"], size="gpt2")
    wte = want["transformer.wte.weight"].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(params["embed"], wte)
    places["h.0.attn.c_attn.weight"] = "c.safetensors"
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ValueError, match=r"has no c\.safetensors"):
        read_folder(folder)


def save_bfloat16(tensors: dict[str, Any], file: Path) -> None:
    """Write safetensors by hand: the library's numpy form has no bfloat16."""
    said, data = {}, b""
    for name, x in tensors.items():
        end = len(data) + x.nbytes
        said[name] = {"dtype": "BF16", "shape": x.shape, "data_offsets": [len(data), end]}
        data += x.tobytes()
    head = json.dumps(said).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + data)


def test_vocabulary_and_merges_alone_are_a_tokenizer(folder: Path) -> None:
    """As old folders of GPT-2 have it; the end of a text is the last id of the vocabulary."""
    _, _, before = open_folder(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *model["merges"], ""]))
    for name in ("tokenizer.model", "tokenizer.json"):
        (folder / name).unlink()
    _, _, tokenizer = open_folder(folder)
    assert tokenizer.piece(tokenizer.eos_id) == END
    assert tokenizer.encode_batch(TEXTS) == before.encode_batch(TEXTS)
    (folder / "added_tokens.json").write_text("{}")
    with pytest.raises(ValueError, match="has no tokenizer: wants"):
        open_folder(folder)


def test_a_tokenizer_of_hugging_face_is_taken_as_it_is(folder: Path) -> None:
    _, _, before = open_folder(folder)
    (folder / "tokenizer.model").unlink()
    _, _, tokenizer = open_folder(folder)
    assert tokenizer.encode_batch(TEXTS) == before.encode_batch(TEXTS)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (before.eos_id, before.pad_id)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 50256}))
    with pytest.raises(ValueError, match="eos_token_id=50256: is no id of the tokenizer"):
        open_folder(folder)
    (folder / "config.json").write_text(json.dumps(config))
    data = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(data | {"normalizer": {"type": "NFKC"}}))
    with pytest.raises(ValueError, match="normalizer='NFKC': changes the text"):
        open_folder(folder)


def drop(tensors: dict[str, Any]) -> None:
    del tensors["transformer.h.1.mlp.c_fc.bias"]


def add(tensors: dict[str, Any]) -> None:
    tensors["transformer.h.2.ln_1.bias"] = tensors["transformer.ln_f.bias"]


def cut(tensors: dict[str, Any]) -> None:
    tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"][:40]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "tensor='h.1.mlp.c_fc.bias': is not among the 27 of the files"),
        (add, "tensor='h.2.ln_1.bias': has no place in the model"),
        (cut, "tensor='wpe.weight': has shape [40, 20], config.json says [48, 20]"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_tensors_that_do_not_fit_are_named(
    change: Any, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = numpy.load_file(folder / WEIGHTS)
    change(tensors)
    numpy.save_file(tensors, folder / WEIGHTS)
    assert hub(["import", str(folder), "--workdir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (WEIGHTS, "no tensors", "is no safetensors file"),
        ("config.json", "{", "config.json': is not JSON"),
        (
            "config.json",
            '{"model_type": "bloom"}',
            "model_type='bloom': wants one of gpt2, llama, qwen2",
        ),
        ("config.json", '{"model_type": "gpt2"}', "vocab_size=None: config.json has to say it"),
    ],
)
def test_folders_that_are_no_model(
    name: str,
    text: str,
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / name).write_text(text)
    assert hub(["import", str(folder), "--workdir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    (folder / name).unlink()
    assert hub(["import", str(folder), "--workdir", str(tmp_path / "run")]) == 2
    assert f"has no {name}" in capsys.readouterr().err


def test_nothing_that_exists_is_replaced(
    folder: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert hub(["import", str(folder), "--workdir", str(runs["gpt2"])]) == 2
    assert "exists; wants a new folder" in capsys.readouterr().err
    command = ["--checkpoint", str(runs["gpt2"]), "--out"]
    assert export.main([*command, str(folder)]) == 2
    assert export.main([*command, str(folder / "new"), "--check"]) == 2
    assert "--check='native': wants --layout gpt2 or llama" in capsys.readouterr().err
    assert export.main([*command, str(folder / "new"), "--layout", "llama"]) == 2
    assert "model.block='gpt2'" in capsys.readouterr().err
    assert not (folder / "new").exists()


def test_a_prompt_longer_than_the_positions_is_refused(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(runs, "gpt2")
    command = ["--checkpoint", str(run), "--prompt", "word " * 60, "--max-tokens", "3"]
    assert generate(command) == 2
    assert "model.max_len=48 positions" in capsys.readouterr().err
