"""How answers are read: hand-made cases, the calculator, and the list of probes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from eval.core import answers
from eval.core.requests import Written, stopped
from eval.tasks.gsm8k import judge, summarize
from eval.tasks.probes import SHA256, controls, probes, sha256
from nested_jax.data.prepare.products import FACTS
from nested_jax.data.tokenizers.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def symbolic() -> Tokenizer:
    texts = [f"<<{i}*{i + 1}={i * i + i}>> so it is {i}, #### {i}\n" for i in range(300)]
    return train_tokenizer(texts, 420, symbols=FACTS, hard_vocab_limit=False)


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("#### $1,234", 1234, 1234),
        ("#### 1,234 and 5", 1234, 5),
        ("so #### -7.", -7, -7),
        ("it costs 1,234 dollars", None, 1234),
        ("5-3", None, 3),
        ("the result is -3", None, -3),
        ("x = -3.", None, -3),
        ("(4)-3", None, 3),
        ("$-3 or -$4.50", None, Fraction(-9, 2)),
        ("so 54.", None, 54),
        ("<MUL_6_9_54>", None, 54),
        ("#### <MUL_6_9_54>", 54, 54),
        ("<MUL_6_9_55>", None, None),
        ("12,34 a,5", None, 5),
        ("#### 18.00", 18, 18),
        ("#### 3\n#### 4", 3, 4),
        ("#### none\n#### 4 * 5 = 20", 20, 20),
        ("none", None, None),
    ],
)
def test_extraction(text: str, strict: float | None, flexible: float | None) -> None:
    assert answers.strict(text) == strict
    if text != "<MUL_6_9_55>":
        assert answers.flexible(text) == flexible
    assert answers.marked_or_last(text) == (flexible if strict is None else strict) or "55" in text


@pytest.mark.parametrize(
    ("text", "first", "plain"),
    [
        (" 54.", 54, 54),
        (" <MUL_6_9_54>.", 54, None),
        (" 6 * 9 = 54, no 55", 54, 54),
        (" 6 times 9 = 54", 54, 54),
        (" 6 * 9", 6, 6),
        (" 54 and 6 * 9 = 55", 54, 54),
        (" <MUL_6_9_54> 54", 54, 54),
        (" 6 * 9 = ", None, None),
        (" -3 + 5 = 2", 2, 2),
        (" nothing", None, None),
    ],
)
def test_the_first_number(text: str, first: int | None, plain: int | None) -> None:
    assert answers.first(text) == first
    assert answers.first(answers.without_symbols(text)) == plain


@pytest.mark.parametrize(
    ("expression", "want"),
    [
        ("6*9", "54"),
        ("12/60", "0.2"),
        ("100-2*(3+4)", "86"),
        ("-3+5", "2"),
        (" 1.5 * 2 ", "3"),
        ("50/3", "16.66666667"),
        ("1/0", None),
        ("2**9", None),
        ("__import__('os')", None),
        ("(1+2", None),
        ("1 2", None),
        ("", None),
        ("9" * 70, None),
    ],
)
def test_the_calculator_calculates(expression: str, want: str | None) -> None:
    assert answers.calculate(expression) == want


def test_the_calculator_writes_after_an_equals_sign(symbolic: Tokenizer) -> None:
    write = answers.calculator(symbolic)

    def after(text: str) -> str:
        return symbolic.decode(write(np.asarray(symbolic.encode(text))))

    assert after("so <<6*9=") == "54>>"
    assert after("<<2*3=6>> and <<$1,000/4=") == "250>>"
    for text in ("6*9=", "<<6*9", "<<6*9=54>>=", "<<six=", "<<1/0="):
        assert after(text) == "", text


def test_domain_tokens_are_counted_from_ids(symbolic: Tokenizer) -> None:
    ids = tuple(symbolic.encode("<MUL_6_9_54> so 6*9, #### 54"))
    symbols = answers.symbol_ids(symbolic)
    assert len(symbols) == 45
    row = judge(Written(symbolic.decode(ids), ids, True), Fraction(54), symbols)
    assert (row["domain_tokens"], row["correct"], row["digits"]) == (1, True, True)
    only = judge(Written("<MUL_6_9_54>", ids[:1], False), Fraction(54), symbols)
    assert (only["correct"], only["strict"], only["digits"]) == (True, False, False)
    found = summarize([row, only])
    assert found["accuracy"] == 1
    assert found["digits"] == 0.5
    assert found["hit_limit"] == 0.5
    assert found["domain_tokens_per_answer"] == 1
    assert found["tokens_per_answer"] == (len(ids) + 1) / 2


def test_a_tokenizer_without_domain_tokens() -> None:
    plain = train_tokenizer([f"word {i} text\n" for i in range(300)], 280)
    assert answers.symbol_ids(plain) == frozenset()


@pytest.mark.parametrize(
    ("text", "until", "want"),
    [
        ("so 54\nUser: x", ("\nUser:",), ("so 54", True)),
        ("so 54\nUse", ("\nUser:",), ("so 54\nUse", False)),
        ("so 54", (), ("so 54", False)),
    ],
)
def test_tokens_before_a_stop(
    symbolic: Tokenizer, text: str, until: tuple[str, ...], want: tuple[str, bool]
) -> None:
    ids = np.asarray(symbolic.encode(text))
    found = stopped(ids, symbolic, until)
    assert (found.text, found.ended) == want
    assert symbolic.decode(found.tokens).startswith(want[0])
    assert not symbolic.decode(found.tokens[:-1]).startswith(want[0])
    ended = stopped(np.append(ids, symbolic.eos_id), symbolic, until)
    assert (ended.text, ended.ended) == (want[0], True)
    assert symbolic.eos_id not in ended.tokens


def test_the_probes_are_those_of_the_experiment() -> None:
    found = probes()
    assert sha256(found) == SHA256
    assert len({probe.question for probe in found}) == 275
    samples = [probe.operands for probe in found if probe.group != "mul_table"]
    assert [samples[0], samples[1], samples[100], samples[101]] == [
        (91, 3),
        (13, 6),
        (82, 15),
        (4, 95),
    ]


def test_controls() -> None:
    table = [probe for probe in probes() if probe.group == "mul_table"]
    assert controls(table) == {"constant": 4 / 81, "copy": 9 / 81}
    sums = [probe for probe in probes() if probe.group == "addition"]
    assert controls(sums)["copy"] == 0
