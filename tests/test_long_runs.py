"""Memories over thousands of steps and thousands of tokens: nothing dies, nothing blows up."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from long_text import SYMBOLS, text_bytes

import nested_jax
from nested_jax.config import Config, from_config_dict
from nested_jax.ops.memory.state import MemoryState
from nested_jax.train.state import TrainState, new_state
from nested_jax.train.step import make_program, train_step
from nested_jax.types import Array, Batch, PyTree

pytestmark = pytest.mark.slow

STEPS, ROWS, TOKENS = 2000, 8, 64
OPTIMIZED = {"xla_backend_optimization_level": "2"}  # the other tests compile more than they run
TITANS = ("titans_lmm", "titans_mac", "titans_mag", "titans_mal")


def config(block: str, depth: int, **model: Any) -> Config:
    """The test size of configs/common.py on bytes; depth 1 is a linear memory."""
    memory = {"arch": "mlp" if depth > 1 else "linear", "depth": depth, "chunk": 16}
    fields = {
        "block": block,
        "vocab_size": SYMBOLS,
        "dim": 32,
        "layers": 3,
        "heads": 2,
        "mlp_hidden": 96,
        "window": 24,
        "memory": memory | {"generator_chunk": 16},
        "cms": {"periods": (16, 32)},
    } | model
    return from_config_dict(
        {
            "model": fields,
            "teach": {"mode": "exact" if block == "hope" else "off", "chunk": 16},
            "data": {"seq_len": TOKENS},
            "optim": {"learning_rate": 3e-3, "warmup_steps": 100},
            "train": {"steps": STEPS, "batch_size": ROWS},
        }
    )


def draw(text: Array, key: Array) -> Batch:
    """Cut rows at random places."""
    start_B = jax.random.randint(key, (ROWS,), 0, text.shape[0] - TOKENS - 1)
    rows = text[start_B[:, None] + jnp.arange(TOKENS + 1, dtype=jnp.int32)[None]]
    ones = jnp.ones((ROWS, TOKENS))
    return Batch(rows[:, :-1], rows[:, 1:], ones, ones.astype(jnp.int32))


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("block", ["hope", *TITANS])
def test_two_thousand_steps_stay_finite(block: str, depth: int) -> None:
    """bf16 on real text: no update is skipped, no value is not finite, and the loss falls."""
    cfg = config(block, depth, compute_dtype="bfloat16")
    model = nested_jax.build_model(cfg.model)
    program, text = make_program(cfg, model), jnp.asarray(text_bytes(2_000_000))

    @jax.jit
    def hundred(state: TrainState) -> tuple[TrainState, PyTree]:
        def one(state: TrainState, _: None) -> tuple[TrainState, PyTree]:
            batch = draw(text, jax.random.fold_in(jax.random.key(1), state.step))
            state, metrics = train_step(state, batch, program)
            return state, {k: metrics[k] for k in ("loss", "grad_norm", "bad_updates")}

        return jax.lax.scan(one, state, length=100)

    state = jax.jit(lambda k: new_state(model.init(k), program.optimizer))(jax.random.key(0))
    run, losses = hundred.lower(state).compile(compiler_options=OPTIMIZED), []
    for _ in range(STEPS // 100):
        state, metrics = run(state)
        assert all(np.isfinite(np.asarray(m)).all() for m in metrics.values())
        assert float(metrics["bad_updates"][-1]) == 0
        losses += np.asarray(metrics["loss"]).tolist()
    assert len(losses) == STEPS
    for path, p in jax.tree_util.tree_leaves_with_path(state.params):
        assert np.isfinite(np.asarray(p)).all(), jax.tree_util.keystr(path)
    assert np.mean(losses[-100:]) < 0.6 * losses[0]


def memories(state: PyTree) -> list[MemoryState]:
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, MemoryState))
    return [x for x in leaves if isinstance(x, MemoryState)]


def norms(memory: MemoryState) -> np.ndarray:
    """Return the norm of each memory over all its matrices: of each layer, head and generator."""
    squares = sum(np.square(np.asarray(w, np.float64)).sum(axis=(-2, -1)) for w in memory.fast)
    return np.sqrt(squares)


@pytest.mark.parametrize("arch", ["linear", "mlp"])
@pytest.mark.parametrize(("rule", "objective"), [("titans", "l2"), ("dgd", "l2"), ("dgd", "dot")])
@pytest.mark.parametrize("block", ["hope", "hope_hybrid", *TITANS])
def test_no_memory_dies_or_explodes_at_initialization(
    block: str, rule: str, objective: str, arch: str
) -> None:
    """Over 4096 tokens of real text no norm falls below a half or rises above ten times."""
    stays_alive(block, {"arch": arch, "rule": rule, "objective": objective})


@pytest.mark.parametrize("arch", ["linear", "mlp"])
def test_nor_does_one_that_erases_at_a_rate_of_its_own(arch: str) -> None:
    memory = {"arch": arch, "rule": "dgd", "objective": "dot", "erase_gate": True}
    stays_alive("hope", memory)


def stays_alive(block: str, memory: dict[str, Any]) -> None:
    """Read 4097 tokens and compare each memory after the last with that after the first."""
    cfg = config(block, 2, dim=64, layers=2, memory=memory).model
    model = nested_jax.build_model(cfg)
    params = jax.jit(model.init)(jax.random.key(0))
    tokens = jnp.asarray(text_bytes(4097))[None]
    read = jax.jit(partial(model.apply))
    first, _ = read(params, model.init_state(params, 1), tokens[:, :1])
    last, logits = read(params, first, tokens[:, 1:])
    assert np.isfinite(np.asarray(logits)).all()
    pairs = list(zip(memories(first), memories(last), strict=True))
    assert pairs
    for before, after in pairs:
        ratio = norms(after) / norms(before)
        assert ratio.min() > 0.5, ratio.min()
        assert ratio.max() < 10, ratio.max()
