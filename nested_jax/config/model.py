"""What the model is: memory, CMS levels, language model. Frozen and checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal

from nested_jax.config.blocks import BLOCKS, KINDS, BlockKind
from nested_jax.config.fields import (
    Amount,
    Block,
    Count,
    Factor,
    Fraction,
    Free,
    Positive,
    Range,
    Share,
    Size,
    Small,
)


@dataclass(frozen=True)
class MemoryConfig(Block):
    """A neural memory: what it is, how it is written, how it is read."""

    arch: Literal["linear", "mlp"] = "linear"  # W x, or x + W1 act(W2 x) of `depth` matrices
    depth: Count = 2  # matrices of an `mlp` memory
    hidden: Positive = 1.0  # hidden width of an `mlp` memory, times its head width
    activation: Literal["gelu", "silu"] = "gelu"  # of an `mlp` memory
    objective: Literal["l2", "dot"] = "l2"  # what a write descends
    rule: Literal["gd", "titans", "dgd"] = "titans"  # how the gradient is applied
    read: Literal["token", "chunk"] = "token"  # the memory as of the token, or of the last boundary
    order: Literal["write_read", "read_write"] = "write_read"  # y_t from M_t, or from M_{t-1}
    chunk: Count = 64  # tokens between gradient boundaries; 1 is the fully online rule
    generator_chunk: Count = 64  # the same for the generators k, v, eta, alpha of `hope`
    heads: Size = 0  # memory heads; 0 takes model.heads
    head_width: Size = 0  # key and value width a head; 0 takes dim / heads
    inner_lr: Positive = 0.03  # ceiling of the write rate; below 2 / chunk an `l2` write is stable
    max_rate: Annotated[float, Range(above=0, most=2)] = 1.0  # of a delta write; 2: reflections
    momentum: bool = True  # Titans Eq. 10: past surprise (rules titans and dgd)
    retention: bool = True  # Titans Eq. 13: the forget gate (rules titans and dgd)
    # Retention per token at initialisation, one or one per head. 0.99 empties a deep memory;
    # (0.957, 0.9973, 0.99983, 0.99996) are half-lives of 16 to 16,000 tokens.
    keep_init: tuple[Small, ...] = (0.9999,)
    conv: Annotated[int, Range(least=2, also=0)] = 4  # width of the causal convolution; 0 is none
    adaptive_k: bool = True  # `hope`: keys come from a memory that is written in context
    adaptive_v: bool = True  # `hope`: values likewise
    adaptive_q: bool = False  # `hope`: queries likewise (NL finds it slightly better without)
    targets: Literal["self", "value"] = "self"  # `hope`: written with unit(M(v)), or with v itself
    beside: bool = False  # `hope`: the learned start is read beside what is written, which is empty
    persistent: Size = 4  # learned tokens that attention sees first (titans_mac, _mag, _mal)
    segment: Size = 0  # tokens of a segment of titans_mac; 0 takes `chunk`
    write_from: Literal["attended", "input"] = "attended"  # titans_mac: what is written
    generator_inputs: Literal["shared", "own"] = "shared"  # `hope`: what k, v and q are made from
    generator_pace: Factor = 1.0  # `hope`: below 1, learned factor of the generators' writes
    erase_gate: bool = False  # `hope`, rule dgd: what it erases with is not the rate of the write
    erase_init: tuple[Positive, ...] = ()  # where that gate starts, per head; () as the rate
    erase_stretch: Fraction = 0.0  # its sigmoid reaches this far beyond both ends, then is clipped
    frozen: bool = False  # ablation: the memory is read and never written

    def check(self) -> None:
        self.require(len(self.keep_init) > 0, "keep_init", "wants one value or more")
        want = f"wants model.memory.rule='dgd', which erases; got {self.rule!r}"
        self.require(not self.erase_gate or self.rule == "dgd", "erase_gate", want)
        for name in ("erase_init", "erase_stretch"):
            want = "wants model.memory.erase_gate=True, which is off"
            self.require(self.erase_gate or not getattr(self, name), name, want)
        want = "wants linear memories, targets='value' and adaptive_q=False"
        plain = self.arch == "linear" and self.targets == "value" and not self.adaptive_q
        self.require(plain or not self.beside, "beside", want)
        want = f"wants a rate below model.memory.max_rate={self.max_rate}"
        self.require(self.inner_lr < self.max_rate, "inner_lr", want)


@dataclass(frozen=True)
class CMSConfig(Block):
    """The continuum memory system: a chain of MLP levels, each written at its own period."""

    periods: tuple[Count, ...] = (64, 256)  # tokens between a level's writes, the fastest first
    chain: Literal["sequential", "nested", "independent"] = "sequential"  # how levels are arranged
    hidden: Size = 0  # hidden width of a level; 0 takes model.mlp_hidden
    # Per token of summed loss, or share of a matrix's norm (`unit`): one, one for each level, or
    # one for each matrix of each level.
    inner_lr: tuple[Amount, ...] = (0.005,)
    learned_rate: bool = True  # every matrix of a level learns a factor on its rate
    optimizer: tuple[Literal["sgd", "momentum", "dgd", "adam", "muon", "unit"], ...] = (
        "sgd",
    )  # likewise
    momentum: tuple[Share, ...] = (0.9,)  # of `momentum`, `adam` and `muon`, per write; likewise
    keep: Factor = 1.0  # retention of a fast weight at a write: 1 forgets nothing
    fast_layers: Annotated[int, Range(least=-1)] = 1  # last blocks, with written levels; -1 is all
    trust: Amount = 0.0  # nats that writes may lose to no writes before they are undone; 0: any
    # Levels of the blocks that are not written; "first": the fastest alone, which is an MLP.
    slow_levels: Literal["all", "first"] = "all"
    fast_rank: Size = 0  # rank of a fast weight's delta; 0 is full
    surprise: tuple[Amount, ...] = ()  # weight of each level's auxiliary loss; () has no heads

    def check(self) -> None:
        levels = len(self.periods)
        self.require(levels > 0, "periods", "wants at least one level")
        for fast, slow in pairwise(self.periods):
            want = f"each must be a multiple of the one before; {slow} is no multiple of {fast}"
            self.require(slow % fast == 0, "periods", want)
        want = f"wants one, or one for each of the {levels} periods"
        for name in ("optimizer", "momentum"):
            self.require(len(getattr(self, name)) in (1, levels), name, want)
        want += ", or one for each matrix of each"
        counts = (1, levels, 2 * levels, 3 * levels)
        self.require(len(self.inner_lr) in counts, "inner_lr", want)
        want = "wants () with model.cms.slow_levels='first'"
        self.require(not self.surprise or self.slow_levels == "all", "surprise", want)
        want = f"wants a weight for each of the {levels} periods, or () for no heads"
        self.require(len(self.surprise) in (0, levels), "surprise", want)

    def level_lr(self, level: int) -> tuple[float, ...]:
        """Return the rate of a level, or those of its matrices."""
        each = max(len(self.inner_lr) // len(self.periods), 1)
        at = level * each % len(self.inner_lr)
        return self.inner_lr[at : at + each]

    def level_optimizer(self, level: int) -> str:
        return self.optimizer[level % len(self.optimizer)]

    def level_momentum(self, level: int) -> float:
        return self.momentum[level % len(self.momentum)]


@dataclass(frozen=True)
class ModelConfig(Block):
    """The language model: embedding, a stack of equal blocks, head."""

    block: Literal[BLOCKS] = "transformer"  # type: ignore[valid-type]  # see config/blocks.py
    size: str = "custom"  # the name of the size, for logs and reports
    vocab_size: Count = 8192  # symbols of embedding and head; at least the tokenizer's
    dim: Count = 256  # model width
    layers: Count = 4  # blocks
    heads: Count = 4  # query heads of attention
    kv_heads: Size = 0  # key and value heads (GQA); 0 takes `heads`
    mlp_hidden: Size = 0  # of the MLP; 0 takes 8/3 dim, rounded up to 32, or 4 dim (`gpt2`)
    lstm_hidden: Size = 0  # width of the state of an LSTM; 0 takes dim
    window: Size = 0  # sliding attention window in tokens; 0 is full causal attention
    max_len: Count = 2048  # tokens that full attention can hold, positions of `gpt2`
    rope_theta: Positive = 10_000.0  # base of the rotary frequencies
    # Llama 3.1's change of them: factor, its factors of low and of high frequencies, tokens that
    # the model was first trained on; () for none.
    rope_scaling: tuple[Positive, ...] = ()
    qkv_bias: bool = False  # of queries, keys and values, as Qwen2 has them
    qk_norm: bool = False  # L2-normalised queries and keys with a learned temperature a head
    norm_eps: Small = 1e-6  # of every norm; GPT-2 was trained with 1e-5
    tie_embeddings: bool = True  # the head is the transposed embedding
    answers: Literal["each", "last"] = "each"  # each position's own, or all decoded from the last
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # of matrix products
    # What the backward pass recomputes of a block: nothing, all but products with weights, all; or
    # all, and within its memory once more, so that of N chunks about 2 sqrt(N) states are kept.
    remat: Free[Literal["none", "dots", "full", "nested"]] = "none"
    attention: Free[Literal["auto", "xla", "blockwise", "cudnn"]] = "auto"  # kernel of softmax
    loss_chunk: Free[Size] = 4096  # tokens whose logits exist at once in the loss; 0 is all
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    cms: CMSConfig = field(default_factory=CMSConfig)

    def check(self) -> None:
        self._check_heads()
        self._check_gpt2()
        self._check_rope()
        want = self.unfused
        self.require(self.attention != "cudnn" or not want, "attention", want)
        each = max(len(self.cms.inner_lr) // len(self.cms.periods), 1)
        want = f"wants one, one for each level, or {self.matrices} for each level ({self.block!r})"
        self.require(each in (1, self.matrices), "cms.inner_lr", want)
        want = f"wants at most model.layers={self.layers}"
        self.require(self.cms.fast_layers <= self.layers, "cms.fast_layers", want)
        self._check_chunks()

    def _check_heads(self) -> None:
        want = f"must divide model.dim={self.dim}"
        self.require(self.dim % self.heads == 0, "heads", want)
        want = f"gives heads of width {self.head_width}; rotary positions want an even width"
        self.require(self.kind.gpt2 or self.head_width % 2 == 0, "heads", want)
        want = f"must divide model.heads={self.heads}"
        self.require(self.heads % self.num_kv_heads == 0, "kv_heads", want)
        want = f"must divide model.dim={self.dim}, or model.memory.head_width must be given"
        divides = self.memory.head_width > 0 or self.dim % self.memory_heads == 0
        self.require(divides, "memory.heads", want)
        for name in ("keep_init", "erase_init"):
            want = f"wants at most one for each of the {self.memory_heads} heads"
            few = len(getattr(self.memory, name)) <= self.memory_heads
            self.require(few, f"memory.{name}", want)

    def _check_gpt2(self) -> None:
        if not self.kind.gpt2:
            return
        self.require(self.window == 0, "window", "GPT-2 has full attention; wants 0")
        for name in ("qk_norm", "qkv_bias", "rope_scaling"):
            self.require(not getattr(self, name), name, "is not GPT-2's; leave it out")
        want = f"GPT-2 has as many as query heads; wants 0 or {self.heads}"
        self.require(self.num_kv_heads == self.heads, "kv_heads", want)

    def _check_rope(self) -> None:
        want = "wants (factor, low, high, tokens) with low below high, as in (32, 1, 4, 8192)"
        right = len(self.rope_scaling) == 4 and self.rope_scaling[1] < self.rope_scaling[2]
        self.require(right or not self.rope_scaling, "rope_scaling", want)

    def _check_chunks(self) -> None:
        chunk, other = self.memory.chunk, self.memory.generator_chunk
        want = f"must divide model.memory.chunk={chunk}, or be a multiple of it"
        made = self.kind.self_modifying
        divides = not made or max(chunk, other) % min(chunk, other) == 0
        self.require(divides, "memory.generator_chunk", want)
        want = f"belongs to model.block='hope'; got {self.block!r}"
        for name in ("erase_gate", "beside"):
            self.require(made or not getattr(self.memory, name), f"memory.{name}", want)
        want = f"belongs to model.block='titans_mac'; got {self.block!r}"
        mac = "segment" in self.kind.chunks
        self.require(mac or self.memory.write_from == "attended", "memory.write_from", want)
        want = f"must be a multiple of model.memory.chunk={chunk}"
        divides = "segment" not in self.kind.chunks or self.memory_segment % chunk == 0
        self.require(divides, "memory.segment", want)

    @property
    def head_width(self) -> int:
        return self.dim // self.heads

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def mlp_width(self) -> int:
        if self.kind.gpt2:
            return self.mlp_hidden or 4 * self.dim
        return self.mlp_hidden or -(-8 * self.dim // 3 // 32) * 32

    @property
    def lstm_width(self) -> int:
        return self.lstm_hidden or self.dim

    @property
    def level_width(self) -> int:
        return self.cms.hidden or self.mlp_width

    @property
    def matrices(self) -> int:
        """Matrices of an MLP: gate, up and down, or up and down."""
        return 2 if self.kind.gpt2 else 3

    @property
    def memory_heads(self) -> int:
        return self.memory.heads or self.heads

    @property
    def memory_width(self) -> int:
        return self.memory.head_width or self.dim // self.memory_heads

    @property
    def memory_segment(self) -> int:
        """Tokens of a segment of `titans_mac`."""
        return self.memory.segment or self.memory.chunk

    @property
    def kind(self) -> BlockKind:
        """What there is to know about the kind of block."""
        return KINDS[self.block]

    @property
    def persistent_tokens(self) -> int:
        """Learned tokens that attention sees before all others."""
        return self.memory.persistent if self.kind.persistent else 0

    @property
    def memory_hidden(self) -> int:
        return max(1, round(self.memory.hidden * self.memory_width))

    @property
    def has_cms(self) -> bool:
        return self.kind.cms

    @property
    def unfused(self) -> str:
        """What cuDNN's kernel of attention wants and this model has not; "" where it has all."""
        persistent, width = self.memory.persistent, self.head_width
        if self.compute_dtype != "bfloat16":
            return f"wants model.compute_dtype='bfloat16', got {self.compute_dtype!r}"
        if self.persistent_tokens:
            return f"has no persistent tokens; wants model.memory.persistent=0, got {persistent}"
        if width % 8 or width > 128:
            return f"wants heads of a multiple of 8 and at most 128; model.dim / heads is {width}"
        return ""

    @property
    def attends(self) -> bool:
        """Softmax attention over the tokens read so far, with a cache of keys and values."""
        return self.kind.attention == "causal"

    @property
    def memory_chunk(self) -> int:
        """Tokens to whose multiples every chunk grid of the sequence memories is aligned."""
        tokens = {
            "chunk": self.memory.chunk,
            "generator_chunk": self.memory.generator_chunk,
            "segment": self.memory_segment,
        }
        return math.lcm(*(tokens[name] for name in self.kind.chunks))

    @property
    def fast_layers(self) -> int:
        """Blocks whose CMS levels carry fast weights."""
        if not self.has_cms:
            return 0
        return self.layers if self.cms.fast_layers < 0 else self.cms.fast_layers
