"""Tasks, paths, statistics and needles: what needs no model of ours."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from doubles import HandMade, uniform

from eval.__main__ import main
from eval.core.cli import options_of, parser_of
from eval.core.datasets import DataRoot
from eval.core.memory_paths import choose_layers, choose_paths, model_paths
from eval.core.scoring import Scorer
from eval.core.stats import mcnemar, sign_flip, wilson
from eval.tasks import continual, niah, zeroshot
from eval.tasks.continual import own_stages, summarize
from eval.tasks.needles import KINDS, Haystack, make_item
from eval.tasks.zeroshot_files import Question, choose_tasks
from nested_jax.config import CMSConfig, ModelConfig
from nested_jax.data.tokenizers.tokenizer import train_tokenizer

WORDS = [a + b for a in ("amber", "birch", "cedar") for b in ("stone", "light", "field")]


@pytest.fixture(scope="module")
def tokenizer():
    text = "The special magic number for amberstone is: 0123456789. The grass is green. " * 40
    return train_tokenizer([text], 330)


def hay(tokenizer, length):
    return Haystack(tokenizer, "noise", DataRoot(), length)


@pytest.mark.parametrize("kind", KINDS)
def test_needle_prompts_have_their_length_and_hold_their_needles(tokenizer, kind):
    for number in range(5):
        item = make_item(kind, tokenizer, hay(tokenizer, 700), WORDS, 700, number, 5, 0)
        assert max(len(item.context) + len(q.tokens) for q in item.queries) == 700
        text = tokenizer.decode(item.context)
        for query in item.queries:
            assert all(f" {value}." in text for value in query.answers)
            assert not any(value in text for value in query.wrong)
        assert number / 5 <= item.depth <= (number + 1) / 5
        again = make_item(kind, tokenizer, hay(tokenizer, 700), WORDS, 700, number, 5, 0)
        assert again == item


def test_a_needle_prompt_that_cannot_hold_its_needles_is_refused(tokenizer):
    with pytest.raises(ValueError, match="--context-lengths"):
        make_item("mv", tokenizer, hay(tokenizer, 64), WORDS, 40, 0, 5, 0)


def test_a_length_that_one_variant_lacks_room_in_is_refused_before_all_others():
    asked = []

    def make(name, length, samples):
        asked.append((name, length, samples))
        if (name, length) == ("mk", 20):
            raise ValueError("mk wants more")
        return []

    flags = SimpleNamespace(context_lengths="40,20", max_samples=0, samples_per_length=9)
    subject = SimpleNamespace(scorer=SimpleNamespace(check=lambda length: None))
    with pytest.raises(ValueError, match="mk wants more"):
        niah.ask_at_lengths(subject, flags, "niah", ["s1", "mk"], make)
    assert asked == [("s1", 40, 1), ("mk", 40, 1), ("s1", 20, 1), ("mk", 20, 1)]


def oracle(tokenizer, items):
    """Copies: behind a question it writes the values that the text of the item has for it."""
    scripts = {}
    for item in items:
        for query in item.queries:
            answer = tokenizer.encode(f" {', '.join(query.answers)}.\n")
            scripts[item.context + query.tokens] = answer
    starts = {len(prompt) for prompt in scripts}

    def log_p(history):
        for length in sorted(n for n in starts if n <= len(history)):
            script = scripts.get(history[:length])
            if script is not None:
                at = len(history) - length
                return np.log(np.eye(330)[script[min(at, len(script) - 1)]] + 1e-9)
        return np.full(330, -math.log(330))

    return HandMade(log_p)


@pytest.mark.parametrize("kind", ["s1", "s3", "mk", "mq", "mv", "passkey"])
def test_a_model_that_copies_scores_100(tokenizer, kind):
    items = [make_item(kind, tokenizer, hay(tokenizer, 400), WORDS, 400, i, 3, 0) for i in range(3)]
    subject = SimpleNamespace(tokenizer=tokenizer, scorer=Scorer(oracle(tokenizer, items), 4))
    found = niah.summarize(niah.answer(subject, items, 0))
    assert (found["accuracy"], found["contains"], found["rank1"]) == (1.0, 1.0, 1.0)


def test_a_model_that_knows_nothing_finds_no_needle(tokenizer):
    items = [make_item("s1", tokenizer, hay(tokenizer, 200), WORDS, 200, i, 3, 0) for i in range(3)]
    subject = SimpleNamespace(tokenizer=tokenizer, scorer=Scorer(uniform(330), 4))
    found = niah.summarize(niah.answer(subject, items, 0))
    assert (found["accuracy"], found["contains"]) == (0.0, 0.0)


def test_a_random_model_is_at_chance(tokenizer):
    rng = np.random.default_rng(0)
    questions = [
        Question(str(i), [("", "")] * 4, [1] * 4, int(rng.integers(4))) for i in range(800)
    ]
    scores = [[_score(x) for x in rng.normal(size=4)] for _ in questions]
    found = zeroshot.summarize("choice", questions, zeroshot.judge(questions, scores))
    low, high = found["acc_interval"]
    assert low <= found["chance"] == 0.25 <= high


def test_acc_norm_divides_by_characters():
    question = Question("0", [("", "")] * 2, [2, 10], 1)
    (row,) = zeroshot.judge([question], [[_score(-4.0), _score(-5.0)]])
    assert (row["correct"], row["correct_norm"]) == (False, True)


def _score(logprob):
    return SimpleNamespace(logprob=float(logprob), greedy=False, tokens=1)


def test_statistics_against_known_values():
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    for count in (1, 7, 80):
        assert wilson(0, count)[0] == 0.0
        assert wilson(count, count)[1] == 1.0
    assert mcnemar([True] * 8, [False] * 8) == pytest.approx(2 / 256)
    assert mcnemar([True, False], [True, False]) == 1.0
    assert sign_flip([1.0] * 8) == pytest.approx(2 / 256)


def test_forgetting_of_a_known_matrix():
    matrix = np.asarray([[5.0, 5.0], [3.0, 4.5], [4.0, 2.0]])
    found = summarize(matrix, ["a", "b"], first=1)
    assert found["a"]["forgetting"] == pytest.approx(1.0)
    assert found["a"]["backward_transfer"] == pytest.approx(1.0)
    assert found["b"]["forward_transfer"] == pytest.approx(-0.5)
    assert "forgetting" not in found["b"]  # it was learned last
    assert "forward_transfer" not in found["a"]  # nothing came before it
    assert found["mean"]["forgetting"] == pytest.approx(1.0)
    plain = summarize(matrix, ["a", "b"], first=None)
    assert plain["mean"] == {
        "loss_first": 5.0,
        "loss_last": 3.0,
        "forgetting": pytest.approx(np.mean([4 - 3, 2 - 4.5])),
    }
    assert [own_stages(n, 3) for n in (2, 3, 4, 5)] == [None, 0, 1, None]


def test_memories_by_name():
    cfg = ModelConfig(block="hope", cms=CMSConfig(periods=(64, 256)))
    assert model_paths(cfg) == ("titan", "cms_fast", "cms_mid")
    assert model_paths(ModelConfig(block="transformer")) == ()
    assert choose_paths("cms_fast,titan", cfg) == ("titan", "cms_fast")
    assert choose_layers("0,-1", cfg) == (0, 3)
    with pytest.raises(ValueError, match=r"titan, delta, cms_fast"):
        choose_paths("titen", cfg)
    with pytest.raises(ValueError, match="--memorize-layers"):
        choose_layers("4", cfg)
    with pytest.raises(ValueError, match="hellaswag"):
        choose_tasks("pika")


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path}.*--data-root"):
        list(DataRoot(tmp_path).rows("zero_shot/piqa/validation.jsonl.gz"))
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"x": 1}) + "\n")
    assert list(DataRoot(tmp_path).rows("a.jsonl.gz", "x")) == [{"x": 1}]
    with pytest.raises(ValueError, match="line 1: lacks y"):
        list(DataRoot(tmp_path).rows("a.jsonl.gz", "y"))


def test_bad_input_ends_with_2(capsys, tmp_path):
    assert main(["nosuch"]) == 2
    assert main(["zeroshot"]) == 2
    assert main(["zeroshot", "--checkpoint", str(tmp_path), "--memorize-steps", "2"]) == 2
    assert "--memorize" in capsys.readouterr().err
    assert main(["zeroshot", "--list-tasks"]) == 0


def test_flags_that_hold_paths_can_be_written(tmp_path):
    words = ["--then", str(tmp_path), "--then", "b", "--data-root", "c"]
    options = options_of(parser_of(continual.TASK).parse_args(words))
    assert json.loads(json.dumps(options))["then"] == [str(tmp_path), "b"]
    assert options["data_root"] == "c"
