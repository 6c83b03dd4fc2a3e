"""The stacks of a model against a loop over whole blocks, one after the other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_close
from jax._src.cudnn import fused_attention_stablehlo

import nested_jax
from nested_jax.config import ModelConfig, from_config_dict
from nested_jax.models.stacks import REMAT, run_prefix, run_suffix
from nested_jax.models.stream import make_call
from nested_jax.ops.chunking import Rows
from nested_jax.ops.fast_weights import into_loop
from nested_jax.types import Array, PyTree

LAYERS, ROWS, T, D = 4, 2, 5, 12


def config(taught: int, remat: str) -> ModelConfig:
    cms = {"periods": (4, 8), "fast_layers": taught, "optimizer": "dgd"}
    sizes = {"vocab_size": 23, "dim": D, "layers": LAYERS, "heads": 2, "mlp_hidden": 14}
    model = {"block": "hope_attention", "window": 3, "remat": remat, "cms": cms, **sizes}
    return from_config_dict({"model": model, "data": {"seq_len": 32}}).model


def noise(tree: PyTree, seed: int) -> PyTree:
    """Different numbers in every leaf and layer."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    values = [
        0.3 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, values)


@pytest.mark.slow
@pytest.mark.parametrize(("taught", "remat"), [(3, "none"), (1, "none"), (3, "full"), (4, "dots")])
def test_stacks_equal_a_loop_over_blocks(taught: int, remat: str) -> None:
    cfg = config(taught, remat)
    model = nested_jax.build_model(cfg)
    params = model.init(jax.random.key(0))
    state = model.init_state(params, ROWS)
    deltas = noise(model.deltas(state), 1)
    x_BTD, taps_LBTD = noise((jnp.zeros((ROWS, T, D)), jnp.zeros((taught, ROWS, T, D))), 2)
    call = make_call(cfg, state.now.context, Rows(ROWS, T))

    def stacks(params: PyTree, deltas: PyTree, x_BTD: Array, taps_LBTD: Array) -> Any:
        entered, prefix = run_prefix(cfg, params, state, x_BTD, call)
        cut = tuple(into_loop(delta) for delta in deltas)
        cursor, out = run_suffix(
            cfg, params, entered.now, prefix.x_BTD, call, cut, taps_LBTD, collect=True
        )
        parts = (entered.prefix, entered.entry, cursor.suffix)
        mixers = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *(p for p in parts if p))
        return out.x_BTD, out.recall_B, out.cms_in_LBTD, mixers

    def loop(params: PyTree, deltas: PyTree, x_BTD: Array, taps_LBTD: Array) -> Any:
        mixers, recalls, cms_in = [], [], []
        fresh = jax.tree.map(lambda x: x[:, 0], state.entry)
        for i in range(LAYERS):
            j = i - (LAYERS - taught)  # among the taught blocks
            name, index = ("prefix", i) if j < 0 else ("suffix", j)
            p = {"params": jax.tree.map(lambda w: w[index], params[name])}  # noqa: B023
            own = None if j < 0 else jax.tree.map(lambda d: d[:, index], deltas)  # noqa: B023
            out: Any = model.block(name).apply(p, fresh, x_BTD, call, own)
            mixers.append(out.state)
            x_BTD = out.x_BTD
            if j >= 0:
                x_BTD = x_BTD + taps_LBTD[j]
                recalls.append(out.recall_B)
                cms_in.append(out.cms_in_BTD)
        stacked = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *mixers)
        return x_BTD, sum(recalls), jnp.stack(cms_in), stacked

    def weighed(function: Any) -> Any:
        def loss(*args: Any) -> tuple[Array, Any]:
            found = function(*args)
            return sum(jnp.vdot(x, noise(x, 3)) for x in jax.tree.leaves(found)), found

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))

    args = (params, deltas, x_BTD, taps_LBTD)
    ((_, got), got_grad), ((_, want), want_grad) = weighed(stacks)(*args), weighed(loop)(*args)
    assert_close(got, want, rtol=1e-5)
    assert_close(got_grad, want_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("block", ["gated_deltanet", "hope"])
def test_nested_recomputes_within_a_memory_and_full_only_around_it(block: str) -> None:
    def recomputed(remat: str) -> int:
        memory = {"chunk": 4, "generator_chunk": 4, "segment": 4}
        sizes = {"vocab_size": 23, "dim": 12, "layers": 1, "heads": 2, "mlp_hidden": 14}
        model = {"block": block, "remat": remat, "memory": memory, **sizes}
        built = nested_jax.build_model(
            from_config_dict({"model": model, "data": {"seq_len": 64}}).model
        )
        params = jax.eval_shape(built.init, jax.random.key(0))

        def loss(params: PyTree, tokens_BT: Array) -> Array:
            return jnp.sum(built.apply(params, built.init_state(params, 1), tokens_BT)[1])

        traced = jax.make_jaxpr(jax.grad(loss))(params, jnp.zeros((1, 64), jnp.int32))
        return str(traced).count("remat")

    assert recomputed("none") < recomputed("full") < recomputed("nested")


def test_dots_keeps_what_the_fused_attention_returns() -> None:
    """The policy knows the library's kernel by its name, which another release may change."""
    kernel = fused_attention_stablehlo._dot_product_attention_fwd_p_wrapper
    dots, full = REMAT["dots"], REMAT["full"]
    assert dots is not None
    assert full is not None
    assert dots(kernel)
    assert not full(kernel)
    assert not dots(jax.lax.sin_p)
