"""The outer loss of streams, what a carry keeps, and the surprise objectives."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import assert_close, assert_equal, products

import nested_jax
from nested_jax.config import Config, from_config_dict
from nested_jax.losses import logits_of
from nested_jax.models.lm import LanguageModel
from nested_jax.models.stacks import run_stack
from nested_jax.models.stream import make_call
from nested_jax.ops.chunking import Rows
from nested_jax.outer_loss import document_starts, loss_fn, stream_loss_fn
from nested_jax.surprise import level_signals, surprise_loss
from nested_jax.teach import teach
from nested_jax.types import Array, Batch

ROWS, TOKENS, SYMBOLS = 2, 24, 23


def config(**changes: Any) -> Config:
    model = {
        "block": "lstm_cms",
        "vocab_size": SYMBOLS,
        "dim": 12,
        "layers": 2,
        "heads": 2,
        "lstm_hidden": 7,
        "mlp_hidden": 10,
        "cms": {"periods": (4, 8), "fast_layers": 0, "surprise": changes.pop("surprise", ())},
    }
    model["cms"] |= changes.pop("cms", {})
    return from_config_dict(
        {
            "model": model | changes.pop("model", {}),
            "data": {"seq_len": 8, "mode": "stream"},
            "train": {
                "carry": changes.pop("carry", "mixers"),
                "batch_size": ROWS,
                "label_smoothing": changes.pop("label_smoothing", 0.0),
            },
            **changes,
        }
    )


WRITTEN = {"cms": {"fast_layers": 1, "inner_lr": (0.3,)}, "teach": {"mode": "exact", "chunk": 4}}


def build(cfg: Config) -> tuple[LanguageModel, Any]:
    model = nested_jax.build_model(cfg.model)
    params = model.init(jax.random.key(0))
    if "surprise" in params:
        keys = iter(jax.random.split(jax.random.key(5), 2))
        params["surprise"] = jax.tree.map(
            lambda w: 0.1 * jax.random.normal(next(keys), w.shape), params["surprise"]
        )
    return model, params


def text() -> Batch:
    """Rows in which documents begin at tokens 8 and 20 of row 0 and 12 of row 1."""
    tokens_BT = jax.random.randint(jax.random.key(1), (ROWS, TOKENS + 1), 0, SYMBOLS)
    segments_BT = jnp.ones((ROWS, TOKENS), jnp.int32)
    segments_BT = segments_BT.at[0, 8:].add(1).at[0, 20:].add(1).at[1, 12:].add(1)
    weights_BT = jnp.ones((ROWS, TOKENS)).at[0, 7].set(0).at[0, 19].set(0).at[1, 11].set(0)
    return Batch(tokens_BT[:, :-1], tokens_BT[:, 1:], weights_BT, segments_BT)


def pieces(batch: Batch, size: int) -> list[Batch]:
    """The batches in which a stream arrives: a row goes on with document 1, or begins with 2."""
    parts = []
    for start in range(0, TOKENS, size):
        part = Batch(*(x[:, start : start + size] for x in batch))
        before = batch.segments_BT[:, max(start - 1, 0)][:, None]
        parts.append(part._replace(segments_BT=part.segments_BT - before + 1))
    return parts


def total(metrics: list[dict[str, Array]]) -> Array:
    return sum((m["loss"] * m["tokens"] for m in metrics), jnp.zeros(()))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"surprise": (0.5, 0.25)}, marks=pytest.mark.slow),
        pytest.param({"carry": "all", **WRITTEN}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_batches_of_a_stream_are_one_text(changes: dict[str, Any]) -> None:
    """Three batches with the carried state, and the same text read at once from a fresh one."""
    cfg = config(**changes)
    model, params = build(cfg)
    batch = text()

    @jax.jit
    def run(params: Any) -> Any:
        state, seen = model.init_state(params, ROWS, capacity=1), []
        for part in pieces(batch, 8):
            _, (state, metrics) = stream_loss_fn(model, params, state, part, cfg)
            seen.append(metrics)
        _, (whole, want) = stream_loss_fn(
            model, params, model.init_state(params, ROWS, capacity=1), batch, cfg
        )
        return (total(seen), state), (total([want]), whole)

    got, want = run(params)
    assert_close(got[0], want[0], rtol=1e-5)
    # An open chunk's buffer keeps tokens that were learned; only its count says what is in it.
    clear = lambda state: state._replace(open=())  # noqa: E731
    assert_close(clear(got[1]), clear(want[1]), rtol=1e-4)


def test_rows_of_a_stream_begin_where_they_say() -> None:
    segments_BT = jnp.asarray([[1, 1, 2, 0], [2, 2, 0, 3], [0, 1, 1, 1], [1, 0, 0, 0]])
    want = [[0, 0, 1, 0], [1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert_equal(document_starts(segments_BT), jnp.asarray(want, jnp.bool_))


@pytest.mark.slow
def test_what_a_carry_keeps() -> None:
    """The second batch of a stream, by what the first left: nothing, mixers, or fast weights too.

    Its losses differ in pairs, and without a carry are those of a fresh read.
    """
    losses = {}
    parts = pieces(text()._replace(segments_BT=jnp.ones((ROWS, TOKENS), jnp.int32)), 8)
    for carry in ("mixers", "all"):
        cfg = config(carry=carry, **WRITTEN)
        model, params = build(cfg)
        step = jax.jit(partial(stream_loss_fn, model, cfg=cfg))
        state = model.init_state(params, ROWS, capacity=1)
        _, (state, _) = step(params, state, parts[0])
        losses[carry], (state, _) = step(params, state, parts[1])
        assert all(float(jnp.max(jnp.abs(x))) > 0 for x in jax.tree.leaves(state.prefix))
    losses["none"], _ = jax.jit(partial(loss_fn, model, cfg=cfg))(params, batch=parts[1])
    values = [float(x) for x in losses.values()]
    assert min(abs(values[0] - values[1]), abs(values[1] - values[2])) > 1e-4
    assert abs(values[0] - values[2]) > 1e-4


# --- label smoothing -----------------------------------------------------------------------------


def test_smoothed_targets_are_trained_on_and_not_scored() -> None:
    """Against dense targets, in value and gradient; streams are smoothed as rows are."""
    cfg, plain = config(label_smoothing=0.2), config()
    model, params = build(cfg)
    batch = text()

    def definition(params: Any) -> Any:
        state = model.init_state(params, ROWS, capacity=1)
        starts_BT = document_starts(batch.segments_BT)
        _, h_BTD = model.read(params, state, batch.tokens_BT, starts_BT=starts_BT, start="fresh")
        dense = optax.smooth_labels(jax.nn.one_hot(batch.targets_BT, SYMBOLS), 0.2)
        loss_BT = optax.softmax_cross_entropy(logits_of(h_BTD, model.head(params)), dense)
        return jnp.sum(loss_BT * batch.weights_BT) / jnp.sum(batch.weights_BT)

    got, metrics = loss_fn(model, params, batch, cfg)
    scored, want = loss_fn(model, params, batch, plain)
    assert_close(got, definition(params), rtol=1e-6)
    assert_equal({name: metrics[name] for name in want}, want)
    assert_close(got, scored + 0.2 * metrics["margin"], rtol=1e-6)
    gradient = jax.grad(lambda params: loss_fn(model, params, batch, cfg)[0])(params)
    assert_close(gradient, jax.grad(definition)(params), rtol=1e-4)
    state = model.init_state(params, ROWS, capacity=1)
    streamed, (_, of_stream) = stream_loss_fn(model, params, state, batch, cfg)
    assert_close((streamed, of_stream), (got, metrics), rtol=1e-6)


def test_smoothing_beside_writes_is_of_the_outer_loss_alone() -> None:
    """A loop over chunks: dense targets for the outer loss, the plain loss for each write."""
    cfg = config(label_smoothing=0.2, **WRITTEN)
    model, params = build(cfg)
    batch = text()._replace(segments_BT=jnp.ones((ROWS, TOKENS), jnp.int32))
    size, rate = cfg.teach.chunk, model.rates

    def by_hand(params: Any) -> Array:
        state, total = model.init_state(params, ROWS), jnp.zeros(())
        pending = [jax.tree.map(jnp.zeros_like, level.delta) for level in state.fast]

        def plain(deltas: Any, x: Array, y: Array, w: Array) -> Any:
            fast = tuple(f._replace(delta=d) for f, d in zip(state.fast, deltas, strict=True))
            after, logits = model.apply(params, state._replace(fast=fast), x)
            log_p = jax.nn.log_softmax(logits)
            return -jnp.sum(w * jnp.take_along_axis(log_p, y[..., None], -1)[..., 0]), (
                after,
                logits,
            )

        for begin in range(0, TOKENS, size):
            part = slice(begin, begin + size)
            x, y, w = (a[:, part] for a in batch[:3])
            deltas = tuple(level.delta for level in state.fast)
            grads, (state, logits) = jax.grad(plain, has_aux=True)(deltas, x, y, w)
            dense = optax.smooth_labels(jax.nn.one_hot(y, SYMBOLS), 0.2)
            total = total + jnp.sum(w * optax.softmax_cross_entropy(logits, dense))
            pending = [jax.tree.map(jnp.add, p, g) for p, g in zip(pending, grads, strict=True)]
            levels = []
            for i, period in enumerate(cfg.model.cms.periods):
                if (begin + size) % period == 0:
                    step = lambda d, g, r: d - r[None, :, None, None] * g  # noqa: E731
                    delta = jax.tree.map(step, deltas[i], pending[i], rate(params)[i])
                    pending[i] = jax.tree.map(jnp.zeros_like, pending[i])
                    levels.append(state.fast[i]._replace(delta=delta))
                else:
                    levels.append(state.fast[i])
            state = state._replace(fast=tuple(levels))
        return total / jnp.sum(batch.weights_BT)

    want, want_grads = jax.jit(jax.value_and_grad(by_hand))(params)
    step = jax.value_and_grad(lambda p: loss_fn(model, p, batch, cfg), has_aux=True)
    (got, metrics), grads = jax.jit(step)(params)
    assert_close(got, want, rtol=1e-5)
    assert_close(grads, want_grads, rtol=1e-4, atol=1e-7)
    assert float(metrics["teach/level0/writes"]) == ROWS * TOKENS // size
    assert abs(float(got - metrics["loss"])) > 1e-3


def test_smoothing_beside_surprise_objectives_adds_both() -> None:
    """The objectives do not see it: their signal is the gradient of the plain loss."""
    both, plain = (config(surprise=(0.5, 0.25), label_smoothing=share) for share in (0.2, 0.0))
    model, params = build(both)
    loss, metrics = loss_fn(model, params, text(), both)
    want, want_metrics = loss_fn(model, params, text(), plain)
    assert_close(loss, want + 0.2 * metrics.pop("margin"), rtol=1e-6)
    assert_equal(metrics, want_metrics)


@pytest.mark.parametrize("changes", [{}, WRITTEN], ids=["read", "written"])
def test_all_measures_take_one_forward_pass(changes: dict[str, Any]) -> None:
    """As many products as for the loss alone, and each measure is its definition."""
    cfg = config(**changes)
    model, params = build(cfg)
    batch = text()
    names = ("loss", "margin", "entropy", "prediction")

    def run(params: Any, measures: tuple[str, ...]) -> Any:
        state = model.init_state(params, ROWS)
        return teach(
            model,
            params,
            state,
            batch.tokens_BT,
            batch.targets_BT,
            cfg.teach,
            measures=measures,
            start="fresh",
        )[1].measures

    every = partial(run, measures=names)
    assert products(every, params) == products(partial(run, measures=("loss",)), params)
    found = jax.jit(every)(params)
    if changes:
        return  # what was written decides: the losses are held to a loop over chunks above
    logits = jax.jit(model.apply)(params, model.init_state(params, ROWS), batch.tokens_BT)[1]
    log_p = jax.nn.log_softmax(logits)
    hit = lambda x: jnp.take_along_axis(x, batch.targets_BT[..., None], -1)[..., 0]  # noqa: E731
    assert_close(found["loss"], -hit(log_p), rtol=1e-5)
    assert_close(found["margin"], hit(logits) - logits.mean(-1), rtol=1e-4)
    assert_close(found["entropy"], -jnp.sum(jnp.exp(log_p) * log_p, -1), rtol=1e-5)
    assert_equal(found["prediction"], jnp.argmax(logits, -1).astype(jnp.int32))


# --- surprise objectives --------------------------------------------------------------------------


def test_the_signal_is_the_gradient_behind_a_level() -> None:
    """Against finite differences of the whole model's loss: a tap in a level of the last block."""
    cfg = config(surprise=(0.5, 0.25))
    model, params = build(cfg)
    batch = pieces(text(), 8)[0]
    last = jax.tree.map(lambda p: p[-1], params["prefix"])
    levels: Any = partial(model.block("prefix").apply, method="level_outputs")
    direction = [
        jax.random.normal(key, (ROWS, 8, 12)) for key in jax.random.split(jax.random.key(3), 2)
    ]

    @jax.jit
    def cms_input(params: Any) -> Array:
        state = model.init_state(params, ROWS, capacity=1)
        call = make_call(cfg.model, state.now.context, Rows(ROWS, 8))
        x_BTD = model.inputs(params, batch.tokens_BT)
        return run_stack(
            model.block("prefix"), params["prefix"], state.prefix, x_BTD, call, collect=True
        ).cms_in_LBTD[-1]

    def summed(x_BTD: Array, level: int, size: float) -> Array:
        taps = tuple(size * d if i == level else jnp.zeros_like(d) for i, d in enumerate(direction))
        h_BTD = model.final_norm(params, levels({"params": last}, x_BTD, taps)[-1])
        logits = jnp.einsum("btd,sd->bts", h_BTD, params["embed"])
        picked = jnp.take_along_axis(
            jax.nn.log_softmax(logits, axis=-1), batch.targets_BT[..., None], axis=-1
        )
        return -jnp.sum(picked[..., 0] * batch.weights_BT)

    x_BTD = cms_input(params)
    signals = jax.jit(lambda p, x: level_signals(model, p, levels, x, batch))(params, x_BTD)
    slope = jax.jit(partial(summed), static_argnums=1)
    for level in range(2):
        step = 1e-2
        want = (slope(x_BTD, level, step) - slope(x_BTD, level, -step)) / (2 * step)
        assert abs(float(want)) > 1e-2
        assert_close(jnp.sum(signals[level] * direction[level]), want, rtol=2e-3)


def test_objectives_are_their_definition() -> None:
    """aux = sum_l w_l mean |W norm(y) - s / rms(s)|² / D, s held constant: values, gradients."""
    cfg = config(surprise=(0.5, 0.25))
    model, params = build(cfg)
    batch = text()
    x_BTD = jax.random.normal(jax.random.key(7), (ROWS, TOKENS, 12))
    levels: Any = partial(model.block("prefix").apply, method="level_outputs")
    some = batch.weights_BT[..., None] > 0
    mean = partial(jnp.mean, where=some)

    def defined(params: Any, x_BTD: Array, signals: Any) -> tuple[Array, list[Array]]:
        last, parts = jax.tree.map(lambda p: p[-1], params["prefix"]), []
        for i, y_BTD in enumerate(levels({"params": last}, x_BTD)):
            unit = y_BTD / jnp.sqrt(jnp.mean(y_BTD**2, axis=-1, keepdims=True) + 1e-6)
            target = signals[i] / jnp.sqrt(mean(signals[i] ** 2))
            predicted = unit @ params["surprise"][f"level_{i}"]
            parts.append(mean((predicted - target) ** 2))
        return 0.5 * parts[0] + 0.25 * parts[1], parts

    @jax.jit
    def both(params: Any) -> Any:
        ours = jax.value_and_grad(
            lambda p, x: surprise_loss(model, p, x, batch), argnums=(0, 1), has_aux=True
        )
        signals = level_signals(model, params, levels, x_BTD, batch)
        wanted = jax.value_and_grad(defined, argnums=(0, 1), has_aux=True)
        return ours(params, x_BTD), wanted(params, x_BTD, signals)

    ((aux, metrics), grads), ((want, parts), want_grads) = both(params)
    assert_close([metrics["surprise/level0"], metrics["surprise/level1"]], parts, rtol=1e-5)
    assert_close(aux, want, rtol=1e-5)
    assert_equal(aux, metrics["aux_loss"])
    assert_close(grads, want_grads, rtol=1e-4)


def gradients(cfg: Config, params: Any) -> tuple[Any, dict[str, Array]]:
    model = nested_jax.build_model(cfg.model)
    grad = jax.jit(jax.grad(partial(loss_fn, model, batch=text(), cfg=cfg), has_aux=True))
    return grad(params)


def test_heads_learn_and_their_level_with_them() -> None:
    cfg = config(surprise=(0.5, 0.0))
    model, params = build(cfg)
    grads, metrics = gradients(cfg, params)
    assert float(jnp.max(jnp.abs(grads["surprise"]["level_0"]))) > 1e-4
    assert not grads["surprise"]["level_1"].any()  # its weight is 0
    assert "surprise/level1" not in metrics
    plain, _ = gradients(config(), params | {"surprise": {}})
    moved = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), grads["prefix"], plain["prefix"])
    level = model.param_info()["prefix"]["cms"]
    assert float(moved["mixer"]["recurrent"]) > 1e-5  # the objective shapes what is below it
    assert {leaf.level for leaf in jax.tree.leaves(level)} == {0, 1, 2}
    assert [leaf.level for leaf in jax.tree.leaves(model.param_info()["surprise"])] == [1, 2]


def test_weight_zero_disturbs_nothing() -> None:
    """Bit for bit: the heads are there, get no gradient, and all else is as without them."""
    off, on = config(), config(surprise=(0.0, 0.0))
    params = nested_jax.build_model(on.model).init(jax.random.key(0))
    plain = nested_jax.build_model(off.model).init(jax.random.key(0))
    heads = params.pop("surprise")
    assert_equal(params, plain)
    assert not any(head.any() for head in heads.values())
    grads, metrics = gradients(on, params | {"surprise": heads})
    want, want_metrics = gradients(off, plain)
    assert not any(g.any() for g in grads.pop("surprise").values())
    assert_equal(grads, want)
    assert_equal(metrics.pop("aux_loss"), jnp.zeros(()))
    assert_equal(metrics, want_metrics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"surprise": (0.1,)},
            r"model.cms.surprise=\(0.1,\): wants a weight for each of the 2 periods",
        ),
        ({"surprise": (0.1, -1.0)}, r"model.cms.surprise=.*wants 0 or more"),
        (
            {"surprise": (0.1, 0.1), "cms": {"fast_layers": 1}},
            r"model.cms.fast_layers=0; got 'lstm_cms'",
        ),
        ({"surprise": (0.1, 0.1), "model": {"block": "lstm"}}, r"wants a block with CMS levels"),
        ({"data": {"mode": "rows", "seq_len": 8}}, r"train.carry='mixers': wants data.mode='str"),
        ({"model": {"block": "transformer"}}, r"full attention of 'transformer' cannot hold a wh"),
        ({"carry": "lstm"}, r"train.carry='lstm'"),
        ({"label_smoothing": 1.0}, r"train.label_smoothing=1.0: wants 0 or more, less than 1"),
        ({"label_smoothing": -0.1}, r"train.label_smoothing=-0.1: wants 0 or more"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)
