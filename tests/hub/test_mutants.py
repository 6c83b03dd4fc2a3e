"""Every way in which a GPT-2 export has been wrong before is seen by a comparison of `--check`.

The tensors of a folder are changed as a wrong exporter would write them, or our model as a wrong
one would compute. Which comparison sees it depends on the parameters: a lost bias shows only where
biases are not 0, the eps of a norm only where activations are small, and a bias of the keys in no
logit at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from hub.test_gpt2 import CFG, TOKENS, everything, logits, program, start

from nested_jax.hub import check
from nested_jax.hub.gpt2 import from_gpt2, gpt2_config, to_gpt2
from nested_jax.hub.oracle import oracle_logits
from nested_jax.layers import basic, mlp
from nested_jax.models import lm

D, HEADS = CFG.dim, CFG.heads
ATTENTION, EMBED = "transformer.h.1.attn.", "transformer.wte.weight"
Change = Callable[[dict[str, np.ndarray], dict[str, Any]], None]


def columns(order: str) -> Change:
    """Write the parts of c_attn in another order."""

    def change(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
        for kind in ("weight", "bias"):
            parts = dict(
                zip("qkv", np.split(tensors[f"{ATTENTION}c_attn.{kind}"], 3, -1), strict=True)
            )
            tensors[f"{ATTENTION}c_attn.{kind}"] = np.concatenate([parts[n] for n in order], -1)

    return change


def interleaved(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    """Write heads width-major."""
    for kind in ("weight", "bias"):
        name = f"{ATTENTION}c_attn.{kind}"
        x = tensors[name].reshape(-1, 3, HEADS, D // HEADS).swapaxes(2, 3)
        tensors[name] = x.reshape(tensors[name].shape)


def transposed(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    """Only the square matrix: the others would not fit."""
    tensors[f"{ATTENTION}c_proj.weight"] = tensors[f"{ATTENTION}c_proj.weight"].T


def lost(name: str, part: slice = slice(None)) -> Change:
    def change(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name][part] = 0

    return change


def another_head(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    config["tie_word_embeddings"] = False
    tensors["lm_head.weight"] = np.random.default_rng(5).normal(size=tensors[EMBED].shape)


def scaled(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    config["tie_word_embeddings"] = False
    tensors["lm_head.weight"] = tensors[EMBED]
    tensors[EMBED] = tensors[EMBED] * np.float32(np.sqrt(D))


def shifted(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    tensors["transformer.wpe.weight"] = np.roll(tensors["transformer.wpe.weight"], 1, axis=0)


def eps(value: float) -> Change:
    def change(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
        config["layer_norm_epsilon"] = value

    return change


# What is written wrongly, and where it shows: at random parameters, at fresh ones, in the tensors.
WRITTEN: dict[str, tuple[Change, str]] = {
    "square c_proj transposed": (transposed, "random"),
    "q and k swapped": (columns("kqv"), "random"),
    "k and v swapped": (columns("qvk"), "random"),
    "heads interleaved": (interleaved, "random"),
    "another head": (another_head, "random"),
    "embedding scaled by sqrt(D)": (scaled, "random"),
    "positions off by one": (shifted, "random"),
    "c_attn bias lost": (lost(f"{ATTENTION}c_attn.bias"), "random"),
    "c_proj bias lost": (lost(f"{ATTENTION}c_proj.bias"), "random"),
    "MLP bias lost": (lost("transformer.h.0.mlp.c_fc.bias"), "random"),
    "LayerNorm bias lost": (lost("transformer.h.0.ln_1.bias"), "random"),
    "final LayerNorm bias lost": (lost("transformer.ln_f.bias"), "random"),
    "key bias lost": (lost(f"{ATTENTION}c_attn.bias", slice(D, 2 * D)), "tensors"),
    "eps 1e-6": (eps(1e-6), "fresh"),
    "eps 1e-12": (eps(1e-12), "fresh"),
}


def compared(params: Any, ours: np.ndarray, change: Change | None) -> dict[str, bool | None]:
    """Return the comparisons of `--check` for tensors and a config that a change was made to."""
    tensors, config = to_gpt2(params, CFG), gpt2_config(CFG)
    if change is not None:
        change(tensors, config)
    lines = [
        check._compare_logits("numpy", oracle_logits(tensors, config, TOKENS), ours),
        check._compare_tensors(params, *from_gpt2(tensors, config)),
    ]
    return {line.what: line.holds for line in lines}


@pytest.fixture(scope="module")
def cases() -> dict[str, tuple[Any, np.ndarray]]:
    """Parameters, and what our model makes of them."""
    found = {"random": everything(size=1.0), "fresh": start()}
    return {name: (params, logits(params)) for name, params in found.items()}


def test_what_is_right_is_equal(cases: dict[str, tuple[Any, np.ndarray]]) -> None:
    for params, ours in cases.values():
        assert compared(params, ours, None) == {"logits, numpy": True, "tensors": True}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_wrongly_is_seen(
    name: str, cases: dict[str, tuple[Any, np.ndarray]]
) -> None:
    change, where = WRITTEN[name]
    found = compared(*cases["fresh" if where == "fresh" else "random"], change)
    assert found["tensors" if where == "tensors" else "logits, numpy"] is False


def rms(x: Any, scale: Any, bias: Any, eps: float) -> Any:
    return basic.add_bias(basic.rms_norm(x, scale, eps), bias)


@pytest.mark.parametrize("name", ["RMSNorm for LayerNorm", "erf GELU", "embedding scaled"])
def test_what_is_computed_wrongly_is_seen(
    name: str, cases: dict[str, tuple[Any, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong the same way on both sides of a round trip: only the oracle knows better."""
    if name == "RMSNorm for LayerNorm":
        monkeypatch.setattr(basic, "layer_norm", rms)
        monkeypatch.setattr(lm, "layer_norm", rms)
    elif name == "erf GELU":
        erf = jax.nn.gelu
        monkeypatch.setattr(mlp.jax.nn, "gelu", lambda x, approximate: erf(x, approximate=False))
    else:
        plain = lm.LanguageModel.embed
        twice = lambda self, params, tokens: 2 * plain(self, params, tokens)  # noqa: E731
        monkeypatch.setattr(lm.LanguageModel, "embed", twice)
    params, _ = cases["random"]
    program.cache_clear()  # compiled before the change
    found = compared(params, logits(params), None)
    program.cache_clear()
    assert found == {"logits, numpy": False, "tensors": True}
