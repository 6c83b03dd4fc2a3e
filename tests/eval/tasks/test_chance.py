"""Models that know nothing, on every task: chance within its interval, and T ln(vocab)."""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import HandMade, order_two, uniform
from small_root import QUESTIONS, write_root
from tiny import WORDS

from eval.core.cli import Findings, Task
from eval.core.scoring import Scorer
from eval.core.stats import wilson
from eval.core.subject import Subject
from eval.core.texts import documents
from eval.tasks import babi, books, classification, continual, niah, passkey, perplexity, zeroshot
from eval.tasks.stories import GENERATED
from eval.tasks.zeroshot_files import SETS
from nested_jax.config import Config
from nested_jax.data.tokenizers.tokenizer import Tokenizer, train_tokenizer

VOCAB = 320
Z = 3.3  # an interval that one of a thousand chance scores leaves; there are some 30 here


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([f"{' '.join(WORDS)} 0123456789. The grass is green. " * 40], VOCAB)


def run(task: Task, reader: HandMade, tokenizer: Tokenizer, root: Path, *words: str) -> Findings:
    subject = Subject("hand-made", Config(), 0, tokenizer, Scorer(reader, 16), 0)
    return task.evaluate(subject, flags_of(task, root, *words))


def flags_of(task: Task, root: Path, *words: str) -> Namespace:
    return task.parser().parse_args(["--data-root", str(root), *words])


def at_chance(hits: float, count: int, chance: float) -> bool:
    low, high = wilson(hits, count, Z)
    return low <= chance <= high


def test_a_random_model_is_at_chance_on_every_zero_shot_task(root: Path, tokenizer: Any) -> None:
    found = run(zeroshot.TASK, order_two(VOCAB), tokenizer, root).metrics
    assert set(found) == set(SETS)
    for name, group in found.items():
        assert group["n"] == QUESTIONS
        assert at_chance(group["acc"] * QUESTIONS, QUESTIONS, group["chance"]), name
        norm = group.get("acc_norm", group["acc"])
        assert at_chance(norm * QUESTIONS, QUESTIONS, group["chance"]), name
    assert [found[n]["chance"] for n in ("piqa", "winogrande", "lambada")] == [0.25, 0.5, 0.0]


def test_a_random_model_is_at_chance_on_every_needle(root: Path, tokenizer: Any) -> None:
    lengths = ("--context-lengths", "512", "--samples-per-length", "24", "--haystack", "noise")
    for task, names in ((niah.TASK, niah.SUITE), (passkey.TASK, ["passkey"])):
        found = run(task, order_two(VOCAB), tokenizer, root, *lengths).metrics
        assert list(found) == [f"{name}@512" for name in names]
        for name, group in found.items():
            asked = 24 * (4 if name.startswith("mq") else 1)
            assert group["accuracy"] == 0.0, name
            assert at_chance(group["rank1"] * asked, asked, group["rank1_chance"]), name


def test_a_random_model_is_at_chance_on_every_story(root: Path, tokenizer: Any) -> None:
    lengths = ("--context-lengths", "1500", "--samples-per-length", "24", "--haystack", "noise")
    found = run(babi.TASK, order_two(VOCAB), tokenizer, root, *lengths).metrics
    assert list(found) == [f"{name}@1500" for name in GENERATED]
    for name, group in found.items():
        assert group["accuracy"] == 0.0, name
        assert at_chance(group["rank1"] * 24, 24, group["rank1_chance"]), name


def test_a_random_model_is_at_chance_on_intents(root: Path, tokenizer: Any) -> None:
    sizes = ("--task-size", "2", "--tasks", "2", "--eval-per-label", "12")
    for data, more in (("clinc150", ("--increments", "domains")), ("banking77", ())):
        words = ("--dataset", data, "--learners", "in_context,frozen", *sizes, *more)
        found = run(classification.TASK, order_two(VOCAB), tokenizer, root, *words)
        for learner, group in found.metrics.items():
            last = [r for r in found.items if r["id"].startswith(f"{learner}/1/")]
            assert len(last) == 48
            assert group["chance"] == 0.25
            assert at_chance(sum(r["correct"] for r in last), 48, 0.25), (data, learner)


def test_a_uniform_model_has_the_loss_ln_vocab_everywhere(root: Path, tokenizer: Any) -> None:
    for task in (perplexity.TASK, books.TASK):
        found = run(task, uniform(VOCAB), tokenizer, root).metrics
        assert len(found) >= 3
        for group in found.values():
            assert group["loss"] == pytest.approx(math.log(VOCAB), rel=1e-12)
            bits = group["tokens"] * math.log2(VOCAB) / group["bytes"]
            assert group["bits_per_byte"] == pytest.approx(bits, rel=1e-12)
    (first, *_) = run(perplexity.TASK, uniform(VOCAB), tokenizer, root).items
    assert first["loss"] == pytest.approx(math.log(VOCAB))


def test_a_model_that_never_changes_forgets_nothing(root: Path, tokenizer: Any) -> None:
    names = ["code", "dialogue_sgd"]
    subject = Subject("hand-made", Config(), 0, tokenizer, Scorer(order_two(VOCAB), 16), 0)
    flags = flags_of(continual.TASK, root, "--doc-tokens", "40")
    texts = {
        n: perplexity.tokenized(subject, documents(continual.data_root(flags), n, "test"), 99, 40)
        for n in names
    }
    row = continual.score(subject, texts, None)
    assert all(loss > math.log(VOCAB) for loss in row)
    found = continual.compared(np.asarray([row] * 3), None, ["a", "b", "c"], names)
    kept = {k: v for k, v in found["mean"].items() if not k.startswith("loss")}
    assert kept == {"forgetting": 0.0, "backward_transfer": 0.0, "forward_transfer": 0.0}


def test_a_model_that_always_says_one_intent_has_a_known_matrix(root: Path, tokenizer: Any) -> None:
    favorite = np.zeros(VOCAB)
    favorite[tokenizer.encode(" pay bill")] = 5.0
    log_p = favorite - np.log(np.exp(favorite).sum())
    words = ("--learners", "frozen", "--task-size", "2", "--tasks", "2", "--eval-per-label", "6")
    found = run(classification.TASK, HandMade(lambda history: log_p), tokenizer, root, *words)
    labels = [row["label"] for row in found.items if row["id"].startswith("frozen/1/")]
    first = 0.5 * ("pay_bill" in labels[:12])  # half of its increment, and nothing of the other
    group = found.metrics["frozen"]
    assert group["matrix"] == [
        [first or pytest.approx(group["matrix"][0][0]), None],
        [first, 0.5 - first],
    ]
    assert group["average_accuracy"] == 0.25
    assert {row["guess"] for row in found.items if row["id"].startswith("frozen/1/")} == {
        "pay_bill"
    }
