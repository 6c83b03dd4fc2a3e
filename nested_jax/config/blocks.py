"""The block kinds: one record for each, and no other list of them.

A new kind is a record here and a mixer in `nested_jax/layers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class BlockKind:
    """What the library has to know about a kind of block."""

    mixer: str  # MODULE.CLASS in nested_jax/layers: what mixes tokens
    cms: bool = False  # a CMS after the mixer; otherwise an MLP
    # The parts of GPT-2: learned positions, LayerNorm, biases, a tanh GELU, its starting values.
    # Otherwise rotary positions, RMSNorm, no biases, SwiGLU.
    gpt2: bool = False
    # causal: softmax over the tokens read so far, with a cache of the model. segment: over the
    # tokens of a segment, and what was retrieved for them.
    attention: Literal["none", "causal", "segment"] = "none"
    persistent: bool = False  # learned tokens that attention sees before all others
    # Fields of model.memory whose multiples the chunks of its memory end at.
    chunks: tuple[Literal["chunk", "generator_chunk", "segment"], ...] = ()
    # Name of its sequence memory for --memorize-paths: titan is written at every chunk by gradient
    # steps, delta at every token. The mixer's state has `matrices` and `memory_into`.
    memory: Literal["", "titan", "delta"] = ""
    self_modifying: bool = False  # its memory makes its own keys, values and gates
    taught: str = ""  # the kind with a CMS in the place of this one's MLP, and no other difference


KINDS = {
    "transformer": BlockKind("attention.Attention", attention="causal", taught="hope_attention"),
    "gpt2": BlockKind("attention.Attention", gpt2=True, attention="causal", taught="gpt2_cms"),
    "gpt2_cms": BlockKind("attention.Attention", cms=True, gpt2=True, attention="causal"),
    "hope_attention": BlockKind("attention.Attention", cms=True, attention="causal"),
    "hope": BlockKind(
        "selfmod.SelfModifying",
        cms=True,
        chunks=("chunk", "generator_chunk"),
        memory="titan",
        self_modifying=True,
    ),
    "titans_lmm": BlockKind("titans.NeuralMemory", chunks=("chunk",), memory="titan"),
    "titans_mac": BlockKind(
        "titans_mac.MemoryAsContext",
        attention="segment",
        persistent=True,
        chunks=("chunk", "segment"),
        memory="titan",
    ),
    "titans_mag": BlockKind(
        "titans_hybrids.MemoryAsGate",
        attention="causal",
        persistent=True,
        chunks=("chunk",),
        memory="titan",
    ),
    "titans_mal": BlockKind(
        "titans_hybrids.MemoryAsLayer",
        attention="causal",
        persistent=True,
        chunks=("chunk",),
        memory="titan",
    ),
    "hope_hybrid": BlockKind(
        "titans_hybrids.AttentionThenMemory",
        cms=True,
        attention="causal",
        chunks=("chunk",),
        memory="titan",
    ),
    "gated_deltanet": BlockKind("deltanet.GatedDeltaNet", memory="delta"),
    "deltanet": BlockKind("deltanet.DeltaNet", memory="delta"),
    "lstm": BlockKind("lstm.LSTM", taught="lstm_cms"),
    "lstm_cms": BlockKind("lstm.LSTM", cms=True),
}
BLOCKS = tuple(KINDS)
