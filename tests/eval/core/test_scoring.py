"""The scorer against models of known likelihoods, and against a model of ours read plainly."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from doubles import HandMade, bigram, order_two, tokenizer, uniform
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.core.reader import ModelReader
from eval.core.requests import Request, bucket, encode_pair, room, windows
from eval.core.schedule import choose_calls
from eval.core.scoring import Scorer
from nested_jax.config import MeshConfig, ModelConfig
from nested_jax.models.lm import build_model
from nested_jax.sharding import make_mesh

VOCAB = 11


def requests(seed: int, count: int = 13) -> list[Request]:
    rng = np.random.default_rng(seed)
    draw = lambda n: tuple(int(t) for t in rng.integers(1, VOCAB, n))  # noqa: E731
    contexts = [draw(n) for n in rng.integers(1, 30, 5)]
    return [Request(contexts[rng.integers(5)], draw(rng.integers(1, 20))) for _ in range(count)]


def plain(reader: HandMade, request: Request) -> tuple[float, bool]:
    """Score one request token by token."""
    history, total, greedy = list(request.context), 0.0, True
    for token in request.continuation:
        log_p = reader.log_p(tuple(history))
        total, greedy = total + log_p[token], greedy and int(np.argmax(log_p)) == token
        history.append(token)
    return total, greedy


def test_a_uniform_model_gives_t_ln_vocab():
    scorer = Scorer(uniform(VOCAB))
    for request, score in zip(requests(0), scorer.loglikelihood(requests(0)), strict=True):
        assert score.logprob == pytest.approx(-len(request.continuation) * math.log(VOCAB))
        assert score.tokens == len(request.continuation)
    texts = [[1] * 3, [2] * 40, [5] * 2100]
    for limit in (None, 16):
        nats = Scorer(uniform(VOCAB, limit)).rolling(texts, prefix=0)
        assert [len(n) for n in nats] == [3, 40, 2100]
        assert [n.sum() for n in nats] == pytest.approx([len(t) * math.log(VOCAB) for t in texts])


def test_a_bigram_model_gives_the_products_of_its_table():
    table = np.random.default_rng(1).dirichlet(np.ones(VOCAB), VOCAB)
    (score,) = Scorer(bigram(table)).loglikelihood([Request((3, 4), (5, 6, 7))])
    assert score.logprob == pytest.approx(math.log(table[4, 5] * table[5, 6] * table[6, 7]))
    (nats,) = Scorer(bigram(table)).rolling([[5, 6, 7]], prefix=2)
    np.testing.assert_allclose(nats, -np.log([table[2, 5], table[5, 6], table[6, 7]]))
    best = int(np.argmax(table[4]))
    (score,) = Scorer(bigram(table)).loglikelihood([Request((3, 4), (best,))])
    assert score.greedy


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([1, 64, 10**6]))
def test_batching_buckets_and_order_change_no_score(seed, batch_size, batch_tokens):
    wanted = requests(seed)
    order = np.random.default_rng(seed).permutation(len(wanted))
    reader = order_two(VOCAB)
    scores = Scorer(reader, batch_size, batch_tokens).loglikelihood([wanted[i] for i in order])
    for i, score in zip(order, scores, strict=True):
        total, greedy = plain(reader, wanted[i])
        assert score.logprob == pytest.approx(total, abs=1e-9)
        assert score.greedy == greedy


def test_equal_prompts_are_read_once():
    reader = order_two(VOCAB)
    context = tuple(range(1, 10)) * 3
    Scorer(reader).loglikelihood([Request(context, (i,)) for i in range(1, 5)])
    assert reader.tokens_read == len(context) - 1 + 4


@pytest.mark.parametrize("questions", [1, 7])
def test_examples_before_all_questions_are_read_once(questions):
    rng = np.random.default_rng(2)
    draw = lambda n: tuple(int(t) for t in rng.integers(1, VOCAB, n))  # noqa: E731
    examples = draw(90)
    asked = [(i, *draw(6)) for i in range(1, questions + 1)]
    wanted = [Request(examples + q, draw(n)) for q in asked for n in (3, 1, 5)]
    reader = order_two(VOCAB)
    scores = Scorer(reader, batch_size=8).loglikelihood(wanted)
    for request, score in zip(wanted, scores, strict=True):
        assert score.logprob == pytest.approx(plain(reader, request)[0], abs=1e-9)
    assert reader.tokens_read == 90 + questions * (6 + 3 + 1 + 5)


def test_one_long_answer_does_not_widen_the_others():
    """The best of both ways, and each continuation in exactly one call."""
    lengths = [{4 * c + k: 3 for k in range(4)} for c in range(16)]
    even = choose_calls(lengths, 16, lambda used: 16)
    assert [call.copies for call in even] == [False] * 4
    for c in range(16):
        lengths[c][4 * c + c % 4] = 40
    uneven = choose_calls(lengths, 16, lambda used: 16)
    assert all(len(call.pairs) == 16 for call in uneven)
    longest = [max(lengths[c][i] for c, i in call.pairs) for call in uneven]
    assert longest == [3, 3, 3, 40]
    assert sorted(i for call in uneven for _, i in call.pairs) == list(range(64))
    lengths[5] |= {100 + k: 3 for k in range(40)}  # one context with many: copies of its row
    many = choose_calls(lengths, 16, lambda used: 16)
    assert {call.copies for call in many} == {True}
    assert len(many) == 7


def test_few_shapes():
    reader = order_two(VOCAB)
    Scorer(reader, batch_size=8).loglikelihood([q for s in range(20) for q in requests(s)])
    widths = {shape[1] for _, shape in reader.shapes}
    assert widths == {8, 16, 32}
    assert {shape[0] for _, shape in reader.shapes} == {8}


def test_rolling_reads_every_token_behind_the_right_ones():
    reader = order_two(VOCAB)
    texts = [[int(t) for t in np.random.default_rng(n).integers(1, VOCAB, n)] for n in (1, 7, 1500)]
    for text, nats in zip(texts, Scorer(reader, 2).rolling(texts, prefix=0), strict=True):
        np.testing.assert_allclose(
            nats[:50], [-reader.log_p((0, *text[:i]))[token] for i, token in enumerate(text[:50])]
        )
        assert nats[-1] == pytest.approx(-reader.log_p((0, *text[:-1]))[text[-1]])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12))
def test_windows_score_every_token_once_and_fit(length, limit):
    tokens = list(range(100, 100 + length))
    cut = windows(tokens, 7, limit)
    assert [t for w in cut for t in w.scored] == tokens
    stream = [7, *tokens]
    for window in cut:
        whole = [*window.context, *window.scored]
        assert len(whole) - 1 <= limit
        assert window.context
        first = stream.index(whole[0])
        assert stream[first : first + len(whole)] == whole


def test_pairs_are_cut_where_the_harness_cuts_them():
    tok = tokenizer()
    for context, continuation in [
        ("the cat", " sat"),
        ("the cat ", "sat"),
        ("the cat sat", ", the"),
    ]:
        pair = encode_pair(tok, context, continuation)
        stripped = context.rstrip()
        assert list(pair.context) == tok.encode(stripped)
        assert tok.eos_id not in (*pair.context, *pair.continuation)
        whole = tok.encode(context + continuation)
        assert list(pair.continuation) == whole[len(pair.context) :]
    assert encode_pair(tok, "the cat ", "sat") == encode_pair(tok, "the cat", " sat")
    assert encode_pair(tok, "", "the").context == (tok.eos_id,)
    with pytest.raises(ValueError, match="continuation"):
        encode_pair(tok, "the cat", "")


TEXTS = ["the cat sat on the mat", "the  dog\n\nran at 37.5 the \u00e9tat", " the cat "]


@pytest.mark.parametrize("text", TEXTS)
def test_wherever_a_text_is_cut_the_whole_answer_is_scored_and_nothing_else(text):
    """Where a token crosses the cut too: "the ca" and "t" have no cut between tokens."""
    tok, alone = tokenizer(), 0
    for at in range(len(text)):
        context, answer = text[:at], text[at:]
        pair = encode_pair(tok, context, answer)
        spaces = len(context) - len(context.rstrip())
        assert tok.decode(pair.context) == context[: len(context) - spaces]
        assert tok.decode(pair.continuation) == context[len(context) - spaces :] + answer
        assert pair.continuation
        alone += [*pair.context, *pair.continuation] != tok.encode(text)
    assert alone > 1  # cuts inside of tokens
    reader = order_two(tok.vocab_size)
    (score,) = Scorer(reader).loglikelihood([encode_pair(tok, "the ca", "t")])
    want = plain(reader, Request(tuple(tok.encode("the ca")), tuple(tok.encode("t"))))
    assert (score.logprob, score.tokens) == (pytest.approx(want[0]), 1)


def test_a_request_that_the_model_cannot_hold_is_refused():
    scorer = Scorer(uniform(VOCAB, limit=8))
    scorer.loglikelihood([Request((1,) * 4, (1,) * 5)])
    with pytest.raises(ValueError, match="holds 8 tokens"):
        scorer.loglikelihood([Request((1,) * 5, (1,) * 5)])
    with pytest.raises(ValueError, match="holds 8 tokens"):
        scorer.generate_until([[1, 2, 3]], tokenizer(), [], 7)


def test_a_diverged_model_is_refused():
    reader = HandMade(lambda history: np.full(VOCAB, np.nan))
    with pytest.raises(ValueError, match="diverged"):
        Scorer(reader).loglikelihood([Request((1,), (2,))])


def test_generation_stops_at_stop_strings_and_at_the_end_of_the_document():
    tok = tokenizer()
    script = [*tok.encode("the cat sat. on the mat"), tok.eos_id, *tok.encode("never")]

    def log_p(history):
        at = len(history) - 2
        return np.log(np.eye(300)[script[min(at, len(script) - 1)]] + 1e-9)

    scorer = Scorer(HandMade(log_p), 2)
    one = scorer.generate_until([[1, 2], [1, 2], [1, 2]], tok, ["."], 40)
    assert one == ["the cat sat"] * 3
    assert scorer.generate_until([[1, 2]], tok, [], 40) == ["the cat sat. on the mat"]
    (short,) = scorer.generate_until([[1, 2]], tok, [], 3)
    assert short == tok.decode(script[:3])


# --- a model of ours -----------------------------------------------------------------------------


def model_reader(block: str, devices: int = 1, symbols: int = 0) -> ModelReader:
    cfg = ModelConfig(
        block=block, vocab_size=64, dim=16, layers=2, heads=2, mlp_hidden=24, max_len=64
    )
    model = build_model(cfg)
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    return ModelReader(model, jax.jit(model.init)(jax.random.key(0)), mesh, symbols)


def test_ids_that_stand_for_nothing_are_neither_written_nor_the_likeliest():
    """A model of 64 ids, of which the tokenizer has 5: what it says of the rest does not count."""
    tokens = np.arange(8, dtype=np.int32)[None]  # an untrained model repeats what it reads
    length = np.asarray([8], np.int32)
    found = {}
    for symbols in (0, 5):
        reader = model_reader("transformer", symbols=symbols)
        state = reader.fresh(1, 16)
        _, written = reader.decode(state, np.asarray([7], np.int32), 8, _greedy())
        scores = [
            reader.score(reader.fresh(1, 16), tokens, np.full_like(tokens, i), length)
            for i in range(64)
        ]
        found[symbols] = written, np.stack([s[2][0] for s in scores]), scores[2][1]
    assert found[0][0].max() >= 5 > found[5][0].max()
    best, known = (found[n][1].argmax(axis=0) for n in (0, 5))  # of each place
    assert best.max() >= 5 > known.max()
    assert (known == best)[best < 5].all()
    assert found[5][1][:5].sum(axis=0).tolist() == [1] * 8
    np.testing.assert_array_equal(found[0][2], found[5][2])  # nats are those of training


@pytest.mark.parametrize("block", ["transformer", pytest.param("hope", marks=pytest.mark.slow)])
def test_scores_are_those_of_one_plain_call(block):
    reader = model_reader(block)
    model = reader.model
    wanted = [Request(q.context, q.continuation[:9]) for q in requests(3, 7)]
    got = Scorer(reader, 4).loglikelihood(wanted)

    @jax.jit
    def logits(tokens_BT, lengths_B):
        state = model.init_state(reader.params, 1, 64)
        return jax.nn.log_softmax(
            model.apply(reader.params, state, tokens_BT, lengths_B=lengths_B)[1]
        )

    for request, score in zip(wanted, got, strict=True):
        whole = [*request.context, *request.continuation]
        tokens_BT = np.zeros((1, 64), np.int32)
        tokens_BT[0, : len(whole)] = whole
        log_p = np.asarray(logits(tokens_BT, np.asarray([len(whole)], np.int32)))[0]
        first = len(request.context) - 1
        want = sum(log_p[first + i, t] for i, t in enumerate(request.continuation))
        assert score.logprob == pytest.approx(float(want), abs=1e-4)


@pytest.mark.slow
def test_a_mesh_changes_no_score():
    wanted = requests(5, 7)
    scores = [
        [s.logprob for s in Scorer(model_reader("transformer", n), 4).loglikelihood(wanted)]
        for n in (1, 4)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


def test_greedy_writing_follows_the_likeliest_token():
    reader = model_reader("transformer")
    tok = tokenizer()
    prompt = [5, 6, 7]
    state = reader.read(reader.fresh(1, 32), *_pad(prompt[:-1]))
    _, written = reader.decode(state, np.asarray([7], np.int32), 6, _greedy())
    scorer = Scorer(reader, 1)
    (score,) = scorer.loglikelihood([Request(tuple(prompt), tuple(int(t) for t in written[0]))])
    assert score.greedy
    assert len(scorer.generate_until([prompt], tok, [], 6)) == 1


def _pad(tokens):
    padded = np.zeros((1, 8), np.int32)
    padded[0, : len(tokens)] = tokens
    return padded, np.asarray([len(tokens)], np.int32)


def _greedy():
    from eval.core.reader import Draw

    return Draw()


def test_widths_and_room_hold_their_tokens():
    wanted = {0: 0, 1: 8, 9: 16, 17: 32, 33: 48, 49: 64, 65: 96, 97: 128, 600: 768, 1000: 1024}
    assert {n: bucket(n) for n in wanted} == wanted
    assert [room(n) for n in (1, 520, 1024, 1500)] == [8, 576, 1024, 1536]
    assert all(n <= room(n) <= n * 9 / 8 + 8 for n in range(1, 3000))


def test_a_batch_with_few_rows_is_not_padded_to_a_full_one():
    scorer = Scorer(uniform(VOCAB), batch_size=32, batch_tokens=16_384)
    assert scorer.rows(512) == scorer.rows(512, 32) == 32
    assert scorer.rows(512, 16) == 16
    assert scorer.rows(512, 3) == 8  # 4 rows would save no more than `SPARE` tokens
    assert scorer.rows(8, 1) == 32
    assert scorer.rows(100_000) == 1


@pytest.mark.parametrize("counts", [(4, 4, 4), (1, 2, 9), (5,)])
def test_scored_in_place_or_from_copies_it_is_the_same(counts):
    """Even groups are scored where they are, uneven ones from copies of their rows."""
    rng = np.random.default_rng(4)
    draw = lambda n: tuple(int(t) for t in rng.integers(1, VOCAB, n))  # noqa: E731
    contexts = [draw(9) for _ in counts]
    wanted = [
        Request(c, draw(rng.integers(1, 12)))
        for c, n in zip(contexts, counts, strict=True)
        for _ in range(n)
    ]
    reader, taken = order_two(VOCAB), []
    take = reader.take
    reader.take = lambda state, rows: taken.append(len(rows)) or take(state, rows)
    scores = Scorer(reader, batch_size=len(counts)).loglikelihood(wanted)
    for request, score in zip(wanted, scores, strict=True):
        assert score.logprob == pytest.approx(plain(reader, request)[0], abs=1e-9)
    assert bool(taken) == (counts == (1, 2, 9))
