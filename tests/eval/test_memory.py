"""Test-time memorization: what is written, what is not, and what the baseline never sees."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np
import pytest
from test_scoring import tokenizer

from eval.errors import NotWrittenError
from eval.memory import MemorizeOptions, Memorizer
from eval.reader import ModelReader
from eval.requests import Request
from eval.scoring import Scorer
from eval.subject import Subject
from nested_jax.config import CMSConfig, Config, ModelConfig, TeachConfig
from nested_jax.models.lm import build_model

TEXTS = [list(range(5, 26)), list(range(40, 50)), list(range(7, 40))]
REQUESTS = [Request((5, 6, 7), (8, 9)), Request((40, 41), (42,)), Request((7, 8), (9, 10, 11))]


@cache
def subject(block: str) -> Subject:
    cfg = Config(
        model=ModelConfig(
            block=block, vocab_size=64, dim=16, layers=2, heads=2, mlp_hidden=24, max_len=64,
            cms=CMSConfig(periods=(8, 16), inner_lr=(0.05,)),
        ),
        teach=TeachConfig(mode="exact" if block == "hope_attention" else "off", chunk=8),
    )  # fmt: skip
    model = build_model(cfg.model)
    reader = ModelReader(model, model.init(jax.random.key(0)))
    return Subject("tiny", cfg, 0, tokenizer(), Scorer(reader, 4), 0)


def memorized(block: str, **options) -> tuple[list[float], Memorizer]:
    memorizer = Memorizer(subject(block), MemorizeOptions(on=True, **options))
    scores = {}
    for part, start in memorizer.batches(TEXTS, subject(block).scorer):
        found = subject(block).scorer.loglikelihood(
            [REQUESTS[i] for i in part], start, list(range(len(part)))
        )
        scores |= {i: s.logprob for i, s in zip(part, found, strict=True)}
    return [scores[i] for i in range(len(TEXTS))], memorizer


def baseline(block: str) -> list[float]:
    return [s.logprob for s in subject(block).scorer.loglikelihood(REQUESTS)]


def test_writing_helps_its_own_text_and_leaves_the_baseline_alone():
    before = baseline("hope_attention")
    after, memorizer = memorized("hope_attention")
    assert baseline("hope_attention") == before
    report = memorizer.report()
    # 20, 9 and 32 targets: whole periods of 8 and of 16, and a flush where targets are left.
    assert report["writes"] == {"cms_fast": 3 + 2 + 4, "cms_mid": 2 + 1 + 2}
    assert report["change"]["cms_fast"] > 0
    assert sum(after) > sum(before)


def test_a_transformer_has_nothing_to_write():
    after, memorizer = memorized("transformer")
    np.testing.assert_array_equal(after, baseline("transformer"))
    report = memorizer.report()
    assert report["writes"] == {}
    assert "nothing to write" in report["note"]


def test_writes_that_were_asked_for_and_blocked_are_an_error():
    after, memorizer = memorized("hope_attention", surprise_threshold=1e9)
    np.testing.assert_array_equal(after, baseline("hope_attention"))
    with pytest.raises(NotWrittenError, match="nothing was written"):
        memorizer.report()
