"""Test-time memorization: what is written, what is not, and what the baseline never sees."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from doubles import tokenizer
from helpers import assert_equal

from eval.core.memorize.paths import sequence_change
from eval.core.memorize.write import Memories, MemorizeOptions, Memorizer
from eval.core.reader import ModelReader
from eval.core.requests import Request
from eval.core.scoring import Scorer
from eval.core.subject import Subject
from nested_jax.config import KINDS, CMSConfig, Config, MemoryConfig, ModelConfig, TeachConfig
from nested_jax.errors import NotWrittenError
from nested_jax.models.blocks import mixer_class
from nested_jax.models.lm import build_model
from nested_jax.models.memories import keep_memories

TEXTS = [list(range(5, 26)), list(range(40, 50)), list(range(7, 40))]
REQUESTS = [Request((5, 6, 7), (8, 9)), Request((40, 41), (42,)), Request((7, 8), (9, 10, 11))]


@cache
def subject(block: str, fast_layers: int = 1, frozen: bool = False) -> Subject:
    cfg = Config(
        model=ModelConfig(
            block=block, vocab_size=64, dim=16, layers=2, heads=2, mlp_hidden=24, max_len=64,
            memory=MemoryConfig(frozen=frozen),
            cms=CMSConfig(periods=(8, 16), inner_lr=(0.05,), fast_layers=fast_layers),
        ),
        teach=TeachConfig(mode="exact" if block == "hope_attention" else "off", chunk=8),
    )  # fmt: skip
    model = build_model(cfg.model)
    reader = ModelReader(model, jax.jit(model.init)(jax.random.key(0)))
    return Subject("tiny", cfg, 0, tokenizer(), Scorer(reader, 4), 0)


def memorized(
    block: str, order: Sequence[int] = (0, 1, 2), fast_layers: int = 1, **options
) -> tuple[list[float], Memorizer]:
    """Score the requests, each from memories of its own text; texts are given in an order."""
    chosen = subject(block, fast_layers)
    memorizer = Memorizer(chosen, MemorizeOptions(on=True, **options))
    scores = {}
    for part, start in memorizer.batches([TEXTS[i] for i in order], chosen.scorer):
        found = chosen.scorer.loglikelihood(
            [REQUESTS[order[i]] for i in part], start, list(range(len(part)))
        )
        scores |= {order[i]: s.logprob for i, s in zip(part, found, strict=True)}
    return [scores[i] for i in range(len(TEXTS))], memorizer


def baseline(block: str) -> list[float]:
    return [s.logprob for s in subject(block).scorer.loglikelihood(REQUESTS)]


@pytest.mark.slow
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


@pytest.mark.slow
def test_writes_that_were_asked_for_and_blocked_are_an_error():
    after, memorizer = memorized("hope_attention", surprise_threshold=1e9)
    np.testing.assert_array_equal(after, baseline("hope_attention"))
    with pytest.raises(NotWrittenError, match="nothing was written"):
        memorizer.report()


@pytest.mark.slow
def test_the_order_of_texts_changes_no_score_and_no_count():
    one, first = memorized("hope_attention")
    other, second = memorized("hope_attention", order=(2, 0, 1))
    np.testing.assert_allclose(other, one, atol=1e-5)
    assert second.report()["writes"] == first.report()["writes"]


@pytest.mark.slow
def test_every_step_writes_the_text_again():
    once, _ = memorized("hope_attention")
    twice, memorizer = memorized("hope_attention", steps=2)
    assert memorizer.report()["writes"] == {"cms_fast": 2 * 9, "cms_mid": 2 * 5}
    assert memorizer.report()["texts"] == 2 * len(TEXTS)
    assert sum(twice) > sum(once)


@pytest.mark.slow
def test_memories_that_are_not_reset_know_the_texts_before():
    each, _ = memorized("hope_attention")
    carried, memorizer = memorized("hope_attention", reset=False)
    assert carried[0] == pytest.approx(each[0], abs=1e-5)
    assert carried[2] != pytest.approx(each[2], abs=1e-3)
    assert memorizer.report()["writes"] == {"cms_fast": 9, "cms_mid": 5}
    assert not memorizer.report()["reset"]
    again, _ = memorized("hope_attention", order=(1, 0, 2), reset=False)
    assert again[0] != pytest.approx(each[0], abs=1e-3)


@pytest.mark.slow
def test_paths_and_layers_choose_what_is_written():
    both, _ = memorized("hope_attention")
    mid, memorizer = memorized("hope_attention", paths="cms_mid,titan")
    report = memorizer.report()
    assert report["writes"] == {"cms_mid": 5}
    assert report["absent_paths"] == ["titan"]
    assert mid != pytest.approx(both, abs=1e-4)
    assert mid != pytest.approx(baseline("hope_attention"), abs=1e-4)
    _, all_layers = memorized("hope_attention", fast_layers=2)
    assert all_layers.report()["writes"] == {"cms_fast": 2 * 9, "cms_mid": 2 * 5}
    for layers in ("last", "1", "-1"):
        _, last = memorized("hope_attention", fast_layers=2, layers=layers)
        assert last.report()["writes"] == {"cms_fast": 9, "cms_mid": 5}
    with pytest.raises(NotWrittenError, match="layers '0'"):
        memorized("hope_attention", layers="0")[1].report()  # it has no fast weights


@pytest.mark.slow
def test_the_threshold_blocks_chunks_and_counts_them():
    losses = []
    for threshold in (4.0, 4.15, 4.3):
        scores, memorizer = memorized("hope_attention", surprise_threshold=threshold)
        report = memorizer.report()
        total = {k: v + report["blocked"].get(k, 0) for k, v in report["writes"].items()}
        assert total == {"cms_fast": 9, "cms_mid": 5}
        losses.append((report["writes"]["cms_fast"], sum(scores)))
    assert losses[0][0] > losses[-1][0], losses


@pytest.mark.slow
def test_the_answer_is_marked_as_leakage():
    _, memorizer = memorized("hope_attention", use_correct_answer=True)
    assert memorizer.report()["leakage"]
    assert not memorized("hope_attention")[1].report()["leakage"]


@pytest.mark.slow
def test_reading_writes_a_sequence_memory_and_says_by_how_much():
    _, memorizer = memorized("deltanet")
    report = memorizer.report()
    assert report["writes"] == {"delta": sum(map(len, TEXTS)) * 2}
    assert report["change"]["delta"] > 0
    chosen = subject("deltanet")
    learner = Memorizer(chosen, MemorizeOptions(on=True))
    nats = learner.rolling(TEXTS, 0, chosen.scorer)
    plain = chosen.scorer.rolling(TEXTS, 0)
    for a, b in zip(nats, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # it is written in both
    assert learner.report()["change"]["delta"] > 0


@pytest.mark.slow
def test_reading_scores_a_token_before_the_write_that_it_causes():
    chosen = subject("hope_attention")
    learner = Memorizer(chosen, MemorizeOptions(on=True))
    text = [5, 6, 7, 8, 9, 10, 11, 12] * 4
    (learned,) = learner.rolling([text], 0, chosen.scorer)
    (plain,) = chosen.scorer.rolling([text], 0)
    np.testing.assert_allclose(learned[:8], plain[:8], atol=1e-5)  # the first chunk
    assert learned[16:].mean() < plain[16:].mean()
    assert learner.report()["writes"] == {"cms_fast": 4, "cms_mid": 2}


@pytest.mark.slow
@pytest.mark.parametrize("fast_layers", [1, 2])
def test_the_memories_of_every_layer_are_kept_and_counted(fast_layers: int) -> None:
    """Also that of the first taught block, which the state holds apart from the others."""
    reader = subject("hope", fast_layers).scorer.reader
    state = reader.model.init_state(reader.params, 1)
    state, _ = jax.jit(reader.model.apply)(reader.params, state, jnp.arange(8)[None])
    kept = keep_memories(state, sequence=True)
    pairs = ((state.prefix, kept.prefix), (state.entry, kept.entry))
    pairs += ((state.now.suffix, kept.now.suffix),)
    there = [(old, new) for old, new in pairs if old != ()]
    assert sum(old.memories.memory.fast[0].shape[1] for old, _ in there) == 2  # layers
    for old, new in there:
        assert_equal(new.memories, old.memories)
        assert not any(np.any(x) for x in jax.tree.leaves(new.tails))
    written = sequence_change(reader.params, state)
    fresh = jax.tree.map(jnp.zeros_like, state.entry)
    assert (
        float(jnp.abs(sequence_change(reader.params, state._replace(entry=fresh)) - written)[0]) > 0
    )


QUICK = ("titans_mac", "hope_hybrid")
WITH_MEMORY = [name for name, kind in KINDS.items() if kind.memory or kind.cms]
ATTENDING = [n for n, kind in KINDS.items() if kind.memory and kind.attention != "none"]


def every(names: Sequence[str]) -> list:
    """Parametrize over block kinds; two of them by default."""
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("block", every(WITH_MEMORY))
def test_every_kind_with_a_memory_is_written(block: str) -> None:
    after, memorizer = memorized(block)
    report = memorizer.report()
    kind = KINDS[block]
    names = {kind.memory} if kind.memory else set()
    if kind.cms:
        names |= {"cms_fast", "cms_mid"}
    assert set(report["writes"]) == names
    assert all(count > 0 for count in report["writes"].values())
    assert all(change > 0 for change in report["change"].values())
    assert "note" not in report
    assert after != pytest.approx(baseline(block), abs=1e-6)


@pytest.mark.parametrize("block", every(ATTENDING))
def test_nothing_but_the_memory_is_kept(block: str) -> None:
    """With a memory that is never written, a text that was read leaves no trace."""
    chosen = subject(block, frozen=True)
    memorizer = Memorizer(chosen, MemorizeOptions(on=True))
    assert KINDS[block].memory not in memorizer.available
    reader = memorizer.reader
    state = reader.writable(len(TEXTS), 40)
    tokens = np.zeros((len(TEXTS), 40), np.int32)
    for row, text in zip(tokens, TEXTS, strict=True):
        row[: len(text)] = text
    lengths = np.asarray([len(text) for text in TEXTS], np.int32)
    state = keep_memories(reader.read(state, tokens, lengths), sequence=True)
    memorizer.sequence = True  # as for a memory that is written
    found = chosen.scorer.loglikelihood(REQUESTS, Memories(memorizer, state), [0, 1, 2])
    plain = chosen.scorer.loglikelihood(REQUESTS)
    np.testing.assert_allclose([f.logprob for f in found], [p.logprob for p in plain], atol=1e-4)


def test_every_mixer_of_the_table_can_be_imported() -> None:
    for block in KINDS:
        assert mixer_class(ModelConfig(block=block)).__name__ in KINDS[block].mixer
