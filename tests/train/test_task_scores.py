"""The ordinary trainer on synthetic tasks: exact scores, resume, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import products
from test_trainer import assert_same_run, at
from tiny import read_lines

from nested_jax.config import from_config_dict, load_config
from nested_jax.data.pipeline import make_train_iterator, prepare
from nested_jax.data.synthetic.rows import task_of
from nested_jax.models.lm import build_model
from nested_jax.teach import teach
from nested_jax.train.plan import check_answers
from nested_jax.train.task_scores import answer
from nested_jax.train.trainer import train
from nested_jax.types import Batch

ROOT = Path(__file__).resolve().parents[2]
PARITY = "formal,language=parity,max_length=12"
LONGER = "formal,language=parity,min_length=13,max_length=21"


def fields(**changes: Any) -> dict[str, Any]:
    return {
        "seed": 3,
        "model": {
            "vocab_size": 8,
            "dim": 16,
            "layers": 2,
            "heads": 2,
            "mlp_hidden": 24,
            **changes.pop("model", {}),
        },
        "data": {
            "source": "synthetic",
            "task": {"train": [PARITY], "tests": [PARITY, LONGER], "rows": 40},
            "seq_len": 12,
            "valid_rows": 11,
        },
        "optim": {"warmup_steps": 2, "learning_rate": 1e-2},
        "train": {"steps": 8, "batch_size": 8, "log_every": 1, "eval_every": 6, "save_every": 4},
        **changes,
    }


@pytest.mark.slow
def test_a_run_scores_its_tasks_and_resumes(tmp_path: Path) -> None:
    """What an interrupted run leaves is, bit for bit, what an undisturbed one leaves."""
    cfg = from_config_dict(fields())
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    summary = train(cfg, whole)
    with pytest.raises(RuntimeError):
        train(cfg, broken, [at(6, stop)])
    train(cfg, broken)
    assert_same_run(broken, whole)
    names = {"config.json", "metrics.jsonl", "checkpoints", "summary.json"}
    assert {p.name for p in whole.iterdir()} == names
    kinds = ("accuracy", "loss", "token", "example", "sequence", "macro")
    wanted = {f"{spec}/{kind}" for spec in (PARITY, LONGER) for kind in kinds}
    assert set(summary.scores) == wanted
    assert summary.valid_bits_per_byte is None
    assert summary.valid_loss == summary.scores[f"{PARITY}/loss"]
    assert summary.scores[f"{LONGER}/accuracy"] == summary.scores[f"{LONGER}/sequence"]
    line = [line for line in read_lines(whole) if "valid_loss" in line][-1]
    assert {name: line[name] for name in wanted} == summary.scores
    assert json.loads((whole / "summary.json").read_text()) == summary._asdict()


def stop() -> None:
    raise RuntimeError


@pytest.mark.slow
@pytest.mark.parametrize("taught", [False, True])
def test_answers_are_what_the_model_says_token_by_token(taught: bool) -> None:
    """The inner loop answers a chunk from the weights that were written before it."""
    changes: dict[str, Any] = {}
    if taught:
        cms = {"periods": [4], "hidden": 24, "inner_lr": [0.5], "learned_rate": False}
        changes = {
            "model": {"block": "hope_attention", "cms": cms},
            "teach": {"mode": "exact", "chunk": 4},
        }
    cfg = from_config_dict(fields(**changes))
    model = build_model(cfg.model)
    params = model.init(jax.random.key(0))
    rows = next(make_train_iterator(cfg.data, batch_size=3, align=cfg.align, seed=1))
    batch = Batch(**rows)
    got = jax.jit(lambda p, b: answer(model, p, b, cfg))(params, batch)

    @jax.jit
    def slowly(params: Any) -> Any:
        state = model.init_state(params, 3, 12)
        logits = []
        for first in range(0, 12, 4 if taught else 1):
            piece = slice(first, first + (4 if taught else 1))
            after, part = model.apply(params, state, batch.tokens_BT[:, piece])
            if taught:
                weights = batch.weights_BT[:, piece]
                after, _ = teach(
                    model,
                    params,
                    state,
                    batch.tokens_BT[:, piece],
                    batch.targets_BT[:, piece],
                    cfg.teach,
                    weights_BT=weights,
                )
            state = after
            logits.append(part)
        return jax.numpy.concatenate(logits, axis=1)

    logits = np.asarray(slowly(params))
    np.testing.assert_array_equal(got.predictions_BT, logits.argmax(-1))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = -np.take_along_axis(log_p, batch.targets_BT[..., None], -1)[..., 0]
    np.testing.assert_allclose(np.asarray(got.loss_BT), want, rtol=2e-4, atol=2e-5)
    if taught:  # the write shows: the slow model alone answers otherwise
        still = from_config_dict(fields(model=changes["model"]))
        plain = jax.jit(lambda p, b: answer(model, p, b, still))(params, batch)
        assert np.abs(np.asarray(plain.loss_BT - got.loss_BT))[:, 4:].max() > 1e-3


@pytest.mark.parametrize("mode", ["off", "exact"])
def test_answers_take_one_forward_pass(mode: str) -> None:
    """Predictions and losses come from as many products as the losses of training."""
    cms = {"periods": [4], "hidden": 24}
    model_fields = {"block": "hope_attention", "cms": cms}
    cfg = from_config_dict(fields(model=model_fields, teach={"mode": mode, "chunk": 4}))
    model = build_model(cfg.model)
    params = jax.eval_shape(model.init, jax.random.key(0))
    x_BT = jax.numpy.zeros((3, 12), jax.numpy.int32)
    batch = Batch(x_BT, x_BT, jax.numpy.ones((3, 12)), jax.numpy.ones_like(x_BT))

    def losses(params: Any) -> Any:
        state = model.init_state(params, 3, 12)
        text = (x_BT, x_BT, cfg.teach)
        return teach(model, params, state, *text, weights_BT=batch.weights_BT, start="fresh")[1]

    got = products(lambda params: answer(model, params, batch, cfg), params)
    assert got == products(lambda params: losses(params).loss_BT, params) > 10


def test_tasks_mix_and_rows_are_a_function_of_the_seeds() -> None:
    copy = "copy,vocab=8,count=3"
    data = {**fields()["data"], "weights": [1.0, 3.0]}
    data["task"] = {"train": [PARITY, copy], "rows": 5, "seed": 2}
    cfg = from_config_dict(fields(data=data)).data
    assert cfg.task.scored == (PARITY, copy)
    iterator = make_train_iterator(cfg, batch_size=4, align=1, seed=0)
    rows = np.concatenate([b["tokens_BT"] for b in itertools.islice(iterator, 10)])
    source = [task_of(PARITY).example(2, i).tokens_T for i in range(5)]
    formal = [any((row[:12] == tokens).all() for tokens in source) for row in rows]
    assert sum(formal) == 10
    again = make_train_iterator(cfg, batch_size=4, align=1, seed=0)
    np.testing.assert_array_equal(next(again)["tokens_BT"], rows[:4])
    prints = {
        prepare(from_config_dict(fields(data={**data, "task": task})).data).tokenizer_sha256
        for task in (data["task"], {**data["task"], "rows": 6}, {"train": [PARITY, copy]})
    }
    assert len(prints) == 3


REFUSED = {
    "parity,model=hop": "model.block='hop': got str, wants one of 'transformer'",
    "party": "config argument 'party': wants a task first, one of parity, aa, abab",
    "parity,widht=3": "config argument 'widht=3': known: model, width",
    "mqar,piars=3": "mqar.piars=3: unknown field; did you mean mqar.pairs?",
    "mqar,pairs=400": "pairs=400: wants at least 1, and 4 tokens each of the 64",
    "compression,tokens=20": "data.seq_len=32: wants the 20 tokens of Compression(",
}


@pytest.mark.parametrize("argument", REFUSED)
def test_bad_arguments_name_the_known_ones(argument: str, tmp_path: Path) -> None:
    import launch as launcher

    config = f"{ROOT / 'configs' / 'synthetic.py'}:{argument}"
    with pytest.raises(ValueError, match=r".") as caught:
        prepare(load_config(config).data)
    assert REFUSED[argument] in str(caught.value)
    assert launcher.main(["--config", config, "--workdir", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()


def test_answers_come_from_where_the_task_wants_them() -> None:
    """The decoder on a task of each position, none on compression, and texts with a decoder."""
    synthetic = f"{ROOT / 'configs' / 'synthetic.py'}"
    for argument, answers, want in (
        ("parity", "last", "model.answers='last': the tasks formal,language=parity,.*want 'each'"),
        ("compression", "each", "model.answers='each': the tasks compression,.* want 'last'"),
    ):
        cfg = load_config(f"{synthetic}:{argument}", {"model.answers": answers})
        with pytest.raises(ValueError, match=want):
            check_answers(cfg)
        check_answers(load_config(f"{synthetic}:{argument}"))
    with pytest.raises(ValueError, match=r"model.answers='last': is for synthetic tasks"):
        from_config_dict({"model": {"answers": "last"}})


def test_a_row_too_short_for_its_task_is_refused() -> None:
    data = {**fields()["data"], "seq_len": 11}
    with pytest.raises(ValueError, match=r"data.seq_len=11: wants 12 or more"):
        prepare(from_config_dict(fields(data=data)).data)
    with pytest.raises(ValueError, match=r"data.task.train=.*exactly if data.source is 'synthe"):
        from_config_dict({"data": {"task": {"train": [PARITY]}}})
    with pytest.raises(ValueError, match=r"data.task.train=\(\): wants specs"):
        from_config_dict({"data": {"source": "synthetic"}})


def test_every_task_of_the_config_file_fits() -> None:
    import configs.synthetic as file

    for task in (*file.LANGUAGES, *file.TASKS):
        cfg = load_config(f"{ROOT / 'configs' / 'synthetic.py'}:{task}")
        assert prepare(cfg.data).vocab_size <= cfg.model.vocab_size
