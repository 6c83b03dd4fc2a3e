"""A result says which items it is of: the same for every model, another when anything changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doubles import HandMade, order_two, uniform
from small_root import write_root
from tiny import WORDS

from eval.core.cli import Task
from eval.core.items import items_sha256
from eval.core.scoring import Scorer
from eval.core.subject import Subject
from eval.tasks import babi, books, classification, niah, passkey, perplexity, repeat, zeroshot
from eval.tasks.zeroshot_files import SETS
from nested_jax.config import Config
from nested_jax.data.tokenizers.tokenizer import Tokenizer, train_tokenizer

VOCAB = 320
CODE = ("--segments", "code", "--split", "test")
NEEDLES = ("--context-lengths", "400", "--samples-per-length", "2", "--haystack", "noise")
LABELS = ("--task-size", "2", "--tasks", "2", "--eval-per-label", "2", "--learners", "frozen")
TASKS: dict[str, tuple[Task, tuple[str, ...]]] = {
    "zeroshot": (zeroshot.TASK, ("--tasks", "piqa,lambada", "--max-samples", "4")),
    "perplexity": (perplexity.TASK, ("--segments", "code")),
    "books": (books.TASK, ("--segments", "code")),
    "niah": (niah.TASK, (*NEEDLES, "--variants", "s1,mq")),
    "passkey": (passkey.TASK, NEEDLES),
    "repeat": (repeat.TASK, (*CODE, "--passage", "16", "--distances", "9,40")),
    "babi": (babi.TASK, (*NEEDLES[:1], "1500", *NEEDLES[2:], "--tasks", "qa1")),
    "classification": (classification.TASK, LABELS),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([f"{' '.join(WORDS)} 0123456789. The grass is green. " * 40], VOCAB)


def hash_of(name: str, reader: HandMade, tokenizer: Tokenizer, root: Path, *words: str) -> str:
    task, own = TASKS[name]
    flags = task.parser().parse_args(["--data-root", str(root), *own, *words])
    subject = Subject("hand-made", Config(), 0, tokenizer, Scorer(reader, 16), 0)
    return items_sha256(task.evaluate(subject, flags).items)


@pytest.mark.parametrize("name", TASKS)
def test_the_hash_is_of_what_is_asked_not_of_the_answers(
    name: str, root: Path, tokenizer: Tokenizer
) -> None:
    want = hash_of(name, uniform(VOCAB), tokenizer, root)
    assert hash_of(name, order_two(VOCAB), tokenizer, root) == want
    if name not in ("zeroshot", "perplexity", "books"):  # these draw nothing
        assert hash_of(name, uniform(VOCAB), tokenizer, root, "--seed", "1") != want


def set_gold(row: dict[str, Any]) -> None:
    row["gold"] = (row["gold"] + 1) % 2


def set_choice(row: dict[str, Any]) -> None:
    row["choices"][1] += " more"


def set_text(row: dict[str, Any]) -> None:
    row["text"] += "x = 1\n"


@pytest.mark.parametrize(
    ("name", "file", "change"),
    [
        ("zeroshot", SETS["piqa"].file, set_gold),
        ("zeroshot", SETS["piqa"].file, set_choice),
        ("perplexity", "lm/code/test.jsonl", set_text),
        ("books", "lm/code/test.jsonl", set_text),
        ("classification", "continual/clinc150/test.jsonl", set_text),
    ],
)
def test_a_changed_row_changes_the_hash(
    name: str,
    file: str,
    change: Callable[[dict[str, Any]], None],
    root: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    """The names of the items and their number are the same."""
    copy = tmp_path / "root"
    shutil.copytree(root, copy)
    path = copy / file.removesuffix(".gz")
    first, *rest = map(json.loads, path.read_text().splitlines())
    rows = [first, *rest] if name != "classification" else [first]
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in [first, *rest]))
    words = ("--eval-per-label", "12") if name == "classification" else ()
    reader = uniform(VOCAB)
    assert hash_of(name, reader, tokenizer, copy, *words) != hash_of(
        name, reader, tokenizer, root, *words
    )
