"""Token injection: exact inverse, the rate, and bytes of the original."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_data import synthetic_source

from nested_jax.data.prepare.inject import (
    FORMS,
    PAIRS,
    Injection,
    check_symbols,
    inject,
    original_bytes,
    restore,
    rewrite_file,
)
from nested_jax.data.shards import byte_lengths
from nested_jax.data.tokenizers.tokenizer import Tokenizer, train_tokenizer

ALL = Injection("mul_tokens")
SYMBOL_PARTS = ("<mul_7_8>", "<mul_form_1>", "<mul_form_9>", "<mul_literal>", "<mul_", "7_8>", "<")
FRAGMENTS = st.sampled_from(
    (*SYMBOL_PARTS, "2 * 3", "2*3", "4 x 5", "6\u00d77", " times ", "7", "8", "*", " ", ".", "x")
)
TEXT = st.lists(st.one_of(FRAGMENTS, st.text(max_size=3)), max_size=9).map("".join)


@given(TEXT, st.sampled_from([0.0, 0.5, 1.0]))
def test_restore_is_the_exact_inverse(text: str, rate: float) -> None:
    assert restore(inject(text, Injection("mul_tokens", rate)).text) == text


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("7 * 8 = 56", "<mul_7_8> = 56"),
        ("so 3x4.", "so <mul_form_3><mul_3_4>."),
        ("12*3 1.2*3 2*3.5 x2*3 2*3y", None),
        ("2*3*4 and 2 * 3 * 4 and 2*3^2", None),
        ("9 times 9!", "<mul_form_6><mul_9_9>!"),
        ("<mul_1_2>", "<mul_literal><mul_1_2>"),
    ],
)
def test_spans(text: str, want: str | None) -> None:
    assert inject(text, ALL).text == (text if want is None else want)


def test_counts_rate_and_determinism() -> None:
    text = " ; ".join(FORMS[i % 7].format(i % 10, i // 10 % 10) for i in range(3000))
    whole = inject(text, ALL)
    assert whole.counts == {"products": 3000, "rewritten": 3000, "literal": 0}
    half = inject(text, Injection("mul_tokens", 0.5, seed=1))
    assert 1350 < half.counts["rewritten"] < 1650
    assert half == inject(text, Injection("mul_tokens", 0.5, seed=1))
    assert half.text != inject(text, Injection("mul_tokens", 0.5, seed=2)).text
    baseline = inject(text, Injection())
    assert baseline.text == text
    assert baseline.counts["products"] == 3000


@pytest.fixture(scope="module")
def symbolic() -> Tokenizer:
    texts = [synthetic_source(i) for i in range(200)]
    return train_tokenizer(texts, 480, symbols=PAIRS)


def test_bytes_are_those_of_the_original(symbolic: Tokenizer) -> None:
    check_symbols(symbolic, ALL)
    lengths_S = byte_lengths(symbolic, original_bytes(ALL))
    for form in FORMS:
        text = f"so {form.format(7, 8)} it is, {form.format(0, 9)}."
        ids = symbolic.encode(inject(text, ALL).text)
        assert lengths_S[ids].sum() == len(text.encode())
        assert symbolic.id_of("<mul_7_8>") in ids


def test_a_tokenizer_without_the_symbols(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"lacks 107 symbols .* --symbols mul_tokens"):
        check_symbols(tokenizer, ALL)


def test_files(tmp_path: Path) -> None:
    rows = [{"id": 1, "body": "2 * 3 and <mul_2_3>"}, {"id": 2, "body": "none"}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    a, b, c = (tmp_path / f"{name}.jsonl" for name in "abc")
    counts = rewrite_file(a, b, ALL, column="body", restoring=False)
    assert counts == {"documents": 2, "products": 1, "rewritten": 1, "literal": 1}
    assert "<mul_2_3> and <mul_literal><mul_2_3>" in b.read_text()
    rewrite_file(b, c, ALL, column="body", restoring=True)
    assert c.read_text() == lines
    with pytest.raises(ValueError, match=r"a\.jsonl:1: lacks text; the record has id, body"):
        rewrite_file(a, b, ALL, column="text", restoring=False)
    with pytest.raises(ValueError, match="no such file"):
        rewrite_file(tmp_path / "x", b, ALL, column="text", restoring=False)


@pytest.mark.parametrize(
    "fields",
    [
        {"condition": "more"},
        {"rate": 1.5},
        {"scheme": "more"},
        {"scheme": "facts", "rule": "more"},
        {"rule": "original"},
        {"condition": "mul_placebo"},
    ],
)
def test_bad_injection(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="wants"):
        Injection(**fields)
