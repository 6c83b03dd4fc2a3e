"""The inner loop against its slow twin, a Python loop over chunks with `jax.grad` of the loss."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_equal

import nested_jax
from nested_jax.config import CMSConfig, Config, ModelConfig, TeachConfig, from_config_dict
from nested_jax.models.state import State, detach, reset
from nested_jax.ops import attention_kernels
from nested_jax.ops.attention_kernels import softmax_attention
from nested_jax.outer_loss import loss_fn
from nested_jax.teach import flush, teach
from nested_jax.teach_chunk import Teacher
from nested_jax.types import Batch

CHUNK, PERIODS = 4, (4, 8)


def config(**changes) -> Config:
    """A small model, one block below the taught one: B=2, D=12, H=2, F=14, S=23, L=1+1, M=2."""
    cms = {"periods": PERIODS, "inner_lr": 0.3, "fast_layers": 1} | changes.pop("cms", {})
    model = {
        "block": "hope_attention",
        "vocab_size": 23,
        "dim": 12,
        "layers": 2,
        "heads": 2,
        "mlp_hidden": 14,
        "window": 6,
        "cms": cms,
    } | changes.pop("model", {})
    teaching = {"mode": "exact", "chunk": CHUNK} | changes
    return from_config_dict({"model": model, "teach": teaching, "data": {"seq_len": 32}})


def make(cfg: Config, tokens: int, seed: int = 0, dtype=jnp.float32):
    model = nested_jax.build_model(cfg.model)
    params = jax.tree.map(lambda p: p.astype(dtype), model.init(jax.random.key(seed)))
    text = jax.random.randint(jax.random.key(seed + 1), (2, tokens + 1), 0, cfg.model.vocab_size)
    return model, params, text[:, :-1], text[:, 1:]


@lru_cache
def compiled(cfg: Config, **static):
    """One compilation for all tests that use a configuration and a shape."""
    model = nested_jax.build_model(cfg.model)
    return jax.jit(partial(teach, model, cfg=cfg.teach, **static))


def run(cfg, model, params, tokens, targets, state=None, begin="any", **options):
    if state is None:
        state = model.init_state(params, tokens.shape[0], capacity=16)
    return compiled(cfg, start=begin)(params, state, tokens, targets, **options)


def start(model, params, rows=2):
    return model.init_state(params, rows, capacity=16)


def alone(cfg, model, params, tokens_T, targets_T):
    """Teach one row by itself; one compilation serves every length up to 16."""
    pad = [(0, 0), (0, 16 - tokens_T.shape[0])]
    text, length = (jnp.pad(x[None], pad) for x in (tokens_T, targets_T)), tokens_T.shape[0]
    lengths = jnp.array([length], jnp.int32)
    state, taught = compiled(cfg)(params, start(model, params, 1), *text, lengths_B=lengths)
    return state, taught.loss_BT[:, :length]


@lru_cache
def reading(model):
    return jax.jit(model.apply)


# --- the slow twin --------------------------------------------------------------------------------


def teach_reference(cfg: Config, model, params, tokens, targets, *, stop: tuple[int, ...] = ()):
    """Plain SGD levels, whole chunks, from a fresh state; the writes of chunks in `stop` detached.

    Independent of teach.py: the chunk's loss is a function of the deltas through the public
    `apply`, and `jax.grad` differentiates it.
    """
    state, losses = start(model, params, tokens.shape[0]), []
    pending = [jax.tree.map(jnp.zeros_like, level.delta) for level in state.fast]

    def chunk_loss(deltas, params, state, x, y):
        fast = tuple(f._replace(delta=d) for f, d in zip(state.fast, deltas, strict=True))
        state, logits = model.apply(params, state._replace(fast=fast), x)
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], axis=-1)[..., 0]
        return loss.sum(), (state, loss)

    @jax.jit  # compiled once for all chunks
    def step(params, state, pending, x, y, due):
        deltas = tuple(level.delta for level in state.fast)
        grads, (state, loss) = jax.grad(chunk_loss, has_aux=True)(deltas, params, state, x, y)
        pending = [jax.tree.map(jnp.add, p, g) for p, g in zip(pending, grads, strict=True)]
        move = lambda d, g, r: d - cfg.teach.scale * r.reshape(1, -1, 1, 1) * g  # noqa: E731
        written = tuple(map(partial(jax.tree.map, move), deltas, pending, model.rates(params)))
        choose = lambda i, a, b: jax.tree.map(partial(jnp.where, due[i]), a, b)  # noqa: E731
        deltas = tuple(choose(i, written[i], deltas[i]) for i in range(len(deltas)))
        pending = [choose(i, jax.tree.map(jnp.zeros_like, p), p) for i, p in enumerate(pending)]
        return deltas, pending, state, loss

    for c in range(tokens.shape[1] // CHUNK):
        x, y = (a[:, c * CHUNK : (c + 1) * CHUNK] for a in (tokens, targets))
        due = jnp.array([(c + 1) * CHUNK % period == 0 for period in cfg.model.cms.periods])
        deltas, pending, state, loss = step(params, state, pending, x, y, due)
        losses.append(loss)
        if c in stop:
            deltas, pending = detach((deltas, pending))
        fast = tuple(f._replace(delta=d) for f, d in zip(state.fast, deltas, strict=True))
        state = state._replace(fast=fast)
    return deltas, jnp.concatenate(losses, axis=1)


def outer(function, params, tokens):
    """Value and gradient of an outer loss that no chunk is symmetric in."""
    weights = jnp.linspace(0.5, 1.5, tokens.shape[1], dtype=jnp.float32)[None]

    def loss(params):
        deltas, loss_BT = function(params)
        return jnp.mean(loss_BT * weights), (deltas, loss_BT)

    return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.mark.parametrize(
    ("meta", "stop", "remat", "taught"),
    [
        ("through", (), "none", 1),
        pytest.param("through", (), "sqrt", 1, marks=pytest.mark.slow),
        pytest.param("through", (), "chunk", 1, marks=pytest.mark.slow),
        pytest.param("stop", (0, 1, 2), "chunk", 1, marks=pytest.mark.slow),
        pytest.param(2, (0,), "none", 1, marks=pytest.mark.slow),
        pytest.param("through", (), "none", 2, marks=pytest.mark.slow),
        pytest.param("through", (), "sqrt", 3, marks=pytest.mark.slow),
    ],
)
def test_equals_the_reference_in_values_and_gradients(meta, stop, remat, taught):
    layers = {"layers": max(2, taught)}
    cfg = config(
        meta_gradient=meta, remat=remat, scale=0.7, model=layers, cms={"fast_layers": taught}
    )
    model, params, tokens, targets = make(cfg, tokens=3 * CHUNK)

    def fast(params):
        state, taught = run(cfg, model, params, tokens, targets, begin="fresh")
        return tuple(level.delta for level in state.fast), taught.loss_BT

    slow = lambda p: teach_reference(cfg, model, p, tokens, targets, stop=stop)  # noqa: E731
    (_, got), got_grad = outer(fast, params, tokens)
    (_, want), want_grad = outer(slow, params, tokens)
    assert_close(got, want, rtol=1e-5)
    assert_close(got_grad, want_grad, rtol=1e-4, atol=1e-8)


def with_constant(q, k, v, mask, scale, prefix=None):
    """Attention whose program has a constant, as that of the library's kernel."""
    return softmax_attention(q, k, v, mask, scale, prefix) + jnp.asarray(np.zeros((), q.dtype))


@pytest.mark.slow
@pytest.mark.parametrize("window", [6, 0])
@pytest.mark.parametrize("kernel", ["blockwise", "twice"])
def test_every_kernel_of_attention_teaches_alike(kernel, window, float64, monkeypatch):
    """Writes, losses and the outer gradient; packed documents, and a block in the loop."""
    monkeypatch.setattr(attention_kernels, "KEY_BLOCK", 3)
    twice = attention_kernels.twice(with_constant, attention_kernels.blockwise_attention)
    changes = {"compute_dtype": "float64", "layers": 2, "window": window}
    tokens = 3 * CHUNK

    def outcome(attention):
        model = changes | {"attention": attention}
        cfg = config(model=model, cms={"fast_layers": 2}, remat="chunk")
        model, params, tokens_BT, targets_BT = make(cfg, tokens, dtype=jnp.float64)
        starts = jnp.zeros((2, tokens), bool).at[1, CHUNK].set(True)

        def loss(params):
            state = model.init_state(params, 2, capacity=tokens)
            state, taught = teach(
                model, params, state, tokens_BT, targets_BT, cfg.teach, starts_BT=starts
            )
            return taught.loss_BT.mean(), (state.fast, taught.loss_BT)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    want = outcome("xla")
    if kernel == "twice":
        monkeypatch.setitem(attention_kernels.TWICE, "blockwise", twice)
    assert_close(outcome("blockwise"), want, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("begin", ["fresh", pytest.param("any", marks=pytest.mark.slow)])
def test_outer_gradient_agrees_with_finite_differences(float64, begin):
    cfg = config(model={"compute_dtype": "float64"})
    model, params, tokens, targets = make(cfg, tokens=12, dtype=jnp.float64)

    @jax.jit
    def loss(params):
        state = model.init_state(params, 2, capacity=12)
        return run(cfg, model, params, tokens, targets, state, begin=begin)[1].loss_BT[:, 8:].mean()

    grads, eps = jax.jit(jax.grad(loss))(params), 1e-6
    rng = np.random.default_rng(7)
    params, grads = jax.tree.map(np.asarray, (params, grads))
    for name in ("suffix", "prefix", "embed"):
        noise = jax.tree.map(lambda x: rng.normal(size=x.shape), params[name])
        away = lambda s: params | {name: jax.tree.map(lambda p, d: p + s * d, params[name], noise)}  # noqa: E731, B023
        central = float(loss(away(eps)) - loss(away(-eps))) / (2 * eps)
        products = jax.tree.map(np.vdot, grads[name], noise)
        slope = float(sum(jax.tree.leaves(products)))
        assert abs(slope - central) <= 1e-6 * abs(central), (name, slope, central)


@pytest.mark.slow
def test_stop_zeroes_exactly_the_write_path():
    """With writes held constant the rates get no gradient, and the rest is that of fixed deltas."""
    stopped, through = config(meta_gradient="stop"), config()
    model, params, tokens, targets = make(stopped, tokens=12)
    grad = lambda cfg: jax.jit(  # noqa: E731
        jax.grad(lambda p: run(cfg, model, p, tokens, targets)[1].loss_BT.sum())
    )(params)
    rates = lambda g: [g["suffix"]["cms"][f"log_rate_{i}"] for i in range(2)]  # noqa: E731
    assert all(float(jnp.abs(r).max()) == 0 for r in rates(grad(stopped)))
    assert all(float(jnp.abs(r).max()) > 0 for r in rates(grad(through)))


# --- one semantics --------------------------------------------------------------------------------


@pytest.mark.parametrize("taught", [1, 2, 3])
def test_a_boundary_holds_the_mixers_behind_a_fast_weight_alone(taught):
    cfg = config(model={"layers": 3}, cms={"fast_layers": taught})
    model, params, *_ = make(cfg, tokens=CHUNK)
    state = start(model, params)
    depth = lambda mixers: {x.shape[1] for x in jax.tree.leaves(mixers)}  # noqa: E731
    expected = {3 - taught} - {0}, {1}, {taught - 1} - {0}
    assert (depth(state.prefix), depth(state.entry), depth(state.now.suffix)) == expected
    assert depth(state.open.boundary.suffix) == expected[2]


@pytest.mark.parametrize(
    ("window", "pieces", "taught"),
    [
        (6, (1,) * 11, 1),
        pytest.param(6, (3, 1, 7), 1, marks=pytest.mark.slow),
        pytest.param(6, (3, 1, 7), 2, marks=pytest.mark.slow),
        pytest.param(0, (1, 3, 7), 1, marks=pytest.mark.slow),
        pytest.param(0, (1, 3, 7), 2, marks=pytest.mark.slow),
        pytest.param(6, (4, 4, 3), 1, marks=pytest.mark.slow),
        pytest.param(0, (1,) * 11, 1, marks=pytest.mark.slow),
    ],
)
def test_pieces_of_any_length_end_where_one_call_ends(window, pieces, taught):
    sizes = {"window": window} | ({} if window else {"max_len": 16})
    cfg = config(model=sizes, cms={"fast_layers": taught})
    model, params, tokens, targets = make(cfg, tokens=11)
    step = compiled(cfg)
    whole, want = step(params, start(model, params), tokens, targets)
    state, losses, at = start(model, params), [], 0
    for size in pieces:
        part = slice(at, at + size)
        state, taught = step(params, state, tokens[:, part], targets[:, part])
        losses.append(taught.loss_BT)
        at += size
    assert_close(jnp.concatenate(losses, axis=1), want.loss_BT, rtol=2e-5)
    assert_close(state, whole, rtol=2e-5, atol=2e-6)


@pytest.mark.slow
def test_rows_with_phases_of_their_own():
    """Rows of different lengths in one call equal each row alone."""
    cfg = config()
    model, params, tokens, targets = make(cfg, tokens=16)
    step, lengths = compiled(cfg), jnp.array([3, 6], jnp.int32)
    state, _ = step(params, start(model, params), tokens[:, :6], targets[:, :6], lengths_B=lengths)
    second = [jnp.stack([x[0, 3:9], x[1, 6:12]]) for x in (tokens, targets)]
    state, taught = step(params, state, *second, lengths_B=jnp.array([5, 6], jnp.int32))
    for row, begin, end in ((0, 3, 8), (1, 6, 12)):
        single, loss = alone(cfg, model, params, tokens[row, :end], targets[row, :end])
        one = slice(row, row + 1)
        assert_close(jax.tree.map(lambda x, o=one: x[o], state), single, rtol=2e-5, atol=2e-6)
        assert_close(taught.loss_BT[one, : end - begin], loss[:, begin:], rtol=2e-5)


def test_a_row_writes_its_own_memory_only():
    cfg = config()
    model, params, tokens, targets = make(cfg, tokens=16)
    step = compiled(cfg)
    before, _ = step(params, start(model, params), tokens, targets)
    after, _ = step(params, start(model, params), tokens.at[1, 3].add(1) % 23, targets)
    assert_equal(jax.tree.map(lambda x: x[0], before), jax.tree.map(lambda x: x[0], after))
    moved = jnp.abs(before.fast[0].delta.up[1] - after.fast[0].delta.up[1]).max()
    assert float(moved) > 0


@pytest.mark.parametrize("begin", ["any", "fresh"])
def test_packed_documents_equal_separate_runs(begin):
    cfg = config()
    model, params, tokens, targets = make(cfg, tokens=16)
    starts = jnp.zeros((2, 16), bool).at[0, 8].set(True).at[1, 12].set(True)
    state, taught = run(cfg, model, params, tokens, targets, begin=begin, starts_BT=starts)
    for row, cut in ((0, 8), (1, 12)):
        one = slice(row, row + 1)
        for part in (slice(0, cut), slice(cut, 16)):
            single, loss = alone(cfg, model, params, tokens[row, part], targets[row, part])
            assert_close(taught.loss_BT[one, part], loss, rtol=2e-5)
        mine = jax.tree.map(lambda x, o=one: x[o], state.fast)
        assert_close(mine, single.fast, rtol=2e-5, atol=1e-6)


def test_reset_equals_a_fresh_start():
    cfg = config()
    model, params, tokens, targets = make(cfg, tokens=16)
    state, _ = run(cfg, model, params, tokens, targets)
    cleared = reset(state, jnp.array([False, True]))
    fresh = start(model, params)
    pick = lambda s, r: jax.tree.map(lambda x: x[r], s)  # noqa: E731
    assert_equal(pick(cleared, 1), pick(fresh, 1))
    assert_equal(pick(cleared, 0), pick(state, 0))
    with pytest.raises(ValueError, match=r"wants bool\[2\]"):
        reset(state, jnp.array([1, 0]))


def test_apply_reads_what_teach_wrote_and_leaves_it():
    cfg = config()
    model, params, tokens, targets = make(cfg, tokens=16)
    state, _ = run(cfg, model, params, tokens, targets)
    read, logits = reading(model)(params, state, tokens)
    assert_equal(read.fast, state.fast)
    off = replace(cfg, teach=replace(cfg.teach, mode="off"))
    _, scored = run(off, model, params, tokens, targets, state)
    want = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    assert_close(scored.loss_BT, want, rtol=1e-5)
    unwritten = state._replace(fast=start(model, params).fast)
    _, slow = reading(model)(params, unwritten, tokens)
    assert float(jnp.abs(slow - logits).max()) > 1e-4


# --- cadence, gate, filters -----------------------------------------------------------------------


def test_cadence_is_exact():
    """floor(T / period) writes per level; between its writes a level is bit-identical."""
    cfg = config()
    model, params, tokens, targets = make(cfg, tokens=27)
    step = compiled(cfg)
    state, deltas = start(model, params), []
    for t in range(27):
        state, _ = step(params, state, tokens[:, t : t + 1], targets[:, t : t + 1])
        deltas.append([np.asarray(level.delta.down) for level in state.fast])
    for i, period in enumerate(PERIODS):
        assert np.asarray(state.fast[i].writes_B).tolist() == [27 // period] * 2
        for t in range(1, 27):
            same = np.array_equal(deltas[t][i], deltas[t - 1][i])
            assert same == ((t + 1) % period != 0), (i, t)
    _, taught = run(cfg, model, params, tokens[:, :16], targets[:, :16])
    assert float(taught.stats["level0/writes"]) == 4 * 2  # chunks x rows x one layer
    assert float(taught.stats["level1/writes"]) == 2 * 2


@pytest.mark.parametrize("metric", ["loss", "l2", "entropy"])
def test_gate_blocks_bit_identically_and_counts(metric):
    cfg = config(surprise_metric=metric, surprise_threshold=1e9)
    model, params, tokens, targets = make(cfg, tokens=16)
    state, taught = run(cfg, model, params, tokens, targets)
    assert all(
        float(jnp.abs(x).max()) == 0 for level in state.fast for x in jax.tree.leaves(level.delta)
    )
    assert float(taught.stats["level0/writes"]) == 0
    assert float(taught.stats["level0/blocked"]) == 4 * 2


def test_gate_decides_for_each_sequence():
    cfg = config(cms={"periods": (16,)}, chunk=16)
    model, params, tokens, targets = make(cfg, tokens=16)
    _, taught = run(cfg, model, params, tokens, targets)
    surprise = taught.loss_BT.mean(axis=1)
    threshold = float(surprise.mean())
    gated = replace(cfg.teach, surprise_threshold=threshold)
    state, _ = run(replace(cfg, teach=gated), model, params, tokens, targets)
    assert (
        np.asarray(state.fast[0].writes_B).tolist() == (surprise >= threshold).astype(int).tolist()
    )


@pytest.mark.slow
def test_units_do_not_move_with_batch_or_chunk():
    """The signal's norm per token is that of the summed loss: batch and chunk do not scale it."""
    cfg = config(scale=0.0)
    _, params, tokens, targets = make(cfg, tokens=16)
    larger = config(scale=0.0, chunk=8, cms={"periods": (8, 16)})
    norm = lambda c, *text: float(  # noqa: E731
        run(c, nested_jax.build_model(c.model), params, *text)[1].stats["signal_norm"]
    )
    both = norm(cfg, tokens, targets)
    np.testing.assert_allclose(norm(larger, tokens, targets), both, rtol=1e-5)
    rows = [norm(cfg, tokens[r : r + 1], targets[r : r + 1]) for r in (0, 1)]
    np.testing.assert_allclose(both, np.mean(rows), rtol=1e-5)
    assert both > 0.05


def test_clip_bounds_the_signal_of_a_token():
    cfg = config(clip=2.0)
    delta = jnp.array([[[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]])
    teacher = Teacher(nested_jax.build_model(cfg.model), {}, cfg.teach, 0.5)
    signal, norm = teacher.signal(delta)
    np.testing.assert_allclose(norm, [[5.0, 0.5, 0.0]], rtol=1e-6)
    # Half of (3, 4) has length 2.5 and is clipped to 2; half of (0.3, 0.4) is below.
    np.testing.assert_allclose(signal, [[[1.2, 1.6], [0.15, 0.2], [0.0, 0.0]]], rtol=1e-6)


@pytest.mark.slow
def test_level_and_layer_filters():
    cfg = config(levels=(1,), layers=(2,), model={"layers": 3}, cms={"fast_layers": 2})
    model, params, tokens, targets = make(cfg, tokens=16)
    state, taught = run(cfg, model, params, tokens, targets)
    up = [np.asarray(level.delta.up) for level in state.fast]  # [B, L, D, F] of layers 1 and 2
    assert np.abs(up[0]).max() == 0
    assert np.abs(up[1][:, 0]).max() == 0
    assert np.abs(up[1][:, 1]).max() > 0
    assert float(taught.stats["level1/writes"]) == 2 * 2 * 1


# --- modes, chains, inner optimizers --------------------------------------------------------------


@pytest.mark.slow
def test_local_mode_writes_what_exact_mode_writes():
    """Regression toward output - delta, through the later levels, is the exact gradient."""
    exact, local = config(), config(mode="local")
    model, params, tokens, targets = make(exact, tokens=16)
    want, _ = run(exact, model, params, tokens, targets)
    got, _ = run(local, model, params, tokens, targets)
    assert_close(got.fast, want.fast, rtol=1e-5, atol=1e-7)
    rate = lambda cfg: jax.grad(  # noqa: E731
        lambda p: run(cfg, model, p, tokens, targets)[1].loss_BT.sum()
    )(params)["suffix"]["cms"]["log_rate_0"]
    assert float(jnp.abs(rate(local)).max()) > 0  # the writes are differentiated, δ is not


CHAINS, INNER = ("sequential", "independent", "nested"), ("momentum", "adam", "muon", "dgd", "sgd")


@pytest.mark.slow  # a quarter of a minute of compilation each
@pytest.mark.parametrize(
    ("chain", "optimizer"),
    [(c, o) for c in CHAINS for o in INNER],
)
def test_every_chain_and_inner_optimizer_splits_and_differentiates(chain, optimizer):
    lr = 0.01 if optimizer in ("adam", "muon") else 0.3
    cfg = config(cms={"chain": chain, "optimizer": optimizer, "inner_lr": lr, "fast_rank": 3})
    model, params, tokens, targets = make(cfg, tokens=12)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def outer_loss(params):
        state, taught = run(cfg, model, params, tokens, targets)
        return taught.loss_BT.mean(), (state, taught)

    (_, (whole, want)), grads = outer_loss(params)
    step, half = compiled(cfg), slice(0, 6)
    split, first = step(params, start(model, params), tokens[:, half], targets[:, half])
    split, second = step(params, split, tokens[:, 6:], targets[:, 6:])
    loss = jnp.concatenate([first.loss_BT, second.loss_BT], axis=1)
    assert_close(loss, want.loss_BT, rtol=2e-4)
    assert jax.tree.map(jax.typeof, split) == jax.tree.map(jax.typeof, start(model, params))
    assert np.asarray(whole.fast[1].writes_B).tolist() == [1, 1]
    assert all(float(want.stats[f"level{i}/change"]) > 0 for i in range(2))
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(np.asarray(g)).all(), path
        if "log_rate" in jax.tree_util.keystr(path):
            assert float(jnp.abs(g).max()) > 0, path


def test_nested_level_restarts_at_the_slower_level():
    cfg = config(cms={"chain": "nested"})
    model, params, tokens, targets = make(cfg, tokens=16)
    state, _ = run(cfg, model, params, tokens, targets)
    assert_equal(state.fast[0].delta, state.fast[1].delta)
    assert float(jnp.abs(state.fast[1].delta.up).max()) > 0


def test_zero_rate_and_zero_deltas_are_the_slow_model():
    cfg = config(cms={"inner_lr": 0.0})
    model, params, tokens, targets = make(cfg, tokens=16)
    state, taught = run(cfg, model, params, tokens, targets)
    _, logits = reading(model)(params, start(model, params), tokens)
    slow = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    assert_close(taught.loss_BT, slow, rtol=1e-5)
    assert all(float(jnp.abs(x).max()) == 0 for x in jax.tree.leaves(state.fast[0].delta))


def test_one_level_without_writes_is_a_transformer():
    """CMS with one level and no inner update is a Transformer's MLP, parameter for parameter."""
    hope = config(cms={"periods": (4,), "fast_layers": 0}, mode="off").model
    plain = replace(hope, block="transformer")
    a, b = nested_jax.build_model(hope), nested_jax.build_model(plain)
    params = a.init(jax.random.key(0))
    blocks = params["prefix"]
    cms = blocks["cms"]
    renamed = {k: v for k, v in blocks.items() if k != "cms"} | {
        "mlp_norm": cms["norm_0"],
        "mlp": {name: cms[f"level_0_{name}"] for name in ("gate", "up", "down")},
    }
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, 23)
    _, want = reading(a)(params, start(a, params), tokens)
    params_b = params | {"prefix": renamed}
    _, got = reading(b)(params_b, start(b, params_b), tokens)
    assert_equal(got, want)


def test_flush_writes_what_is_pending():
    cfg = config()
    model, params, tokens, targets = make(cfg, tokens=6)
    state, _ = run(cfg, model, params, tokens, targets)
    close = jax.jit(partial(flush, model, cfg=cfg.teach))
    flushed = close(params, state)
    assert np.asarray(flushed.fast[0].writes_B).tolist() == [2, 2]
    assert np.asarray(flushed.fast[1].writes_B).tolist() == [1, 1]
    assert np.asarray(flushed.open.count_B).tolist() == [0, 0]
    assert_equal(close(params, flushed), flushed)


# --- what the outer loop sees ---------------------------------------------------------------------


def test_loss_fn_weights_tokens_and_reports():
    cfg = config()
    model, params, tokens, targets = make(cfg, tokens=32)
    weights = jnp.ones((2, 32)).at[0, 5:].set(0.0)
    batch = Batch(tokens, targets, weights, jnp.ones((2, 32), jnp.int32))
    loss, metrics = jax.jit(lambda p: loss_fn(model, p, batch, cfg))(params)
    _, taught = run(
        cfg,
        model,
        params,
        tokens,
        targets,
        model.init_state(params, 2, capacity=32),
        weights_BT=weights,
        begin="fresh",
    )
    np.testing.assert_allclose(loss, (taught.loss_BT * weights).sum() / weights.sum(), rtol=1e-6)
    assert float(metrics["tokens"]) == 37
    # Row 0 has targets in its first two chunks only; chunks without targets write nothing.
    assert float(metrics["teach/level0/writes"]) == 2 + 8


@pytest.mark.parametrize("size", ["test", pytest.param("smoke", marks=pytest.mark.slow)])
def test_initial_loss_is_near_uniform(size):
    cfg = nested_jax.load_config(f"configs/pilot.py:{size}")
    model = nested_jax.build_model(cfg.model)
    params = jax.jit(model.init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 64), 0, cfg.model.vocab_size)
    _, logits = jax.jit(model.apply)(params, start(model, params), tokens)
    loss = -jax.nn.log_softmax(logits)[..., 0].mean()
    assert abs(float(loss) - np.log(cfg.model.vocab_size)) < 0.3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p, s, t, y, c: teach(m, p, s, t, y[:, :-1], c), r"targets: shape \(2, 7\)"),
        (lambda m, p, s, t, y, c: teach(m, p, s, t[:1], y[:1], c), "wants .* for this model and 1"),
        (
            lambda m, p, s, t, y, c: teach(m, p, s, t, y, replace(c, chunk=3)),
            r"teach\.chunk=3: must",
        ),
        (lambda m, p, s, t, y, c: m.apply(p, s._replace(fast=()), t), "is of another model"),
        (lambda m, p, s, t, y, c: m.apply(p, s, t.astype(jnp.float32)), "wants integers"),
        (lambda m, p, s, t, y, c: m.init_state(p, 0), "batch_size=0"),
        (lambda m, p, s, t, y, c: m.apply(p, s, t, start="frsh"), "start='frsh': known: any, al"),
        (lambda m, p, s, t, y, c: m.read(p, s, t, start="frsh"), "start='frsh': known: any, al"),
        (lambda m, p, s, t, y, c: teach(m, p, s, t, y, c, start="frsh"), "start='frsh': known"),
        (
            lambda m, p, s, t, y, c: teach(m, p, s, t, y, c, measures=("los",)),
            r"measures=\('los',\): known: loss, margin, entropy, prediction",
        ),
        (
            lambda m, p, s, t, y, c: teach(m, p, s._replace(fast=(), open=()), t, y, c),
            "state: has no open chunk, wants",
        ),
        (lambda m, p, s, t, y, c: m.apply(p, s, t, lengths_B=y), r"lengths_B: got int32\[2, 8\]"),
    ],
)
def test_bad_input(call, message):
    cfg = config()
    model, params, tokens, targets = make(cfg, tokens=8)
    with pytest.raises(ValueError, match=message):
        call(model, params, start(model, params), tokens, targets, cfg.teach)


def test_full_attention_says_when_its_cache_is_full():
    cfg = config(model={"window": 0, "max_len": 8})
    model, params, tokens, _ = make(cfg, tokens=12)
    with pytest.raises(ValueError, match="full attention holds 8"):
        model.apply(params, model.init_state(params, 2), tokens)
    state, first = reading(model)(params, model.init_state(params, 2), tokens[:, :6])
    _, logits = reading(model)(params, state, tokens[:, 6:])  # cannot be checked under jit
    assert np.isfinite(np.asarray(first)).all()
    assert np.isnan(np.asarray(logits)).all()


def test_state_on_disk(tmp_path):
    cfg = config(model={"compute_dtype": "bfloat16"})
    model, params, *_ = make(cfg, tokens=16)
    state = jax.tree.map(lambda x: x + jnp.ones_like(x), start(model, params))
    nested_jax.save_state(tmp_path / "state.npz", state)
    loaded = nested_jax.load_state(tmp_path / "state.npz", start(model, params))
    assert isinstance(loaded, State)
    assert_equal(loaded, state)
    with pytest.raises(ValueError, match="this model and batch want"):
        nested_jax.load_state(tmp_path / "state.npz", start(model, params, 3))


def test_dataclasses_are_hashable_and_static():
    cfg = ModelConfig(cms=CMSConfig())
    assert hash(nested_jax.build_model(cfg)) == hash(nested_jax.build_model(ModelConfig()))
    assert TeachConfig() == TeachConfig()
