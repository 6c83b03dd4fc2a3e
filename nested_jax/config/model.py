"""What the model is: memory, CMS levels, language model. Frozen and checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from nested_jax.errors import at_least, require

BLOCKS = (
    "transformer",
    "hope_attention",
    "hope",
    "titans_lmm",
    "titans_mac",
    "titans_mag",
    "titans_mal",
    "hope_hybrid",
    "gated_deltanet",
    "deltanet",
    "lstm",
    "lstm_cms",
)


@dataclass(frozen=True)
class MemoryConfig:
    """A neural memory: what it is, how it is written, how it is read."""

    arch: Literal["linear", "mlp"] = "linear"  # W x, or x + W1 act(W2 x) of `depth` matrices
    depth: int = 2  # matrices of an `mlp` memory
    hidden: float = 1.0  # hidden width of an `mlp` memory, times its head width
    activation: Literal["gelu", "silu"] = "gelu"  # of an `mlp` memory
    objective: Literal["l2", "dot"] = "l2"  # what a write descends
    rule: Literal["gd", "titans", "dgd"] = "titans"  # how the gradient is applied
    read: Literal["token", "chunk"] = "token"  # the memory as of the token, or of the last boundary
    order: Literal["write_read", "read_write"] = "write_read"  # y_t from M_t, or from M_{t-1}
    chunk: int = 64  # tokens between gradient boundaries; 1 is the fully online rule
    generator_chunk: int = 64  # the same for the generators k, v, eta, alpha of `hope`
    heads: int = 0  # memory heads; 0 takes model.heads
    head_width: int = 0  # key and value width a head; 0 takes dim / heads
    inner_lr: float = 0.03  # ceiling of the write rate; below 2 / chunk an `l2` write is stable
    max_rate: float = 1.0  # ceiling of a delta write's rate: 2 admits negative eigenvalues
    momentum: bool = True  # Titans Eq. 10: past surprise (rules titans and dgd)
    retention: bool = True  # Titans Eq. 13: the forget gate (rules titans and dgd)
    keep_init: float = 0.9999  # retention a token at initialisation; 0.99 empties a deep memory
    conv: int = 4  # width of the causal depthwise convolution; 0 is none
    adaptive_k: bool = True  # `hope`: keys come from a memory that is written in context
    adaptive_v: bool = True  # `hope`: values likewise
    adaptive_q: bool = False  # `hope`: queries likewise (NL finds it slightly better without)
    targets: Literal["self", "value"] = "self"  # `hope`: written with unit(M(v)), or with v itself
    persistent: int = 4  # learned tokens that attention sees first (titans_mac, _mag, _mal)
    segment: int = 0  # tokens of a segment of titans_mac; 0 takes `chunk`
    generator_inputs: Literal["shared", "own"] = "shared"  # `hope`: what k, v and q are made from
    generator_pace: float = 1.0  # `hope`: below 1, learned factor of the generators' writes
    erase_gate: bool = False  # `hope`, rule dgd: what it erases with is not the rate of the write
    erase_init: tuple[float, ...] = ()  # where that gate starts, the heads in turn; () as the rate
    erase_stretch: float = 0.0  # its sigmoid reaches so far beyond both ends, and is clipped there
    frozen: bool = False  # ablation: the memory is read and never written

    def __post_init__(self) -> None:
        at_least(self, "memory", 1, "depth", "chunk", "generator_chunk")
        at_least(self, "memory", 0, "heads", "head_width", "persistent", "segment")
        require(self.hidden > 0, "memory.hidden", self.hidden, "wants a factor above 0")
        require(0 < self.keep_init < 1, "memory.keep_init", self.keep_init, "wants it in (0, 1)")
        require(
            0 < self.generator_pace <= 1,
            "memory.generator_pace",
            self.generator_pace,
            "wants a factor in (0, 1]",
        )
        require(
            not self.erase_gate or self.rule == "dgd",
            "memory.erase_gate",
            self.erase_gate,
            f"wants rule 'dgd', which erases; got {self.rule!r}",
        )
        for name in ("erase_init", "erase_stretch"):
            value = getattr(self, name)
            require(
                self.erase_gate or not value,
                f"memory.{name}",
                value,
                "is a setting of memory.erase_gate=True, which is off",
            )
        require(
            all(rate > 0 for rate in self.erase_init),
            "memory.erase_init",
            self.erase_init,
            "wants rates above 0, or () for memory.inner_lr",
        )
        require(
            0 <= self.erase_stretch <= 1,
            "memory.erase_stretch",
            self.erase_stretch,
            "wants a part of the range in [0, 1]: 0.1, say, or 0 for none",
        )
        require(0 < self.max_rate <= 2, "memory.max_rate", self.max_rate, "wants a value in (0, 2]")
        require(
            0 < self.inner_lr < self.max_rate,
            "memory.inner_lr",
            self.inner_lr,
            f"wants a rate above 0 and below memory.max_rate={self.max_rate}",
        )
        require(
            self.conv == 0 or self.conv >= 2,
            "memory.conv",
            self.conv,
            "wants a width of 2 or more, or 0 for none",
        )


@dataclass(frozen=True)
class CMSConfig:
    """The continuum memory system: a chain of MLP levels, each written at its own period."""

    periods: tuple[int, ...] = (64, 256)  # tokens between a level's writes, the fastest first
    chain: Literal["sequential", "nested", "independent"] = "sequential"  # how levels are arranged
    hidden: int = 0  # hidden width of a level; 0 takes model.mlp_hidden
    inner_lr: tuple[float, ...] = (0.005,)  # rate a token of summed loss; one, or one a level
    learned_rate: bool = True  # every matrix of a level learns a factor on its rate
    optimizer: Literal["sgd", "momentum", "dgd", "adam", "muon"] = "sgd"  # of a level
    momentum: float = 0.9  # of the inner `momentum`, `adam` and `muon`, a write
    keep: float = 1.0  # retention of a fast weight at a write: 1 forgets nothing
    fast_layers: int = 1  # blocks, counted from the last, whose levels are written; -1 is all
    fast_rank: int = 0  # rank of a fast weight's delta; 0 is full
    surprise: tuple[float, ...] = ()  # weight of each level's auxiliary loss; () has no heads

    def __post_init__(self) -> None:
        require(len(self.periods) > 0, "cms.periods", self.periods, "wants at least one level")
        require(min(self.periods) >= 1, "cms.periods", self.periods, "wants periods of 1 or more")
        for fast, slow in zip(self.periods, self.periods[1:], strict=False):
            require(
                slow % fast == 0,
                "cms.periods",
                self.periods,
                f"each must be a multiple of the one before; {slow} is no multiple of {fast}",
            )
        require(
            len(self.inner_lr) in (1, len(self.periods)),
            "cms.inner_lr",
            self.inner_lr,
            f"wants one rate, or one for each of the {len(self.periods)} periods",
        )
        require(min(self.inner_lr) >= 0, "cms.inner_lr", self.inner_lr, "wants rates of 0 or more")
        require(0 <= self.momentum < 1, "cms.momentum", self.momentum, "wants a value in [0, 1)")
        require(0 < self.keep <= 1, "cms.keep", self.keep, "wants a value in (0, 1]")
        at_least(self, "cms", -1, "fast_layers")
        at_least(self, "cms", 0, "fast_rank", "hidden")
        require(
            not self.surprise or len(self.surprise) == len(self.periods),
            "cms.surprise",
            self.surprise,
            f"wants a weight for each of the {len(self.periods)} periods, or () for no heads",
        )
        require(
            all(w >= 0 for w in self.surprise), "cms.surprise", self.surprise, "wants 0 or more"
        )

    def level_lr(self, level: int) -> float:
        return self.inner_lr[level] if len(self.inner_lr) > 1 else self.inner_lr[0]


@dataclass(frozen=True)
class ModelConfig:
    """The language model: embedding, a stack of equal blocks, head."""

    block: Literal[BLOCKS] = "transformer"  # type: ignore[valid-type]  # see models/blocks.py
    size: str = "custom"  # the name of the size, for logs and reports
    vocab_size: int = 8192  # symbols of embedding and head; at least the tokenizer's
    dim: int = 256  # model width
    layers: int = 4  # blocks
    heads: int = 4  # query heads of attention
    kv_heads: int = 0  # key and value heads (GQA); 0 takes `heads`
    mlp_hidden: int = 0  # hidden width of the MLP; 0 takes 8/3 dim, rounded up to 32
    lstm_hidden: int = 0  # width of the state of an LSTM; 0 takes dim
    window: int = 0  # sliding attention window in tokens; 0 is full causal attention
    max_len: int = 2048  # tokens that full attention can hold in its cache
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    qk_norm: bool = False  # L2-normalised queries and keys with a learned temperature a head
    norm_eps: float = 1e-6  # of every RMSNorm
    tie_embeddings: bool = True  # the head is the transposed embedding
    answers: Literal["each", "last"] = "each"  # each position's own, or all decoded from the last
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # of matrix products
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass recomputes in a block
    attention: Literal["xla", "cudnn"] = "xla"  # implementation of softmax attention
    loss_chunk: int = 4096  # tokens whose logits exist at once in the loss; 0 is all
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    cms: CMSConfig = field(default_factory=CMSConfig)

    def __post_init__(self) -> None:
        at_least(self, "model", 1, "vocab_size", "dim", "layers", "heads", "max_len")
        at_least(self, "model", 0, "kv_heads", "mlp_hidden", "lstm_hidden", "window", "loss_chunk")
        require(
            self.dim % self.heads == 0,
            "model.heads",
            self.heads,
            f"must divide model.dim={self.dim}",
        )
        require(
            self.head_width % 2 == 0,
            "model.heads",
            self.heads,
            f"gives heads of width {self.head_width}; rotary positions want an even width",
        )
        require(
            self.heads % self.num_kv_heads == 0,
            "model.kv_heads",
            self.kv_heads,
            f"must divide model.heads={self.heads}",
        )
        require(
            self.attention != "cudnn" or self.compute_dtype == "bfloat16",
            "model.attention",
            self.attention,
            "wants model.compute_dtype='bfloat16'",
        )
        require(
            self.attention != "cudnn" or self.persistent_tokens == 0,
            "model.attention",
            self.attention,
            f"has no persistent tokens; wants memory.persistent=0, got {self.memory.persistent}",
        )
        require(
            self.cms.fast_layers <= self.layers,
            "cms.fast_layers",
            self.cms.fast_layers,
            f"wants at most model.layers={self.layers}",
        )
        require(
            self.memory.head_width > 0 or self.dim % self.memory_heads == 0,
            "memory.heads",
            self.memory.heads,
            f"must divide model.dim={self.dim}, or memory.head_width must be given",
        )
        self._check_chunks()

    def _check_chunks(self) -> None:
        chunk, other = self.memory.chunk, self.memory.generator_chunk
        require(
            self.block != "hope" or max(chunk, other) % min(chunk, other) == 0,
            "memory.generator_chunk",
            other,
            f"must divide memory.chunk={chunk}, or be a multiple of it",
        )
        require(
            self.block == "hope" or not self.memory.erase_gate,
            "model.memory.erase_gate",
            self.memory.erase_gate,
            f"belongs to model.block='hope'; got {self.block!r}",
        )
        require(
            self.block != "titans_mac" or self.memory_segment % chunk == 0,
            "memory.segment",
            self.memory.segment,
            f"must be a multiple of memory.chunk={chunk}",
        )

    @property
    def head_width(self) -> int:
        return self.dim // self.heads

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def mlp_width(self) -> int:
        return self.mlp_hidden or -(-8 * self.dim // 3 // 32) * 32

    @property
    def lstm_width(self) -> int:
        return self.lstm_hidden or self.dim

    @property
    def level_width(self) -> int:
        return self.cms.hidden or self.mlp_width

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
    def persistent_tokens(self) -> int:
        """Learned tokens that attention sees before all others."""
        has_them = self.block in ("titans_mac", "titans_mag", "titans_mal")
        return self.memory.persistent if has_them else 0

    @property
    def memory_hidden(self) -> int:
        return max(1, round(self.memory.hidden * self.memory_width))

    @property
    def has_cms(self) -> bool:
        return self.block in ("hope", "hope_attention", "hope_hybrid", "lstm_cms")

    @property
    def attends(self) -> bool:
        """Softmax attention over the tokens read so far, with a cache of keys and values."""
        return self.block in (
            "transformer",
            "hope_attention",
            "hope_hybrid",
            "titans_mag",
            "titans_mal",
        )

    @property
    def memory_chunk(self) -> int:
        """Tokens to whose multiples every chunk grid of the sequence memories is aligned."""
        memory = self.memory
        chunks = {
            "hope": (memory.chunk, memory.generator_chunk),
            "hope_hybrid": (memory.chunk,),
            "titans_lmm": (memory.chunk,),
            "titans_mac": (memory.chunk, self.memory_segment),
            "titans_mag": (memory.chunk,),
            "titans_mal": (memory.chunk,),
        }
        return math.lcm(*chunks.get(self.block, (1,)))

    @property
    def fast_layers(self) -> int:
        """Blocks whose CMS levels carry fast weights."""
        if not self.has_cms:
            return 0
        return self.layers if self.cms.fast_layers < 0 else self.cms.fast_layers
