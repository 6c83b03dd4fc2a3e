"""Tasks, paths, statistics and needles: what needs no model of ours."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
from doubles import HandMade, uniform

from eval.__main__ import main
from eval.core import cli
from eval.core.cli import Command, commands, options_of, tasks
from eval.core.datasets import DataRoot
from eval.core.flags import choose, flag, parse_lengths
from eval.core.memorize.paths import choose_layers, choose_paths, model_paths
from eval.core.scoring import Scorer
from eval.core.stats import bootstrap, mcnemar, mean_stderr, sign_flip, wilson
from eval.core.subject import Subject
from eval.tasks import continual, niah, perplexity, zeroshot
from eval.tasks.continual import own_stages, summarize
from eval.tasks.needles import KINDS, Haystack, make_item
from eval.tasks.zeroshot_files import SETS, Question
from nested_jax.config import CMSConfig, Config, ModelConfig
from nested_jax.data.tokenizers.tokenizer import train_tokenizer
from nested_jax.losses import perplexity as perplexity_of

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
        niah.ask_at_lengths(subject, flags, ["s1", "mk"], make)
    assert asked == [("s1", 40, 1), ("mk", 40, 1), ("s1", 20, 1), ("mk", 20, 1)]


def oracle(tokenizer, items):
    """Copies: after a question it writes the values that the text of the item has for it."""
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
    assert mean_stderr([1.0, 3.0]) == (2.0, 1.0)  # deviation sqrt 2, over sqrt 2
    assert mean_stderr([4.0]) == (4.0, 0.0)


def test_paired_tests_by_hand():
    """McNemar: of n answers that differ, k or fewer one way, twice the tail of a fair coin."""
    assert mcnemar([True] * 8, [False] * 8) == pytest.approx(2 / 256)
    a, b = [True, *[False] * 9, True], [False, *[True] * 9, True]
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(2 * (1 + 10) / 1024)
    assert mcnemar([True, False], [False, True]) == 1.0
    assert mcnemar([True, False], [True, False]) == mcnemar([], []) == 1.0
    # Signs of 3, -1, 2: sums 4, 6, 0, 2 and their negatives; 4 of 8 are at least 4 from 0.
    assert sign_flip([3.0, -1.0, 2.0]) == pytest.approx(4 / 8)
    assert sign_flip([1.0] * 8) == pytest.approx(2 / 256)
    assert sign_flip([0.5]) == sign_flip([0.0] * 20) == sign_flip([]) == 1.0
    many = np.random.default_rng(0).normal(0.02, 1.0, 400)
    normal = 2 * (1 - NormalDist().cdf(abs(many.mean()) / (many.std() / 20)))
    assert sign_flip(many) == pytest.approx(normal, abs=0.02)
    assert sign_flip(many) == sign_flip(many)


def test_the_bootstrap_by_hand():
    """Two items, 0 and 1: means 0, 0.5 and 1 in quarters, so that both tails hold an end."""
    assert bootstrap([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap([0.25]) == (0.25, 0.25)
    assert bootstrap([2.0] * 5) == (2.0, 2.0)
    values = np.random.default_rng(0).normal(size=900)
    low, high = bootstrap(values)
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 / 30, values.mean() + 1.96 / 30), abs=0.01
    )


def test_each_quantity_against_a_hand_count():
    """Three questions of 2, 4 and 2 choices, of 1 to 4 characters; what the scores make of them."""
    questions = [
        Question("0", [("", "")] * 2, [1, 4], 1),  # sums right, per character too
        Question("1", [("", "")] * 4, [1, 1, 1, 2], 3),  # the last per character alone
        Question("2", [("", "")] * 2, [2, 2], 1),  # wrong both times
    ]
    sums = [[-5.0, -4.0], [-3.0, -3.5, -9.0, -4.0], [-1.0, -2.0]]
    rows = zeroshot.judge(questions, [[_score(x) for x in row] for row in sums])
    found = zeroshot.summarize("choice", questions, rows)
    assert found["acc"] == pytest.approx(1 / 3)
    assert found["acc_norm"] == pytest.approx(2 / 3)
    assert found["acc_stderr"] == found["acc_norm_stderr"] == pytest.approx((2 / 3 / 2 / 3) ** 0.5)
    assert found["margin"] == pytest.approx((1.0 - 1.0 - 1.0) / 3)
    assert found["chance"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 2) / 3)
    assert found["majority"] == pytest.approx(2 / 3)  # answer 1 of two questions
    assert found["n"] == 3
    words = [Question(str(i), [("", "")], [1], 0) for i in range(2)]
    scores = [SimpleNamespace(logprob=x, greedy=x > -1, tokens=1) for x in (-0.5, -2.5)]
    found = zeroshot.summarize("word", words, zeroshot.judge(words, [[s] for s in scores]))
    assert (found["acc"], found["ppl"]) == (0.5, pytest.approx(math.e**1.5))


def test_bits_per_byte_and_perplexity_against_a_hand_count():
    lengths = np.asarray([0, 1, 2, 4])  # bytes of the tokens
    subject = SimpleNamespace(tokenizer=SimpleNamespace(piece_byte_lengths=lengths))
    docs = [("a", [1, 2, 3]), ("b", [3])]
    nats = [np.asarray([1.0, 2.0, 3.0]), np.asarray([6.0])]
    found = perplexity.summarize(subject, docs, nats)
    assert found == {
        "loss": 3.0,
        "ppl": pytest.approx(math.e**3),
        "bits_per_byte": pytest.approx(12 / math.log(2) / 11),
        "tokens": 4,
        "bytes": 11,
        "n": 2,
    }
    assert perplexity_of(1e6) == math.exp(700)


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
        choose("pika", SETS, "--tasks")


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path}.*--data-root"):
        list(DataRoot(tmp_path).rows("zero_shot/piqa/validation.jsonl.gz"))
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"x": 1}) + "\n")
    assert list(DataRoot(tmp_path).rows("a.jsonl.gz", x=int)) == [(f"{file}:1", {"x": 1})]
    with pytest.raises(ValueError, match=r"a.jsonl:1: lacks y"):
        list(DataRoot(tmp_path).rows("a.jsonl.gz", y=int))


@pytest.fixture
def one_more_file(tmp_path, monkeypatch):
    """Add a task in one file, in a folder that eval.tasks then also looks into."""
    import eval.tasks

    (tmp_path / "heights.py").write_text(
        "from eval.core.cli import Findings, Task\n"
        "from eval.core.flags import flag\n"
        "evaluate = lambda subject, flags: Findings({'all': {'height': flags.feet}}, [])\n"
        "FLAGS = (flag('--feet', 1, 'how high', least=1),)\n"
        "TASK = Task('heights', 'how high', 'doc', FLAGS, evaluate)\n"
    )
    monkeypatch.setattr(eval.tasks, "__path__", [*eval.tasks.__path__, str(tmp_path)])
    commands.cache_clear()
    yield
    commands.cache_clear()
    sys.modules.pop("eval.tasks.heights")


def test_a_task_is_added_in_one_file(one_more_file, monkeypatch, capsys, tmp_path):
    assert main(["--help"]) == 0
    assert re.search(r"^  heights +how high$", capsys.readouterr().out, re.MULTILINE)
    subject = Subject("x", Config(), 0, SimpleNamespace(hash="0"), None, 0)
    monkeypatch.setattr(cli, "subject_of", lambda flags: subject)
    out = tmp_path / "missing" / "a.json"
    assert main(["heights", "--checkpoint", "x", "--feet", "6", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["metrics"] == {"all": {"height": 6}}
    assert main(["heights", "--checkpoint", "x", "--feet", "0"]) == 2
    assert "--feet=0: wants 1 or more" in capsys.readouterr().err
    words = ["compare", "--checkpoint", str(tmp_path), "--to", str(tmp_path), "--task"]
    assert main([*words, "nosuch"]) == 2
    assert "heights" in capsys.readouterr().err


def test_every_module_of_a_task_is_found_and_explains_itself(capsys):
    """By looking at the files: a record that nothing finds is a command that nobody can call."""
    root = Path(cli.__file__).parent.parent
    holding = {
        file.stem
        for folder in cli.FOLDERS
        for file in (root / folder).glob("*.py")
        if re.search(r"^(TASK|COMMAND) = ", file.read_text(), re.MULTILINE)
    }
    assert len(holding) == len(commands()) > 20
    assert {"zeroshot", "niah", "harness"} < set(tasks())
    for name, command in commands().items():
        assert command.name == name
        assert isinstance(command, Command) != (name in tasks())
        assert main([name, "--help"]) == 0
        assert all(each.name.strip("-") in capsys.readouterr().out for each in command.flags[:1])


def test_numbers_are_held_to_their_range_before_anything_is_loaded(capsys):
    """Every number that has a least value, of every task, one below it; and what is no number."""
    tried = 0
    for task in tasks().values():
        for each in (*cli.COMMON, *task.flags):
            if each.least is not None:
                assert main([task.name, "--checkpoint", "x", each.name, str(each.least - 1)]) == 2
                said = f"{each.name}={each.least - 1}: wants {each.least}"
                assert said in capsys.readouterr().err
                tried += 1
    assert tried > 50
    for number in ("nan", "inf"):
        words = ["--memorize", "--memorize-surprise-threshold", number]
        assert main(["niah", "--checkpoint", "x", *words]) == 2
        assert f"threshold={number}: wants a finite number" in capsys.readouterr().err


def test_lists_of_names_and_lengths():
    assert choose("b, a,b", "abc", "--x") == ["b", "a"]
    assert choose("all", "abc", "--x") == ["a", "b", "c"]
    for text in ("", ",", "a,d"):
        with pytest.raises(ValueError, match=r"--x=.*: wants all, or some of a, b, c"):
            choose(text, "abc", "--x")
    assert parse_lengths("512, 64,512") == [512, 64]
    for text in ("", "0", "-4", "1.5", "\u00b2", "8,,9"):
        with pytest.raises(ValueError, match=r"--context-lengths=.*: wants tokens"):
            parse_lengths(text)
    assert flag("--a", 2).how == {}


def test_bad_input_ends_with_2(capsys, tmp_path):
    assert main(["nosuch"]) == 2
    assert main(["zeroshot"]) == 2
    assert main(["zeroshot", "--checkpoint", str(tmp_path), "--memorize-steps", "2"]) == 2
    assert "--memorize" in capsys.readouterr().err
    assert main(["zeroshot", "--list-tasks"]) == 0


def test_flags_that_hold_paths_can_be_written(tmp_path):
    words = ["--then", str(tmp_path), "--then", "b", "--data-root", "c"]
    options = options_of(continual.TASK.parser().parse_args(words))
    assert json.loads(json.dumps(options))["then"] == [str(tmp_path), "b"]
    assert options["data_root"] == "c"
