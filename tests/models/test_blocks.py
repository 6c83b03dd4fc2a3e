"""One semantics for every kind of block, through the public API.

The default tier compiles three programs a kind: the training pass (`start="fresh"`), one that
takes rows of any length with documents that start inside, and the decoding step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_equal, products

import nested_jax
from nested_jax.config import BLOCKS, Config, MeshConfig, from_config_dict
from nested_jax.layers.attention import attention_text
from nested_jax.models.decode import Sampling, generate
from nested_jax.models.lm import LanguageModel, build_model
from nested_jax.models.state import reset
from nested_jax.outer_loss import loss_fn
from nested_jax.sharding import batch_sharding, make_mesh, param_shardings
from nested_jax.teach import teach
from nested_jax.types import Array, Batch, PyTree

T, ROWS, SYMBOLS = 12, 2, 23
CMS = ("hope", "hope_attention", "hope_hybrid", "lstm_cms", "gpt2_cms")
FULL = ("transformer", "gpt2", "gpt2_cms")  # attention over all tokens
DEEP = ("titans_lmm", "titans_mac", "titans_mag", "titans_mal")
# `hope` as the proofs train it: online writes, one rate for what is added and one for what goes.
ERASE = "hope, erase gate"
ERASE_MEMORY = {
    "rule": "dgd",
    "objective": "dot",
    "momentum": False,
    "max_rate": 2.0,
    "chunk": 1,
    "targets": "value",
    "erase_gate": True,
    "generator_pace": 0.3,
    "generator_inputs": "own",
}
# Each kind compiles for ten seconds and more; these are made of parts that the others have.
COMPOSED = {"titans_mag", "titans_mal", "hope_hybrid", "deltanet", "lstm_cms", "gpt2_cms", ERASE}
kinds = pytest.mark.parametrize(
    "block",
    [pytest.param(b, marks=pytest.mark.slow) if b in COMPOSED else b for b in (*BLOCKS, ERASE)],
)


def config(block: str, **model: Any) -> Config:
    """B=2, T=12, D=12, H=2, F=14, S=23; chunks of 4 or 2, segments of 4, a window of 7."""
    own = ERASE_MEMORY if block == ERASE else {}
    block = block.partition(",")[0]
    memory = {
        "arch": "mlp" if block in DEEP else "linear",
        "chunk": 2 if block == "titans_mac" else 4,
        "segment": 4,
        "generator_chunk": 2,
        "inner_lr": 0.3,
        "persistent": 3,
    }
    memory |= own | model.pop("memory", {})
    fields = {
        "block": block,
        "vocab_size": SYMBOLS,
        "dim": 12,
        "layers": 1,
        "heads": 2,
        "mlp_hidden": 14,
        "window": 0 if block in FULL else 7,
        "max_len": T,
        "memory": memory,
        "cms": {"periods": (4, 8), "inner_lr": 0.3},
    } | model
    mode = "exact" if block in CMS else "off"
    return from_config_dict(
        {"model": fields, "teach": {"mode": mode, "chunk": 4}, "data": {"seq_len": T}}
    )


class Built(NamedTuple):
    """A model with parameters that are all in use, a text, and its compiled programs."""

    model: LanguageModel
    params: PyTree
    tokens: Array
    fresh: Any  # State
    train: Callable[..., Any]  # params, state, tokens: all rows whole, from a fresh state
    read: Callable[..., Any]  # params, state, tokens, starts, lengths
    step: Callable[..., Any]  # params, state, one token per row


@lru_cache
def build(block: str, dtype: str = "float32", layers: int = 1) -> Built:
    cfg = config(block, compute_dtype=dtype, layers=layers).model
    model = nested_jax.build_model(cfg)

    @jax.jit
    def start(key: Array) -> tuple[PyTree, Any]:
        # Gates start at their bias, whatever the token: noise puts all of them to work.
        noise = lambda p: p + 0.1 * jax.random.normal(key, p.shape, p.dtype)  # noqa: E731
        params = jax.tree.map(noise, model.init(key))
        return params, model.init_state(params, ROWS)

    params, fresh = start(jax.random.key(0))
    return Built(
        model,
        params,
        jax.random.randint(jax.random.key(1), (ROWS, T), 0, SYMBOLS),
        fresh,
        jax.jit(partial(model.apply, start="fresh")),
        jax.jit(lambda p, s, x, starts, n: model.apply(p, s, x, starts_BT=starts, lengths_B=n)),
        jax.jit(model.apply),
    )


NOWHERE = jnp.zeros((ROWS, T), bool)


def row(tree: PyTree, index: int) -> PyTree:
    return jax.tree.map(lambda x: x[index], tree)


def read(
    b: Built, state: Any, tokens: Array, lengths: tuple[int, int], starts: Array = NOWHERE
) -> Any:
    return b.read(b.params, state, tokens, starts, jnp.asarray(lengths, jnp.int32))


def from_places(tokens: Array, places: tuple[int, int]) -> Array:
    """Return the rows from a place of their own on, to T tokens."""
    return jnp.stack([jnp.roll(x, -place) for x, place in zip(tokens, places, strict=True)])


@kinds
def test_every_token_alone_equals_the_training_pass(block: str) -> None:
    """Decoding is the parallel pass, in outputs and in the state that it leaves."""
    b = build(block)
    want, logits = b.train(b.params, b.fresh, b.tokens)
    state, alone = b.fresh, []
    for t in range(T):
        state, one = b.step(b.params, state, b.tokens[:, t : t + 1])
        alone.append(one)
    assert_close(jnp.concatenate(alone, axis=1), logits, rtol=2e-5)
    assert_close(state, want, rtol=2e-5, atol=1e-6)


@kinds
def test_pieces_of_any_length_equal_the_training_pass(block: str) -> None:
    """Each row in pieces of its own; a call may give a row nothing."""
    b = build(block)
    want, logits = b.train(b.params, b.fresh, b.tokens)
    state, at = b.fresh, np.zeros(ROWS, int)
    for lengths in ((5, 0), (0, 3), (1, 6), (6, 3)):
        state, out = read(b, state, from_places(b.tokens, tuple(at)), lengths)
        for i, n in enumerate(lengths):
            assert_close(out[i, :n], logits[i, at[i] : at[i] + n], rtol=2e-5)
        at += np.asarray(lengths)
    assert at.tolist() == [T, T]
    assert_close(state, want, rtol=2e-5, atol=1e-6)


@kinds
def test_rows_and_times_that_a_token_reaches(block: str) -> None:
    """Outputs before a changed token do not move, those of it and after do; other rows never."""
    b = build(block)
    before, logits = read(b, b.fresh, b.tokens, (T, T))
    changed = b.tokens.at[1, 5].add(1) % SYMBOLS
    after, moved = read(b, b.fresh, changed, (T, T))
    assert_equal(row((before, logits), 0), row((after, moved), 0))
    assert_equal(logits[1, :5], moved[1, :5])
    assert np.all(np.abs(logits - moved).max(axis=-1)[1, 5:] > 1e-6)


@kinds
def test_permuted_rows_give_permuted_results(block: str) -> None:
    b = build(block)
    lengths = (T, 7)
    want = read(b, b.fresh, b.tokens, lengths)
    got = read(b, b.fresh, b.tokens[::-1], lengths[::-1])
    assert_close(jax.tree.map(lambda x: x[::-1], got), want, rtol=1e-6)


@kinds
def test_packed_documents_equal_separate_runs(block: str) -> None:
    b = build(block)
    starts = NOWHERE.at[0, 4].set(True).at[1, 8].set(True)
    state, packed = read(b, b.fresh, b.tokens, (T, T), starts)
    _, first = read(b, b.fresh, b.tokens, (4, 8))
    alone, second = read(b, b.fresh, from_places(b.tokens, (4, 8)), (T - 4, T - 8))
    for i, cut in enumerate((4, 8)):
        assert_close(packed[i, :cut], first[i, :cut], rtol=2e-5)
        assert_close(packed[i, cut:], second[i, : T - cut], rtol=2e-5)
    # Attention's caches still hold what the documents before have left, out of reach.
    following = from_places(b.tokens, (7, 2))
    _, after_packed = read(b, state, following, (3, 5))
    _, after_alone = read(b, alone, following, (3, 5))
    if block not in FULL:  # whose cache is full
        assert_close(after_packed[0, :3], after_alone[0, :3], rtol=2e-5)
        assert_close(after_packed[1, :5], after_alone[1, :5], rtol=2e-5)


@kinds
def test_a_document_that_starts_a_call_forgets_the_one_before(block: str) -> None:
    """Wherever in its chunks the row stood; a start that is no token of the row changes nothing."""
    b = build(block)
    used, _ = read(b, b.fresh, b.tokens, (3, 2))
    begins = NOWHERE.at[:, 0].set(True)
    state, again = read(b, used, b.tokens, (9, 0), begins)
    assert_equal(row(state, 1), row(used, 1))
    _, want = read(b, b.fresh, b.tokens, (9, 0))
    assert_close(again[0, :9], want[0, :9], rtol=2e-5)


@kinds
def test_reset_equals_a_fresh_start(block: str) -> None:
    b = build(block)
    used, logits = read(b, b.fresh, b.tokens, (5, 7))
    cleared = reset(used, jnp.array([False, True]))
    assert_equal(row(cleared, 1), row(b.fresh, 1))
    assert_equal(row(cleared, 0), row(used, 0))
    _, again = read(b, cleared, b.tokens, (0, 7))
    assert_equal(again[1, :7], logits[1, :7])


@kinds
def test_state_goes_to_disk_and_back(block: str, tmp_path: Path) -> None:
    b = build(block)
    used, _ = read(b, b.fresh, b.tokens, (5, 7))
    nested_jax.save_state(tmp_path / "state.npz", used)
    assert_equal(nested_jax.load_state(tmp_path / "state.npz", b.fresh), used)
    with pytest.raises(ValueError, match="this model and batch want"):
        nested_jax.load_state(tmp_path / "state.npz", b.model.init_state(b.params, 3))


@kinds
def test_state_keeps_its_types(block: str) -> None:
    """Structure, shapes and dtypes of the state are fixed: the carry of any scan."""
    b = build(block)
    for tokens in (b.tokens, b.tokens[:, :1]):
        state, logits = jax.eval_shape(b.model.apply, b.params, b.fresh, tokens)
        assert jax.tree.map(jax.typeof, b.fresh) == jax.tree.map(
            lambda x: jax.typeof(jnp.zeros(x.shape, x.dtype)), state
        )
        assert logits.dtype == jnp.float32


# --- slow: the same under other numbers, meshes and inputs ----------------------------------------


@pytest.mark.slow
@kinds
def test_calls_of_every_shape(block: str) -> None:
    """Pieces as calls of their own length, two layers deep."""
    b = build(block, layers=2)
    want, logits = b.train(b.params, b.fresh, b.tokens)
    for sizes in ((12,), (3, 1, 8), (4, 4, 4), (5, 7), (2, 9, 1)):
        state, pieces, at = b.fresh, [], 0
        for size in sizes:
            state, out = b.step(b.params, state, b.tokens[:, at : at + size])
            pieces.append(out)
            at += size
        assert_close(jnp.concatenate(pieces, axis=1), logits, rtol=2e-5)
        assert_close(state, want, rtol=2e-5, atol=1e-6)


@pytest.mark.slow
@kinds
def test_float64_splits_to_the_last_digits(block: str, float64: None) -> None:
    """What float32 hides: in double precision pieces and whole agree to 1e-12."""
    b = build(block, dtype="float64")
    params = jax.tree.map(lambda p: p.astype(jnp.float64), b.params)
    fresh = b.model.init_state(params, ROWS)
    want, logits = b.train(params, fresh, b.tokens)
    state, first = b.read(params, fresh, b.tokens, NOWHERE, jnp.array([5, 3], jnp.int32))
    rest = from_places(b.tokens, (5, 3))
    state, second = b.read(params, state, rest, NOWHERE, jnp.array([7, 9], jnp.int32))
    for i, cut in enumerate((5, 3)):
        whole = jnp.concatenate([first[i, :cut], second[i, : T - cut]])
        assert whole.dtype == jnp.float64
        assert_close(whole, logits[i], rtol=1e-12)
    assert_close(state, want, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
@kinds
def test_bfloat16_stays_near_float32(block: str) -> None:
    wide, narrow = build(block), build(block, dtype="bfloat16")
    want = wide.train(wide.params, wide.fresh, wide.tokens)[1]
    state, got = narrow.train(narrow.params, narrow.fresh, narrow.tokens)
    assert_close(got, want, rtol=0.1)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state))
    memories = {x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert memories <= {jnp.dtype("float32"), jnp.dtype("bfloat16")}


@pytest.mark.slow
@kinds
def test_embeddings_are_inputs(block: str) -> None:
    b = build(block)
    want = b.train(b.params, b.fresh, b.tokens)
    got = b.train(b.params, b.fresh, b.model.embed(b.params, b.tokens))
    assert_close(got, want, rtol=1e-6)


@pytest.mark.slow
@kinds
def test_greedy_generation_is_the_argmax_of_the_training_pass(block: str) -> None:
    b = build(block)
    prompt = np.asarray(b.tokens[:, :5], np.int32)
    written = list(generate(b.model, b.params, prompt, 7, jax.random.key(0), Sampling(0.0)))
    text = np.concatenate([prompt, np.stack(written, axis=1)], axis=1)
    _, logits = b.train(b.params, b.fresh, jnp.asarray(text))
    np.testing.assert_array_equal(np.argmax(logits[:, 4:-1], axis=-1), text[:, 5:])


@pytest.mark.slow
@kinds
@pytest.mark.parametrize("sizes", [(2, 4, 1), (2, 2, 2)], ids=lambda s: "x".join(map(str, s)))
def test_a_mesh_of_eight_devices_changes_nothing(block: str, sizes: tuple[int, ...]) -> None:
    """Loss, outer gradient and state are those of one device."""
    cfg = config(block, mlp_hidden=16, vocab_size=24)
    model = nested_jax.build_model(cfg.model)
    params = jax.jit(model.init)(jax.random.key(0))
    text = jax.random.randint(jax.random.key(1), (8, T + 1), 0, SYMBOLS)
    ones = jnp.ones((8, T))
    batch = Batch(text[:, :-1], text[:, 1:], ones, ones.astype(jnp.int32))
    step = jax.value_and_grad(lambda p, x: loss_fn(model, p, x, cfg)[0])
    want = jax.jit(step)(params, batch)
    mesh = make_mesh(MeshConfig(*sizes))
    spread = jax.device_put(params, param_shardings(mesh, model.param_info()))
    rows = jax.device_put(batch, batch_sharding(mesh))
    with jax.set_mesh(mesh):
        got = jax.jit(step)(spread, rows)
    assert_close(got, want, rtol=2e-5, atol=1e-7)


@pytest.mark.slow
@kinds
def test_every_parameter_learns(block: str) -> None:
    """The outer gradient is finite, and not zero for any array: nothing is declared in vain."""
    cfg = config(block, layers=2)
    model = nested_jax.build_model(cfg.model)
    params = build(block, layers=2).params
    text = jax.random.randint(jax.random.key(1), (ROWS, T + 1), 0, SYMBOLS)
    ones = jnp.ones((ROWS, T))
    batch = Batch(text[:, :-1], text[:, 1:], ones, ones.astype(jnp.int32))
    grads = jax.jit(jax.grad(lambda p: loss_fn(model, p, batch, cfg)[0]))(params)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        where = jax.tree_util.keystr(path)
        assert np.isfinite(np.asarray(g)).all(), where
        if where.endswith("['mixer']['k_bias']"):  # it adds the same to all scores of a query
            assert float(jnp.abs(g).max()) < 1e-7, where
        else:
            assert float(jnp.abs(g).max()) > 1e-9, where


@pytest.mark.slow
@pytest.mark.parametrize("block", [*CMS, ERASE])
def test_teaching_in_pieces_ends_where_one_call_ends(block: str) -> None:
    b, cfg = build(block, layers=2), config(block, layers=2)
    targets = jnp.roll(b.tokens, -1, axis=1)
    learn = jax.jit(partial(teach, b.model, cfg=cfg.teach))
    want, whole = learn(b.params, b.fresh, b.tokens, targets)
    for sizes in ((1,) * T, (5, 7), (3, 1, 8)):
        state, losses, at = b.fresh, [], 0
        for size in sizes:
            part = slice(at, at + size)
            state, taught = learn(b.params, state, b.tokens[:, part], targets[:, part])
            losses.append(taught.loss_BT)
            at += size
        assert_close(jnp.concatenate(losses, axis=1), whole.loss_BT, rtol=2e-5)
        assert_close(state, want, rtol=2e-5, atol=2e-6)
    assert np.asarray(want.fast[0].writes_B).tolist() == [T // 4] * ROWS


# --- what a configuration chooses -----------------------------------------------------------------

ABLATIONS: dict[str, dict[str, Any]] = {
    "linear memory": {"arch": "linear"},
    "no convolution": {"conv": 0},
    "no momentum": {"momentum": False},
    "no retention": {"retention": False},
    "no persistent memory": {"persistent": 0},
}


def count(cfg: Config) -> int:
    info = nested_jax.build_model(cfg.model).param_info()
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(info))


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_ablation_of_titans_takes_its_parameters_out(name: str) -> None:
    full, without = config("titans_mac"), config("titans_mac", memory=ABLATIONS[name])
    removed = {
        "linear memory": 2 * 6 * 6,  # one of two matrices, two heads
        "no convolution": 4 * 4 * 12,  # of q, k, v and the probe
        "no momentum": 12 * 2 + 2,
        "no retention": 12 * 2 + 2,
        "no persistent memory": 3 * 12,
    }
    assert count(full) - count(without) == removed[name]


@pytest.mark.parametrize(
    ("block", "model", "message"),
    [
        ("titans_mac", {"memory": {"chunk": 3}}, r"model\.memory\.segment=4: must be a multiple"),
        (
            "titans_mac",
            {"memory": {"persistent": -1}},
            r"model\.memory\.persistent=-1: wants 0 or more",
        ),
        (
            "hope",
            {"memory": {"generator_chunk": 3}},
            r"model\.memory\.generator_chunk=3: must divide",
        ),
        ("hope", {"memory": {"rule": "oja"}}, r"model\.memory\.rule='oja'.*'gd', 'titans', 'dgd'"),
        ("hope", {"cms": {"periods": (4, 6)}}, "6 is no multiple of 4"),
        (
            "titans_mag",
            {"attention": "cudnn", "compute_dtype": "bfloat16"},
            r"wants model\.memory\.persistent=0, got 3",
        ),
    ],
)
def test_bad_combinations_name_field_value_and_form(
    block: str, model: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(block, **model)


@pytest.mark.parametrize(
    ("block", "platform", "capability", "dtype", "want"),
    [
        ("transformer", "cpu", None, "bfloat16", "xla"),
        ("transformer", "gpu", "9.0", "bfloat16", "cudnn"),
        ("hope_attention", "gpu", "8.0", "bfloat16", "cudnn"),
        ("transformer", "gpu", "7.5", "bfloat16", "blockwise"),
        ("transformer", "gpu", "gfx942", "bfloat16", "blockwise"),
        ("transformer", "gpu", "9.0", "float32", "blockwise"),
        ("titans_mag", "gpu", "9.0", "bfloat16", "blockwise"),
    ],
)
def test_auto_takes_the_fused_kernel_where_it_applies(
    block: str, platform: str, capability: str | None, dtype: str, want: str
) -> None:
    class Device:
        def __init__(self) -> None:
            self.platform = platform
            if capability:
                self.compute_capability = capability

    device: Any = Device()
    cfg = config(block, compute_dtype=dtype, dim=32, heads=2, kv_heads=2)
    model = build_model(cfg.model, device)
    assert model.cfg.attention == want
    assert f"model.attention={want!r}" in attention_text(model.cfg)


@pytest.mark.parametrize("block", BLOCKS)
def test_initialisation_computes_no_layer(block: str) -> None:
    """Parameters are declared, and drawn; no product, and no attention under a batching rule."""
    cfg = config(block)
    model = build_model(cfg.model)
    assert products(model.init, jax.random.key(0)) == 0


def test_a_row_must_hold_whole_chunks() -> None:
    cfg = config("titans_mac")
    with pytest.raises(ValueError, match=r"data\.align=2: must be a multiple of .*=4;"):
        replace(cfg, data=replace(cfg.data, seq_len=10))


@kinds
def test_a_state_of_another_model_or_batch_is_refused(block: str) -> None:
    b = build(block)
    other = "gated_deltanet" if block in FULL else "transformer"
    with pytest.raises(ValueError, match=r"state.*(is of another model|wants .* for this model)"):
        b.model.apply(b.params, build(other).fresh, b.tokens)
    with pytest.raises(ValueError, match="for this model and 1 sequences"):
        b.model.apply(b.params, b.fresh, b.tokens[:1])
