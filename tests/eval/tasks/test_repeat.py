"""A passage again: what is read, what a gain is, and that batches and order change nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from doubles import HandMade, bigram, order_two
from tiny import (
    HOPE,
    WORDS,
    tiny_config,
    write_data,
)

from eval.core.memorize.write import MemorizeOptions, Memorizer
from eval.core.reader import ModelReader
from eval.core.scoring import Scorer
from eval.core.subject import Subject
from eval.tasks import repeat
from eval.tasks.evaluators import make_evaluators, sentences
from nested_jax.config import Config
from nested_jax.data.tokenizers.tokenizer import Tokenizer, train_tokenizer
from nested_jax.models.lm import build_model
from nested_jax.sharding import make_mesh, replicated
from nested_jax.train.trainer import train

VOCAB, LENGTH, DISTANCES = 320, 12, [5, 24]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([f"{' '.join(WORDS)} 0123456789. The grass is green. " * 40], VOCAB)


def subject_of(reader: Any, tokenizer: Tokenizer, batch: int = 32) -> Subject:
    return Subject("hand-made", Config(), 0, tokenizer, Scorer(reader, batch), 0)


def items_of(subject: Subject, count: int = 3, kind: str = "code") -> list[repeat.Item]:
    rng = np.random.default_rng(5)
    texts = [rng.integers(5, VOCAB, size).tolist() for size in (40, 7, 60)]
    return repeat.make_items(subject, kind, texts, LENGTH, DISTANCES[-1], count, seed=0)


def copier(lag: int) -> HandMade:
    """A model that is nearly sure of the token that stood `lag` tokens before."""

    def log_p(history: tuple[int, ...]) -> np.ndarray:
        p = np.full(VOCAB, 1e-4)
        if len(history) >= lag:
            p[history[-lag]] = 1.0
        return np.log(p / p.sum())

    return HandMade(log_p)


def test_a_model_that_copies_gains_everything(tokenizer: Tokenizer) -> None:
    for i, distance in enumerate(DISTANCES):
        subject = subject_of(copier(LENGTH + distance), tokenizer)
        items = items_of(subject)
        found = repeat.measure(subject, items, DISTANCES, None)[0]
        right, wrong = found[distance], found[DISTANCES[1 - i]]
        assert right["bits_per_token"] < 0.05
        assert right["gain"] == pytest.approx(right["control_bits_per_token"], abs=0.05)
        assert right["gain"] > 12  # -log2 of 1e-4
        assert min(right["by_token"]) > 8  # of three passages; a random token may be right
        assert abs(wrong["gain"]) < 3
        low, high = right["gain_interval"]
        assert low - 1e-9 <= right["gain"] <= high + 1e-9
        assert [k for k in right if k.startswith("gain ")] == ["gain 0-8", "gain 8-12"]


def test_a_bigram_model_gains_nothing(tokenizer: Tokenizer) -> None:
    table = np.random.default_rng(1).dirichlet(np.ones(VOCAB), VOCAB)
    subject = subject_of(bigram(table), tokenizer)
    for group in repeat.measure(subject, items_of(subject), DISTANCES, None)[0].values():
        assert group["gain"] == 0.0
        assert set(group["by_token"]) == {0.0}
        assert group["control_bits_per_token"] > 5


def whole(subject: Subject, item: repeat.Item, distance: int, memorizer: Any = None) -> np.ndarray:
    """Return nats of both second readings by reading the whole streams in one go."""
    upto = 1 + LENGTH + distance
    separator = subject.tokenizer.eos_id
    texts = [(*stream[1:upto], *item.passage) for stream in item.streams(separator)]
    if memorizer is not None:
        nats = memorizer.rolling(texts, separator, subject.scorer)
    else:
        nats = subject.scorer.rolling(texts, separator)
    return np.stack([nat[-LENGTH:] for nat in nats])


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_forks_equal_whole_readings_in_any_batch_and_order(
    batch: int, tokenizer: Tokenizer
) -> None:
    """With a model that knows its whole history; the slow twin reads each stream on its own."""
    subject = subject_of(order_two(VOCAB), tokenizer, batch)
    items = items_of(subject)
    found = repeat.second_readings(subject, items, DISTANCES, None)
    want = np.stack([np.stack([whole(subject, i, d) for d in DISTANCES]) for i in items])
    np.testing.assert_allclose(found, want, atol=1e-6)
    other = repeat.second_readings(subject, items[::-1], DISTANCES, None)
    np.testing.assert_allclose(other[::-1], want, atol=1e-6)


@pytest.mark.parametrize("kind", ["code", "random"])
def test_what_is_read(kind: str, tokenizer: Tokenizer) -> None:
    """The distance is exact, a passage stands in one document, the control has its length."""
    subject = subject_of(order_two(VOCAB), tokenizer)
    separator = tokenizer.eos_id
    for item in items_of(subject, 8, kind):
        first, control = item.streams(separator)
        assert len(first) == len(control) == 1 + LENGTH + DISTANCES[-1]
        assert first[1 : 1 + LENGTH] == item.passage
        assert first[1 + LENGTH :] == control[1 + LENGTH :]
        assert separator not in item.passage
        assert (tokenizer.piece_byte_lengths[list(item.passage)] > 0).all() or kind == "code"
        places = range(len(control) - LENGTH + 1)
        assert all(control[i : i + LENGTH] != item.passage for i in places)
    again = items_of(subject, 8, kind)
    assert again == items_of(subject, 8, kind)
    assert items_of(subject, 3, kind) == again[:3]


def test_too_little_text_is_refused(tokenizer: Tokenizer) -> None:
    subject = subject_of(order_two(VOCAB), tokenizer)
    with pytest.raises(ValueError, match=r"--passage=12: wants documents .* the longest has 9"):
        repeat.make_items(subject, "code", [[5] * 9] * 20, 12, 5, 1, 0)
    with pytest.raises(ValueError, match="--distances=78: wants 102 tokens of code text"):
        repeat.make_items(subject, "code", [[5] * 100], 12, 78, 1, 0)
    assert repeat.make_items(subject, "code", [[5] * 100], 12, 77, 1, 0)


def test_distances_beyond_training_and_windows_are_marked() -> None:
    def marks(distance: int, **model: Any) -> str:
        changes = {f"model.{name}": value for name, value in model.items()}
        cfg = tiny_config(Path(), {"data.seq_len": 64, "model.layers": 3, **changes})
        return repeat.beyond(cfg, 10, distance)

    assert [marks(n, block="transformer", window=0) for n in (44, 45)] == ["", "training rows"]
    windowed = {"block": "transformer", "window": 8}
    assert [marks(n, **windowed) for n in (23, 24)] == ["", "attention"]
    assert marks(45, **windowed) == "training rows, attention"
    assert marks(1, block="gated_deltanet") == "attention"


SLOW = pytest.mark.slow
READINGS = [
    ("transformer", False),
    ("hope_attention", True),
    *(pytest.param(*case, marks=SLOW) for case in (("hope", True), ("gated_deltanet", False))),
]


@pytest.mark.parametrize(("block", "writes"), READINGS)
def test_models_are_read_as_in_one_go(block: str, writes: bool, tokenizer: Tokenizer) -> None:
    """Without or with writes; the splits lie anywhere in the chunks of the inner loop."""
    fields = {"model.block": block, "model.vocab_size": VOCAB}
    memory = {"model.memory.chunk": 8, "model.memory.generator_chunk": 8}
    cfg = tiny_config(Path(), {**HOPE, **fields, **memory})
    model = build_model(cfg.model)
    reader = ModelReader(model, jax.jit(model.init)(jax.random.key(3)))
    subject = Subject("tiny", cfg, 0, tokenizer, Scorer(reader, 4), 0)
    items = items_of(subject, 2)
    writer = Memorizer(subject, MemorizeOptions(on=True)) if writes else None
    found = repeat.second_readings(subject, items, DISTANCES, writer)
    want = np.stack([np.stack([whole(subject, i, d, writer) for d in DISTANCES]) for i in items])
    np.testing.assert_allclose(found, want, atol=2e-5)
    if writer is not None:
        base = repeat.second_readings(subject, items, DISTANCES, None)
        assert np.abs(found - base).max() > 1e-4
        assert writer.report()["writes"]["cms_fast"] > 0


@pytest.mark.slow
def test_a_run_says_what_it_remembers(tmp_path: Path) -> None:
    """The numbers of training are those of the command on its checkpoint, and stand in a line."""
    data = write_data(tmp_path / "data")
    fields = {"train.eval_tasks": ["repeat:40"], "train.steps": 2, "train.eval_every": 1}
    cfg = tiny_config(data, {**HOPE, **fields})
    summary = train(cfg, tmp_path / "run", make_evaluators(cfg))
    words = [
        "--checkpoint",
        str(tmp_path / "run"),
        "--distances",
        "40",
        "--passages",
        "8",
        "--segments",
        "run",
    ]
    flags = repeat.TASK.parse([*words, "--memorize"])
    from eval.core.cli import subject_of as load

    (group,) = repeat.TASK.evaluate(load(flags), flags).metrics.values()
    assert summary.scores["repeat/40/gain"] == pytest.approx(group["gain"], abs=1e-5)
    written = group["memorized"]["gain"]
    assert summary.scores["repeat/40/written"] == pytest.approx(written, abs=1e-5)
    (line,) = sentences(summary.scores)
    assert f"40 tokens ago costs {written:.2f} ± " in line
    assert math.isfinite(group["delta"]["gain"])


def test_text_that_is_too_short_ends_only_a_run_that_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The distance by default is left out, and it is said; one that was asked for is an error."""
    cfg = tiny_config(
        write_data(tmp_path / "data"),
        {"train.eval_tasks": ["repeat", "repeat:4000"], "model.window": 8},
    )
    by_default, asked = make_evaluators(cfg)
    model = build_model(cfg.model)
    params = jax.device_put(model.init(jax.random.key(0)), replicated(make_mesh(cfg.mesh)))
    assert by_default(model, params, cfg, 1) == {} == by_default(model, params, cfg, 2)
    assert capsys.readouterr().out.count("repeat: not measured: ") == 1
    with pytest.raises(ValueError, match=r"wants 4256 tokens of run text"):
        asked(model, params, cfg, 1)
    with pytest.raises(ValueError, match=r"train.eval_tasks repeat:x"):
        make_evaluators(tiny_config(Path(), {"train.eval_tasks": ["repeat:x"]}))
