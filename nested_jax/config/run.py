"""How a model is taught, fed, trained and placed on devices, and the whole experiment."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from nested_jax.config.model import ModelConfig
from nested_jax.errors import at_least, require


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
    align: int = 0  # documents start at multiples of it in a row; 0: the most that divides
    # 64 and seq_len. Every chunk of a model divides it; equal for all models that are compared
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

    @property
    def row_align(self) -> int:
        """Tokens at whose multiples documents start in a row, whatever the model.

        A row of a synthetic task is one document.
        """
        return self.align or (self.seq_len if self.is_synthetic else math.gcd(64, self.seq_len))


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
        check_teach(self.model, self.teach)
        self._check_align()
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

    def _check_align(self) -> None:
        data, align = self.data, self.align
        require(
            data.seq_len % align == 0,
            "data.seq_len",
            data.seq_len,
            f"must be a multiple of data.align={align}",
        )
        chunks = {"model.memory (chunks and segments)": self.model.memory_chunk}
        if self.teaches:
            chunks["teach.chunk"] = self.teach.chunk
        field = "data.seq_len" if data.is_synthetic and not data.align else "data.align"
        for name, chunk in chunks.items():
            require(
                align % chunk == 0,
                field,
                align,
                f"must be a multiple of {name}={chunk}; rows are cut by it, so give the same "
                "value to every model that is compared with this one",
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
        """Tokens at whose multiples documents start: of the data alone, see `DataConfig`."""
        return self.data.row_align

    @property
    def chunk(self) -> int:
        """Tokens to whose multiples the model wants its rows padded: all its chunks divide it."""
        return math.lcm(self.teach.chunk if self.teaches else 1, self.model.memory_chunk)

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
