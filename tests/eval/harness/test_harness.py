"""The lm-eval adapter: its three methods without lm_eval, and the real loop where it is there."""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from doubles import HandMade, bigram, order_two, tokenizer

from eval.__main__ import main
from eval.core.datasets import DataRoot
from eval.core.requests import encode_pair
from eval.core.scoring import Scorer
from eval.core.subject import Subject
from eval.core.texts import documents
from eval.harness import adapter as harness
from eval.harness import local_tasks as harness_tasks
from eval.harness.adapter import HarnessMethods, writing
from eval.tasks import perplexity, zeroshot
from eval.tasks.zeroshot_files import SETS
from nested_jax.config import Config

VOCAB = 300


def subject(reader: HandMade) -> Subject:
    return Subject("hand-made", Config(), 0, tokenizer(), Scorer(reader, 4), 0)


def instances(*arguments):
    return [SimpleNamespace(args=a) for a in arguments]


PAIRS = [("the cat sat", " on the mat"), ("", "the dog"), ("the dog  ", "ran"), ("the cat", " ran")]


def total(reader: HandMade, context, continuation) -> float:
    """Score token by token, each after all tokens before it."""
    whole = [*context, *continuation]
    steps = range(len(context), len(whole))
    return sum(float(reader.log_p(tuple(whole[:i]))[whole[i]]) for i in steps)


@pytest.fixture
def stand_in(monkeypatch):
    """The least of lm_eval that the adapter needs."""

    class LM:
        def __init__(self):
            self.cache_hook = None

    names = {}
    package, api, model, registry = (
        ModuleType(n)
        for n in ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.api.registry")
    )
    model.LM = LM
    registry.register_model = lambda name: lambda cls: names.setdefault(name, cls)
    for module in (package, api, model, registry):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    harness.register.cache_clear()
    yield names
    harness.register.cache_clear()


def test_the_model_is_registered_by_its_name(stand_in):
    cls = harness.register()
    assert stand_in == {"nested_jax": cls}
    model = cls(subject(order_two(VOCAB)), too_long="left", device=None)
    assert model.too_long == "left"
    assert model.loglikelihood(instances(PAIRS[0]))[0][0] < 0
    with pytest.raises(ValueError, match=r"model_args=\{'devise': 'cuda'\}"):
        cls(subject(order_two(VOCAB)), devise="cuda")
    with pytest.raises(ValueError, match="checkpoint=''"):
        cls()


def test_without_lm_eval_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'nested-jax\[eval\]'"):
        harness_tasks.import_harness("lm_eval")


def test_loglikelihood_is_the_product_of_the_tokens():
    reader = order_two(VOCAB)
    found = HarnessMethods(subject(reader)).loglikelihood(instances(*PAIRS))
    for pair, (logprob, greedy) in zip(PAIRS, found, strict=True):
        assert logprob == pytest.approx(total(reader, *encode_pair(tokenizer(), *pair)), abs=1e-9)
        assert isinstance(greedy, bool)


def test_rolling_scores_every_token_behind_the_separator():
    reader = order_two(VOCAB)
    texts = ["the cat sat on the mat", "", "the dog"]
    found = HarnessMethods(subject(reader)).loglikelihood_rolling(instances(*((t,) for t in texts)))
    eos = tokenizer().eos_id
    wanted = [total(reader, [eos], tokenizer().encode(text)) for text in texts]
    assert found == pytest.approx(wanted, abs=1e-9)


def test_generation_takes_the_options_of_a_task():
    tok = tokenizer()
    script = [*tok.encode("the cat sat. on the mat"), tok.eos_id]

    def log_p(history):
        at = len(history) - len(tok.encode("the dog"))
        return np.log(np.eye(VOCAB)[script[min(at, len(script) - 1)]] + 1e-9)

    model = HarnessMethods(subject(HandMade(log_p)))
    asked = [
        ("the dog", {"until": ["."], "max_gen_toks": 20}),
        ("the dog", {"until": "\n", "do_sample": False, "temperature": 0.0}),
        ("the dog", {"until": ["."], "max_gen_toks": 20}),
        ("the dog", {"until": [], "max_gen_toks": 2}),
    ]
    found = model.generate_until(instances(*asked))
    cat = "the cat sat"
    assert found == [cat, "the cat sat. on the mat", cat, tok.decode(script[:2])]
    with pytest.raises(ValueError, match="generation option='beams'"):
        writing({"beams": 4})


def test_sampling_options():
    until, count, draw = writing({"do_sample": True, "temperature": 0.7, "top_p": 0.9})
    assert (until, count) == ([], harness.MAX_TOKENS)
    assert (draw.how.temperature, draw.how.top_p) == (0.7, 0.9)
    for options, temperature in (
        ({}, 0.0),
        ({"temperature": 0.7}, 0.7),
        ({"do_sample": True}, 1.0),
        ({"do_sample": False}, 0.0),
        ({"do_sample": None, "temperature": 0.7}, 0.7),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"do_sample": True, "temperature": 0}, 0.0),  # greedy, as in the harness
        ({"do_sample": True, "temperature": 0.0, "top_p": 0.9}, 0.0),
    ):
        assert writing(options)[2].how.temperature == temperature, options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": float("nan")}, "temperature=nan: wants a finite number"),
        ({"temperature": "hot"}, "temperature='hot': wants a finite number"),
        ({"do_sample": "yes"}, "do_sample='yes': wants a boolean"),
        ({"max_gen_toks": 2.5}, "max_gen_toks=2.5: wants a count"),
        ({"until": 7}, "until=7: wants a string or a list of strings"),
        ({"until": [7]}, r"until=\[7\]: wants a string"),
        ({"do_sample": True, "top_k": -1}, "top_k=-1"),
        ({"do_sample": True, "top_p": 0}, "top_p=0"),
    ],
)
def test_generation_options_that_mean_nothing_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        writing(options)


def test_what_is_too_long_is_refused_or_cut_on_the_left():
    table = np.random.default_rng(1).dirichlet(np.ones(VOCAB), VOCAB)
    reader = bigram(table, limit=8)
    long = ("the cat sat on the mat, the dog ran at the cat. " * 2, " the mat")
    with pytest.raises(ValueError, match="holds 8 tokens"):
        HarnessMethods(subject(reader)).loglikelihood(instances(long))
    model = HarnessMethods(subject(reader), "left")
    ((logprob, _),) = model.loglikelihood(instances(long))
    # A bigram model forgets all but the last token: cutting on the left changes nothing.
    assert logprob == pytest.approx(total(reader, *encode_pair(tokenizer(), *long)))
    assert len(model.prompt(long[0], 3)) == 6
    with pytest.raises(ValueError, match="continuation=9"):
        model.fit((1, 2), 9)
    with pytest.raises(ValueError, match="too_long='middle'"):
        HarnessMethods(subject(reader), "middle")


ROW = {
    "query": "Why?", "context": "Sam ran.", "question": "Who", "passage": "Sam.", "target": "x",
    "sentence": "Sam saw _ run.", "option1": "Al", "option2": "Bo",
    "choices": ["a", "b"], "gold": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_the_harness_is_given_the_requests_that_we_score(name):
    """Build the harness's requests by its documented rules; they must be our pairs."""
    task = SETS[name]
    how, _ = harness_tasks.FORMS[task.kind](task)
    text = how["doc_to_text"]
    if callable(text):
        assert text(ROW) == ROW["gold"]
        target = " " + how["doc_to_target"](ROW)
        found = [(context, target) for context in how["doc_to_choice"](ROW)]
    else:
        for column, value in ROW.items():
            text = text.replace("{{" + column + "}}", str(value))
        if how["output_type"] == "loglikelihood":
            found = [(text, how["doc_to_target"].replace("{{target}}", ROW["target"]))]
        else:
            found = [(text, f" {choice}") for choice in ROW[how["doc_to_choice"]]]
            assert how["doc_to_target"] == "gold"
    assert found == task.pairs(ROW)


def test_unknown_names_end_with_2(capsys, tmp_path):
    with pytest.raises(ValueError, match=r"wants all, or some of piqa.*wikitext2"):
        harness_tasks.choose_local("hellaswag,pika")
    assert main(["harness", "--checkpoint", str(tmp_path)]) == 2
    assert "wants a workdir with checkpoints" in capsys.readouterr().err
    assert main(["harness", "--max-samples", "3", "--", "run"]) == 2


# --- the real harness ----------------------------------------------------------------------------

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="wants the extra eval"
)


@needs_lm_eval
@pytest.mark.filterwarnings("default")
def test_the_harness_and_we_agree(tmp_path):
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "mat", "dog", "ran", "at"]
    phrase = lambda n: " ".join(rng.choice(words, n))  # noqa: E731
    rows = [
        {"id": str(i), "query": phrase(6), "choices": [phrase(n) for n in (2, 4, 3)],
         "gold": int(rng.integers(3)), "context": phrase(9), "target": phrase(1)}
        for i in range(30)
    ]  # fmt: skip
    names = ["hellaswag", "arc_easy", "lambada"]
    for name in names:
        file = tmp_path / SETS[name].file
        file.parent.mkdir(parents=True)
        file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    texts = [{"text": phrase(40)} for _ in range(5)]
    file = tmp_path / "lm/code/test.jsonl.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, texts)).encode()))
    flags = argparse.Namespace(max_samples=0, num_fewshot=0, seed=0, tasks=",".join(names))
    flags.data_root, flags.memorize = tmp_path, False
    who, root = subject(order_two(VOCAB)), DataRoot(tmp_path)
    harness.register.cache_clear()
    model = harness.register()(who)
    metrics, items = harness_tasks.run_local(model, [*names, "code"], root, flags)
    for name in names:
        questions = list(SETS[name].questions(root))
        ours = zeroshot.judge(questions, zeroshot.score(who, zeroshot.encode(who, questions)))
        found = [item for item in items if item["group"] == name]
        for mine, theirs in zip(ours, found, strict=True):
            assert mine["logprobs"] == pytest.approx(theirs["logprobs"], abs=1e-9)
            assert mine["correct"] == theirs["correct"]
        wanted = zeroshot.summarize(SETS[name].kind, questions, ours)
        for key in metrics[name].keys() & wanted.keys():
            assert metrics[name][key] == pytest.approx(wanted[key]), (name, key)
    assert [row["id"] for row in harness_tasks.rows_of("lambada", root, 4)] == ["0", "1", "2", "3"]
    flags.num_fewshot = 1
    _, shown = harness_tasks.run_local(model, ["arc_easy"], root, flags)
    alone = {item["id"]: item["logprobs"] for item in items if item["group"] == "arc_easy"}
    assert all(item["logprobs"] != alone[item["id"]] for item in shown)
    docs = perplexity.tokenized(who, documents(root, "code", "test"), 0, 0)
    wanted = perplexity.summarize(who, docs, perplexity.streams(who, docs, None))
    assert metrics["code"]["bits_per_byte"] == pytest.approx(wanted["bits_per_byte"], abs=1e-6)
    assert metrics["code"]["byte_perplexity"] == pytest.approx(
        math.exp(wanted["loss"] * wanted["tokens"] / wanted["bytes"])
    )


@needs_lm_eval
@pytest.mark.parametrize(("length", "limit"), [(7, 9), (9, 9), (20, 9), (37, 4)])
def test_our_windows_are_those_of_the_harness(length, limit):
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    from eval.core.requests import windows

    tokens = list(range(1, length + 1))
    theirs = map(make_disjoint_window, get_rolling_token_windows(tokens, 0, limit, 1))
    for window, (context, scored) in zip(windows(tokens, 0, limit), theirs, strict=True):
        assert (list(window.context), list(window.scored)) == (context, scored)
