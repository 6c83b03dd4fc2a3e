"""The typed, frozen configuration, and the strict conversion into it.

A config file is a Python program, ``get_config(arg) -> ConfigDict``, that ends in plain data. It
stops here: below this module only frozen dataclasses travel, and each layer receives its own. An
unknown field, a wrong type and a combination that cannot work are ``ValueError`` before anything is
allocated.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ml_collections

from nested_jax.conversion import from_dict

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


def require(ok: bool, name: str, value: object, want: str) -> None:
    """Raise the one form of error for a bad field: its name, its value and what would be right."""
    if not ok:
        raise ValueError(f"{name}={value!r}: {want}")


def at_least(config: Any, block: str, bound: int, *names: str) -> None:
    """Raise for a field of `config` that is below `bound`."""
    for name in names:
        value = getattr(config, name)
        require(value >= bound, f"{block}.{name}", value, f"wants {bound} or more")


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


@dataclass(frozen=True)
class TeachConfig:
    """The inner loop: how a sequence writes the fast weights of the CMS levels."""

    mode: Literal["off", "exact", "local"] = "off"  # exact: the chunk's own loss gradient
    chunk: int = 64  # tokens a chunk; divides every CMS period
    scale: float = 1.0  # factor on the teach signal
    clip: float = 0.0  # L2 bound of the teach signal a token; 0 is none
    warmup_steps: int = 0  # outer steps over which `scale` rises from 0
    decay_start: int = 0  # outer step at which `scale` starts to fall
    decay_steps: int = 0  # outer steps over which it falls to 0; 0 never falls
    surprise_metric: Literal["l2", "loss", "entropy"] = "loss"  # mean over the chunk's tokens
    surprise_threshold: float | None = None  # a chunk below it is not written; None writes all
    meta_gradient: Literal["through", "stop"] | int = "through"  # int: the last k chunks of a call
    levels: tuple[int, ...] | None = None  # CMS levels that may be written, 0 the fastest; None all
    layers: tuple[int, ...] | None = None  # layers that may be written; None all
    remat: Literal["none", "chunk", "sqrt"] = (
        "chunk"  # what backward recomputes; sqrt: O(sqrt N) memory
    )

    def __post_init__(self) -> None:
        require(self.chunk >= 1, "teach.chunk", self.chunk, "wants at least 1 token")
        at_least(self, "teach", 0, "scale", "clip", "warmup_steps", "decay_start", "decay_steps")
        if isinstance(self.meta_gradient, int):
            require(
                self.meta_gradient >= 1,
                "teach.meta_gradient",
                self.meta_gradient,
                "wants 'through', 'stop' or a number of chunks of 1 or more",
            )


@dataclass(frozen=True)
class OptimConfig:
    """The outer optimizer."""

    name: Literal["adamw", "muon", "m3", "dgd", "delta_momentum", "deep_momentum"] = "adamw"
    learning_rate: float = 1e-3  # peak of the schedule
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # after the warm-up
    warmup_steps: int = 100  # steps from 0 to the peak
    final_fraction: float = 0.1  # of the peak, at the last step
    weight_decay: float = 0.1  # decoupled; on matrices and embeddings only
    beta1: float = 0.9  # first-moment decay
    beta2: float = 0.95  # second-moment decay
    eps: float = 1e-8  # of Adam's and M3's denominator
    clip_norm: float = 1.0  # global gradient norm; 0 is none
    periods: tuple[int, ...] = (1,)  # outer steps between updates of each level; the last repeats
    period_mode: Literal["mean", "sum", "last"] = (
        "mean"  # what a level makes of its period's gradients
    )
    period_lr: Literal["scaled", "same"] = "scaled"  # scaled: learning_rate / period
    param_policy: Literal["all", "exclude_memory", "only_memory"] = "all"  # what is trained
    muon_learning_rate: float = 0.02  # of the hidden matrices, unless name is adamw
    muon_momentum: float = 0.95
    muon_heads: Literal["joint", "per_head"] = "joint"  # one matrix, or one a head
    newton_schulz_steps: int = 5
    m3_form: Literal["ema", "literal"] = "ema"  # NL Alg. 1 as printed never decays its accumulators
    m3_beta3: float = 0.9  # slow momentum
    m3_alpha: float = 1.0  # weight of the slow momentum
    m3_period: int = 16  # steps between updates of the slow momentum
    variant: str = "preconditioned"  # of deep_momentum, see optim/deep_momentum.py
    max_bad_updates: int = 25  # non-finite updates in a row after which the run counts as diverged

    def __post_init__(self) -> None:
        require(
            self.learning_rate > 0,
            "optim.learning_rate",
            self.learning_rate,
            "wants a rate above 0",
        )
        at_least(self, "optim", 0, "warmup_steps", "weight_decay", "clip_norm", "final_fraction")
        for name in ("beta1", "beta2", "muon_momentum", "m3_beta3"):
            require(
                0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "wants [0, 1)"
            )
        require(
            len(self.periods) > 0 and all(p >= 1 for p in self.periods),
            "optim.periods",
            self.periods,
            "wants one period of 1 or more steps a level",
        )
        require(self.m3_period >= 1, "optim.m3_period", self.m3_period, "wants 1 or more steps")


@dataclass(frozen=True)
class TaskConfig:
    """Synthetic tasks, read where ``data.source="synthetic"``; see data/synthetic.py for specs."""

    train: tuple[str, ...] = ()  # specs, "mqar,tokens=64,pairs=4"; mixed by data.weights
    tests: tuple[str, ...] = ()  # specs that are scored, data.valid_rows rows each; () is `train`
    rows: int = 100_000  # training rows of each spec; an epoch holds each once
    seed: int = 0  # of the rows; their order is drawn from the run's seed

    def __post_init__(self) -> None:
        at_least(self, "data.task", 1, "rows")
        at_least(self, "data.task", 0, "seed")

    @property
    def scored(self) -> tuple[str, ...]:
        return self.tests or self.train


@dataclass(frozen=True)
class DataConfig:
    """Where tokens come from and how rows are cut from them."""

    source: str = (
        "stdlib"  # stdlib (embedded), synthetic, plain text, a folder of shards, a mixture's JSON
    )
    task: TaskConfig = field(default_factory=TaskConfig)  # of the source "synthetic"
    cache_dir: str = ""  # where prepared data live; "" is the user's cache directory
    vocab_size: int = 8192  # of the tokenizer that is trained for the embedded data, or text
    tokenizer: Literal["sentencepiece", "char"] = "sentencepiece"  # pieces, or characters
    mode: Literal["rows", "stream"] = "rows"  # shuffled rows, or contiguous streams of text
    seq_len: int = 512  # tokens a row
    align: int = 0  # documents start at multiples of it in a row; 0 takes the model's largest chunk
    segments: tuple[str, ...] = ()  # segments of the source that are used; () is all
    weights: tuple[float, ...] = ()  # sampling weight of each; () is in proportion to tokens
    read_threads: int = 2  # threads that read rows
    prefetch: int = 16  # rows read ahead
    valid_rows: int = 64  # rows of the fixed held-out set

    def __post_init__(self) -> None:
        require(self.seq_len >= 1, "data.seq_len", self.seq_len, "wants at least 1 token")
        require(self.align >= 0, "data.align", self.align, "wants 0 (automatic) or more tokens")
        require(
            self.vocab_size >= 512, "data.vocab_size", self.vocab_size, "wants 512 or more symbols"
        )
        require(
            not self.weights or len(self.weights) == len(self.task.train or self.segments),
            "data.weights",
            self.weights,
            f"wants one weight for each of {self.task.train or self.segments} (data.task.train, "
            "or data.segments)",
        )
        require(
            all(w > 0 for w in self.weights), "data.weights", self.weights, "wants weights above 0"
        )
        require(self.valid_rows >= 1, "data.valid_rows", self.valid_rows, "wants at least 1 row")
        require(
            self.is_synthetic == bool(self.task.train),
            "data.task.train",
            self.task.train,
            f"wants specs of tasks exactly if data.source is 'synthetic', got {self.source!r}",
        )

    @property
    def is_synthetic(self) -> bool:
        return self.source == "synthetic"


@dataclass(frozen=True)
class TrainConfig:
    """The outer loop."""

    steps: int = 1000  # optimizer steps
    init_from: str = ""  # run or checkpoint whose parameters a new run begins with; "" draws them
    batch_size: int = 8  # rows a step, over all processes and microbatches
    grad_accum: int = 1  # microbatches a step
    label_smoothing: float = 0.0  # share of a target's mass that all symbols get alike; not scored
    carry: Literal["none", "mixers", "all"] = "none"  # state of a stream that outlives its batch
    eval_every: int = 250  # steps; 0 evaluates at the end only
    eval_batch_size: int = 0  # rows; 0 takes batch_size / grad_accum
    eval_tasks: tuple[str, ...] = ()  # evaluators that run beside the held-out loss
    save_every: int = 250  # steps; 0 saves at the end only
    keep_latest: int = 2  # checkpoints
    keep_every: int = 0  # steps; checkpoints at its multiples are kept for ever; 0 is none
    log_every: int = 10  # steps
    async_save: bool = True  # write checkpoints in the background
    profile_steps: int = 0  # steps traced by the profiler, from step 10
    check_writes: bool = True  # a level that was to be written and was not ends the run
    divergence_margin: float = 0.5  # nats above ln(vocab) after warm-up that end the run
    tensorboard: bool = False  # write TensorBoard events (extra `log`)
    wandb: str = ""  # W&B project; "" is off (extra `log`, mode from WANDB_MODE)

    def __post_init__(self) -> None:
        at_least(self, "train", 1, "steps", "batch_size", "grad_accum", "log_every", "keep_latest")
        require(
            self.batch_size % self.grad_accum == 0,
            "train.grad_accum",
            self.grad_accum,
            f"must divide train.batch_size={self.batch_size}",
        )
        require(
            0 <= self.label_smoothing < 1,
            "train.label_smoothing",
            self.label_smoothing,
            "wants a value in [0, 1)",
        )


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; -1 takes the devices that are left."""

    data: int = -1  # batch
    fsdp: int = 1  # batch, and parameters sharded over it
    model: int = 1  # heads, hidden widths, vocabulary

    def __post_init__(self) -> None:
        sizes = (self.data, self.fsdp, self.model)
        require(
            all(s == -1 or s >= 1 for s in sizes) and sizes.count(-1) <= 1,
            "mesh",
            sizes,
            "wants axis sizes of 1 or more, at most one of them -1",
        )


@dataclass(frozen=True)
class Config:
    """One experiment."""

    seed: int = 0  # the one seed: parameters, data order, sampling
    model: ModelConfig = field(default_factory=ModelConfig)
    teach: TeachConfig = field(default_factory=TeachConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        align = self.align
        require(
            self.data.seq_len % align == 0,
            "data.seq_len",
            self.data.seq_len,
            f"must be a multiple of the chunk, {align} tokens (of teach, memory and data.align)",
        )
        check_teach(self.model, self.teach)
        self._check_stream()
        self._check_answers()
        require(
            self.train.label_smoothing == 0 or not (self.teaches or self.model.cms.surprise),
            "train.label_smoothing",
            self.train.label_smoothing,
            "is for levels that are not written; wants teach.mode='off' and cms.surprise=()",
        )
        require(
            self.model.attention != "cudnn" or not self.teaches,
            "model.attention",
            "cudnn",
            "is differentiable once; the inner loop differentiates twice and wants 'xla'",
        )

    def _check_stream(self) -> None:
        model, carry = self.model, self.train.carry
        require(
            carry == "none" or self.data.mode == "stream",
            "train.carry",
            carry,
            f"wants data.mode='stream': rows of data.mode={self.data.mode!r} do not continue",
        )
        require(
            carry == "none" or not model.attends or model.window > 0,
            "train.carry",
            carry,
            f"full attention of {model.block!r} cannot hold a whole run; wants model.window",
        )
        require(
            not model.cms.surprise or (model.has_cms and model.fast_layers == 0),
            "cms.surprise",
            model.cms.surprise,
            f"wants a block with CMS levels that are not written, cms.fast_layers=0; got "
            f"{model.block!r} with cms.fast_layers={model.cms.fast_layers}",
        )

    def _check_answers(self) -> None:
        whole_rows = self.data.is_synthetic and not self.teaches and not self.model.cms.surprise
        require(
            self.model.answers == "each" or whole_rows,
            "model.answers",
            self.model.answers,
            "is for synthetic tasks that are read as whole rows; wants data.source='synthetic', "
            "teach.mode='off' and cms.surprise=()",
        )

    @property
    def align(self) -> int:
        """Tokens to whose multiples documents are aligned: every chunk of the model divides it."""
        taught = self.teach.chunk if self.teaches else 1
        return math.lcm(self.data.align or 1, taught, self.model.memory_chunk)

    @property
    def teaches(self) -> bool:
        return self.teach.mode != "off" and self.model.fast_layers > 0


def check_teach(model: ModelConfig, teach: TeachConfig) -> None:
    """Raise unless the inner loop fits the model that it is to teach."""
    if teach.mode == "off" or model.fast_layers == 0:
        return
    require(
        model.cms.periods[0] % teach.chunk == 0,
        "teach.chunk",
        teach.chunk,
        f"must divide the fastest period of cms.periods={model.cms.periods}",
    )
    for name, known in (("levels", len(model.cms.periods)), ("layers", model.layers)):
        chosen = getattr(teach, name)
        require(
            chosen is None or all(0 <= i < known for i in chosen),
            f"teach.{name}",
            chosen,
            f"wants indices below {known}, or None for all",
        )


# --- config files ------------------------------------------------------------------------------


def from_config_dict(config: ml_collections.ConfigDict | Mapping[str, Any]) -> Config:
    """Convert plain nested data into a validated `Config`.

    Raises:
      ValueError: an unknown field (with its nearest known name), a value of the wrong type, or a
        combination that cannot work.
    """
    data = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    return from_dict(data, Config)


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """Parse ``--config.model.dim=512`` into ``{"model.dim": 512}``.

    Raises:
      ValueError: an argument of another form.
    """
    overrides = {}
    for argument in arguments:
        name, equals, text = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals or not name:
            raise ValueError(f"{argument!r}: wants --config.FIELD=VALUE")
        overrides[name] = _literal(text)
    return overrides


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def load_config(spec: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Load ``FILE.py[:ARG]``, apply overrides and validate.

    Args:
      spec: path of a config file; what follows the colon is given to its ``get_config``.
      overrides: dotted field names to values, ``{"model.block": "hope"}``.
    Raises:
      ValueError: no such file, a bad argument, an unknown field, a wrong type or combination.
    """
    filename, _, arg = spec.partition(":")
    file = Path(filename).resolve()
    if not file.is_file():
        raise ValueError(f"--config={spec!r}: no such file; wants FILE.py or FILE.py:ARG")
    data = _run_config_file(file, arg or None)
    for name, value in (overrides or {}).items():
        *blocks, leaf = name.split(".")
        target, walked = data, ""
        for block in blocks:
            _known_block(target, block, walked)
            target = target.setdefault(block, {})
            walked += f"{block}."
        target[leaf] = value
    return from_config_dict(data)


def _known_block(target: Any, block: str, walked: str) -> None:
    if not isinstance(target, dict) or not isinstance(target.get(block, {}), dict):
        raise ValueError(f"{walked}{block}: is a field, not a block of fields")


def _run_config_file(file: Path, arg: str | None) -> dict[str, Any]:
    root = str(file.parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)  # config files import configs.common
    spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{file}: a config file defines get_config(arg=None)")
    return module.get_config(arg).to_dict()
