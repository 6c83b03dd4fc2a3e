"""Levels in the place of a trained model's MLPs: the same model until the first write."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_equal
from tiny import VOCAB, tiny_config, write_data

import nested_jax
from nested_jax.config import Config, MeshConfig, from_config_dict
from nested_jax.data.tokenizers.tokenizer import load_tokenizer
from nested_jax.hub.__main__ import main
from nested_jax.hub.retrofit import fast_layers, retrofit, retrofit_config
from nested_jax.hub.workdir import write_workdir
from nested_jax.models.decode import Sampling, generate
from nested_jax.models.lm import build_model
from nested_jax.models.state import reset
from nested_jax.sharding import batch_sharding, make_mesh, param_shardings
from nested_jax.train.opened import open_checkpoint
from nested_jax.train.trainer import train

LAYERS = 4
CFG = from_config_dict(
    {
        "model": {
            "vocab_size": 29,
            "dim": 12,
            "layers": LAYERS,
            "heads": 2,
            "window": 5,
            "mlp_hidden": 20,
        },
        "data": {"seq_len": 16},
    }
)
GPT2 = replace(CFG, model=replace(CFG.model, block="gpt2", window=0, max_len=40))
TEXT = jnp.asarray(np.random.default_rng(0).integers(0, 29, (2, 33)), jnp.int32)


def trained(cfg: Config) -> Any:
    """Parameters of which none is where it starts."""
    leaves, tree = jax.tree.flatten(jax.jit(build_model(cfg.model).init)(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, noise)


def logits(cfg: Config, params: Any, state: Any = None) -> Any:
    model = build_model(cfg.model)
    state = model.init_state(params, 2) if state is None else state
    return jax.jit(model.apply)(params, state, TEXT[:, :-1])[1]


def made(periods: str, layers: str, base: Config, **cms: Any) -> tuple[Config, Any]:
    cfg = retrofit_config(base, periods, layers)
    cfg = replace(cfg, model=replace(cfg.model, cms=replace(cfg.model.cms, **cms)))
    return cfg, retrofit(trained(base), base.model, cfg.model)


@pytest.mark.parametrize(
    ("base", "periods", "layers"),
    [
        pytest.param(CFG, "4", "1", marks=pytest.mark.slow),
        pytest.param(CFG, "4,8", "0,2", marks=pytest.mark.slow),
        pytest.param(CFG, "4,8,16", "-1", marks=pytest.mark.slow),
        (GPT2, "4", "1"),
        pytest.param(GPT2, "4,8", "-1", marks=pytest.mark.slow),
    ],
)
def test_the_model_is_the_same_until_it_writes_and_after_a_reset(
    base: Config, periods: str, layers: str
) -> None:
    cfg, params = made(periods, layers, base)
    model, before = build_model(cfg.model), logits(base, trained(base))
    state = model.init_state(params, 2)
    assert_equal(logits(cfg, params, state), before)
    step = jax.jit(partial(nested_jax.teach, model, cfg=cfg.teach))
    state, _ = step(params, state, TEXT[:, :-1], TEXT[:, 1:])
    for level, written in enumerate(state.fast):
        assert written.writes_B.tolist() == [32 // cfg.model.cms.periods[level]] * 2
        first = cfg.model.layers - cfg.model.fast_layers
        moved = [bool(jnp.any(written.delta.down[:, i])) for i in range(cfg.model.fast_layers)]
        chosen = cfg.teach.layers
        assert moved == [chosen is None or first + i in chosen for i in range(len(moved))]
    assert not np.array_equal(logits(cfg, params, state), before)
    assert_equal(logits(cfg, params, reset(state, jnp.ones(2, bool))), before)


def no_trust(levels: Any) -> Any:
    return [level._replace(trust=()) for level in levels]


@pytest.mark.slow
@pytest.mark.parametrize("base", [CFG, GPT2])
@pytest.mark.parametrize(
    "cms",
    [
        {"optimizer": ("dgd", "momentum")},
        {"optimizer": ("muon", "adam")},
        {"optimizer": "unit", "fast_rank": 3, "trust": 0.01},
        {"fast_rank": 3},
        {"keep": 0.9},
        {"chain": "independent"},
    ],
)
def test_the_promises_of_the_memory_system_hold(base: Config, cms: dict[str, Any]) -> None:
    """Any split, documents in one row, rows of their own, a gate that lets nothing through."""
    cfg, params = made(
        "4,8", "2", base, **{"inner_lr": 0.1, "optimizer": "sgd", "trust": 0.0, **cms}
    )
    model = build_model(cfg.model)
    if "chain" not in cms:
        assert_equal(logits(cfg, params), logits(base, trained(base)))
    step = jax.jit(partial(nested_jax.teach, model, cfg=cfg.teach))
    fresh = model.init_state(params, 2)
    tokens, targets = TEXT[:, :-1], TEXT[:, 1:]
    whole, taught = step(params, fresh, tokens, targets)
    state, parts = fresh, []
    for a, b in ((0, 7), (7, 8), (8, 29), (29, 32)):
        state, part = step(params, state, tokens[:, a:b], targets[:, a:b])
        parts.append(part.loss_BT)
    assert_close(jnp.concatenate(parts, axis=1), taught.loss_BT, rtol=1e-5)
    assert_close(no_trust(state.fast), no_trust(whole.fast), rtol=1e-4, atol=1e-7)
    for got, want in zip(state.fast, whole.fast, strict=True):
        assert_close(got.trust, want.trust, rtol=1e-4, atol=1e-4)
    starts = jnp.zeros((2, 32), bool).at[0, 8].set(True)
    packed, after = step(params, fresh, tokens, targets, starts_BT=starts)
    alone, later = step(params, fresh, tokens[:, 8:], targets[:, 8:])
    assert_close(after.loss_BT[0, 8:], later.loss_BT[0], rtol=1e-5)
    deltas = [jax.tree.map(lambda x: x[0], x.fast[0].delta) for x in (packed, alone)]
    assert_close(*deltas, rtol=1e-4, atol=1e-7)
    gated = replace(cfg.teach, surprise_threshold=1e3)
    shut, _ = nested_jax.teach(model, params, fresh, tokens, targets, gated)
    assert not any(level.writes_B.any() for level in shut.fast)


@pytest.mark.slow
@pytest.mark.parametrize("base", [CFG, GPT2])
def test_a_mesh_and_token_by_token_write_the_same(base: Config) -> None:
    """Rows and parameters on two devices; generated text, adapting as it grows."""
    cfg, params = made("4,8", "2", base, inner_lr=0.05, trust=0.5)
    model = build_model(cfg.model)
    step = jax.jit(partial(nested_jax.teach, model, cfg=cfg.teach))
    tokens, targets = TEXT[:, :-1], TEXT[:, 1:]
    whole, taught = step(params, model.init_state(params, 2), tokens, targets)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, param_shardings(mesh, model.param_info()))
        apart = step(placed, model.init_state(placed, 2), *place_rows(mesh, tokens, targets))
    assert_close(apart[1].loss_BT, taught.loss_BT, rtol=1e-4)
    assert_close(apart[0].fast[0].delta, whole.fast[0].delta, rtol=1e-3, atol=1e-6)
    learn = lambda s, x, y: step(params, s, x, y)[0]  # noqa: E731
    prompt, greedy = np.asarray(TEXT[:, :6]), Sampling(temperature=0)
    made_of = generate(model, params, prompt, 9, jax.random.key(0), greedy, learn=learn, chunk=4)
    text = jnp.asarray(np.concatenate([prompt, np.stack(list(made_of), axis=1)], axis=1))
    read, fresh = jax.jit(model.apply), model.init_state(params, 2)
    for end in range(6, 14):
        known = jnp.full((2,), end - 1, jnp.int32)
        state, _ = step(params, fresh, text[:, :-1], text[:, 1:], lengths_B=known)
        _, logits_B1S = read(params, state, text[:, end - 1 : end])
        np.testing.assert_array_equal(np.argmax(logits_B1S[:, -1], axis=-1), text[:, end])


def place_rows(mesh: Any, *arrays: Any) -> list[Any]:
    return [jax.device_put(x, batch_sharding(mesh)) for x in arrays]


def test_layers_are_counted_from_the_end_or_named() -> None:
    assert fast_layers("1", 12) == (11,)
    assert fast_layers("-1", 3) == (0, 1, 2)
    assert fast_layers("11,0,5", 12) == (0, 5, 11)
    assert fast_layers("5,", 12) == (5,)
    for wrong in ("0", "13", "-2", "1,12", "", "a"):
        with pytest.raises(ValueError, match="--fast-layers="):
            fast_layers(wrong, 12)


@pytest.mark.parametrize(
    ("change", "periods", "message"),
    [
        (
            {"block": "gated_deltanet"},
            "4",
            "model.block='gated_deltanet': wants a block with an MLP",
        ),
        ({}, "4,", "--periods='4,': wants tokens"),
        ({}, "4,6", "6 is no multiple of 4"),
        ({}, "0,4", "--periods='0,4': wants 1 or more tokens each"),
        ({}, "3", "--periods='3': wants a first period that divides the run's data.seq_len=16"),
    ],
)
def test_what_cannot_be_retrofitted_is_named(change: Any, periods: str, message: str) -> None:
    cfg = replace(CFG, model=replace(CFG.model, **change))
    with pytest.raises(ValueError, match=message):
        retrofit_config(cfg, periods, "1")


def test_documents_start_where_a_longer_period_does() -> None:
    """Of rows of 512 tokens they start at multiples of 64, and of 256 with such a period."""
    base = replace(CFG, data=replace(CFG.data, seq_len=512))
    assert [retrofit_config(base, p, "1").align for p in ("64", "256", "32,256")] == [64, 256, 64]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir of a Transformer with a tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    data = write_data(folder / "data")
    cfg = tiny_config(data, {"model.window": 8})
    tokenizer = data / "tokenizer.model"
    params = jax.jit(build_model(cfg.model).init)(jax.random.key(0))
    write_workdir(folder / "base", params, cfg, load_tokenizer(tokenizer), "a test", 7)
    return folder / "base"


def test_the_command_makes_a_run_that_opens(run: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    arguments = ["retrofit", "--checkpoint", str(run), "--workdir", str(out), "--periods", "8,16"]
    assert main(arguments) == 0
    assert "blocks (1,) write their MLP every 8 and 16 tokens" in capsys.readouterr().out
    opened = open_checkpoint(out)
    assert (opened.step, opened.cfg.model.block) == (7, "hope_attention")
    cms = opened.cfg.model.cms
    assert (cms.optimizer, cms.inner_lr, cms.trust) == (("unit",), (0.01,), 16.0)
    assert opened.text_tokenizer.vocab_size == VOCAB
    assert main(arguments) == 2
    assert f"--workdir={str(out)!r}: exists" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no state of an optimizer"):
        train(opened.cfg, out)
