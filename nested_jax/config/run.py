"""How a model is taught, fed, trained and placed on devices, and the whole experiment."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from nested_jax.config.fields import (
    Amount,
    Block,
    Count,
    Fraction,
    Free,
    Positive,
    Range,
    Share,
    Size,
    Small,
    place,
)
from nested_jax.config.model import ModelConfig
from nested_jax.errors import require


@dataclass(frozen=True)
class TeachConfig(Block):
    """The inner loop: how a sequence writes the fast weights of the CMS levels."""

    mode: Literal["off", "exact", "local"] = "off"  # exact: the chunk's own loss gradient
    chunk: Count = 64  # tokens per chunk; divides every CMS period
    scale: Amount = 1.0  # factor on the teach signal
    clip: Amount = 0.0  # L2 bound of the teach signal per token; 0 is none
    warmup_steps: Size = 0  # outer steps over which `scale` rises from 0
    decay: tuple[Size, ...] = ()  # (start, steps) of the fall of `scale` to 0; () never falls
    surprise_metric: Literal["l2", "loss", "entropy"] = "loss"  # mean over the chunk's tokens
    surprise_threshold: Amount | None = None  # a chunk below it is not written; None writes all
    meta_gradient: Literal["through", "stop"] | Count = "through"  # int: the last k chunks
    levels: tuple[Size, ...] | None = None  # CMS levels that may be written, 0 the fastest
    layers: tuple[Size, ...] | None = None  # blocks that may be written; None all
    remat: Free[Literal["none", "chunk", "sqrt"]] = "chunk"  # what backward recomputes

    def check(self) -> None:
        fits = len(self.decay) == 2 and self.decay[1] > 0
        want = "wants (start, steps) with 1 step or more, or () for none"
        self.require(fits or not self.decay, "decay", want)


@dataclass(frozen=True)
class OptimConfig(Block):
    """The outer optimizer."""

    name: Literal["adamw", "muon", "m3", "dgd", "delta_momentum", "deep_momentum"] = "adamw"
    learning_rate: Positive = 1e-3  # peak of the schedule
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # after the warm-up
    warmup_steps: Size = 100  # steps from 0 to the peak
    warmup_share: Share = 0.0  # of train.steps, which gives warmup_steps; 0: `warmup_steps`
    final_fraction: Fraction = 0.1  # of the peak, at the last step
    weight_decay: Amount = 0.1  # decoupled; on matrices and embeddings only
    beta1: Share = 0.9  # first-moment decay
    beta2: Share = 0.95  # second-moment decay
    eps: Small = 1e-8  # of the denominators of Adam, M3 and deep momentum
    clip_norm: Amount = 1.0  # global gradient norm; 0 is none
    periods: tuple[Count, ...] = (1,)  # outer steps between updates of each level; the last repeats
    period_mode: Literal["mean", "sum", "last"] = "mean"  # of the gradients of a period
    # What is trained; only_vectors: norms, gates and rates.
    param_policy: Literal["all", "exclude_memory", "only_memory", "only_vectors"] = "all"
    matrix_learning_rate: Positive = 0.02  # of the hidden matrices, unless name is adamw
    vector_learning_rate: Amount = 0.0  # of norms, gates and rates; 0 takes learning_rate
    muon_momentum: Share = 0.95
    m3_period: Count = 16  # steps between updates of the slow momentum
    variant: str = "preconditioned"  # of deep_momentum, see optim/deep_momentum.py

    def check(self) -> None:
        self.require(len(self.periods) > 0, "periods", "wants at least one period")


@dataclass(frozen=True)
class TaskConfig(Block):
    """Synthetic tasks, read where ``data.source="synthetic"``; see data/synthetic.py for specs."""

    train: tuple[str, ...] = ()  # specs, "mqar,tokens=64,pairs=4"; mixed by data.weights
    tests: tuple[str, ...] = ()  # specs that are scored, data.valid_rows rows each; () is `train`
    rows: Count = 100_000  # training rows of each spec; an epoch holds each once
    seed: Size = 0  # of the rows; their order is drawn from the run's seed

    @property
    def scored(self) -> tuple[str, ...]:
        return self.tests or self.train


@dataclass(frozen=True)
class ChatConfig(Block):
    """Conversations as examples, read where ``data.source`` is JSON lines; see data/chat."""

    template: Literal["turns", "question", "chatml"] = "turns"  # how turns are written
    eos: Literal["end", "every_turn"] = "end"  # where EOS is learned: the end, or after each answer
    tokenizer: str = ""  # run or file whose tokenizer reads them: that of train.init_from
    annotations: Literal["keep", "strip"] = "keep"  # the <<6*9=54>> in answers of GSM8K
    condition: Literal["baseline", "mul_tokens", "mul_placebo"] = "baseline"  # domain tokens
    rule: Literal["bounded", "original"] = "bounded"  # of the domain tokens, scheme `facts`
    limit: Size = 0  # lines of each file that are read; 0 is all


@dataclass(frozen=True)
class DataConfig(Block):
    """Where tokens come from and how rows are cut from them."""

    source: str = "stdlib"  # or synthetic, plain text, shards, a mixture's JSON, JSON lines
    task: TaskConfig = field(default_factory=TaskConfig)  # of the source "synthetic"
    chat: ChatConfig = field(default_factory=ChatConfig)  # of a source that is JSON lines
    cache_dir: Free[str] = ""  # where prepared data live; "" is the user's cache directory
    vocab_size: Annotated[int, Range(least=512)] = 8192  # of the tokenizer that is trained
    # Pieces, characters, or pieces of bytes as GPT-2 has them.
    tokenizer: Literal["sentencepiece", "char", "gpt2"] = "sentencepiece"
    # Shuffled rows, contiguous streams of text, or rows of whole examples.
    mode: Literal["rows", "stream", "examples"] = "rows"
    loss: Literal["all", "assistant"] = "all"  # tokens of examples that are targets
    # apart: no token sees another document. joined: rows are cut from the plain concatenation, and
    # attention, memories and targets go on over the end of a document, as in nanoGPT.
    documents: Literal["apart", "joined"] = "apart"
    seq_len: Count = 512  # tokens per row
    align: Size = 0  # documents start at multiples of it in a row; 0: the most that divides
    # 64 and seq_len. Every chunk of a model divides it; equal for all models that are compared
    segments: tuple[str, ...] = ()  # segments of the source that are used; () is all
    weights: tuple[Positive, ...] = ()  # sampling weight of each; () is in proportion to tokens
    valid_rows: Count = 64  # rows of the fixed held-out set

    def check(self) -> None:
        mixed = self.task.train or self.segments
        want = f"wants one weight for each of {mixed} (data.task.train, or data.segments)"
        self.require(len(self.weights) in (0, len(mixed)), "weights", want)
        want = f"wants specs of tasks exactly if data.source is 'synthetic', got {self.source!r}"
        self.require(self.is_synthetic == bool(self.task.train), "task.train", want)
        want = "is for text in rows; wants data.mode='rows', and no synthetic task"
        rows = self.mode == "rows" and not self.is_synthetic
        self.require(rows or self.documents == "apart", "documents", want)
        want = "joined rows learn every token; wants data.loss='all'"
        self.require(self.loss == "all" or self.documents == "apart", "documents", want)

    @property
    def is_synthetic(self) -> bool:
        return self.source == "synthetic"

    @property
    def row_align(self) -> int:
        """Tokens at whose multiples documents start in a row, whatever the model.

        A row of a synthetic task, or of joined documents, is one document.
        """
        one = self.is_synthetic or self.documents == "joined"
        return self.align or (self.seq_len if one else math.gcd(64, self.seq_len))


@dataclass(frozen=True)
class TrainConfig(Block):
    """The outer loop."""

    steps: Free[Size] = 1000  # optimizer steps; 0 takes those that read `tokens`
    # Tokens of all rows of the run, padding included, from which `steps` follow; 0: `steps` says.
    tokens: Free[Annotated[int, Range(least=0, most=10**15)]] = 0
    epochs: Free[Amount] = 0.0  # passes over the training rows, which give the steps; 0: `steps`
    init_from: str = ""  # run or checkpoint whose parameters a new run begins with; "" draws them
    init_model: Literal["given", "same"] = "given"  # same: model.* is that of init_from
    batch_size: Count = 8  # rows per step, over all processes and microbatches
    grad_accum: Free[Count] = 1  # microbatches per step
    device_rows: Free[Size] = 0  # the most rows that a device reads at once: as few microbatches as
    # that takes on the mesh; 0: `grad_accum` says
    label_smoothing: Share = 0.0  # share of a target's mass that all symbols get alike; not scored
    carry: Literal["none", "mixers", "all"] = "none"  # state of a stream that outlives its batch
    eval_every: Free[Size] = 250  # steps; 0 evaluates at the end only
    eval_batch_size: Free[Size] = 0  # rows; 0 takes batch_size / grad_accum
    eval_tasks: Free[tuple[str, ...]] = ()  # "piqa", "repeat:512": run beside the held-out loss
    save_every: Free[Size] = 250  # steps; 0 saves at the end only
    keep_latest: Free[Count] = 2  # checkpoints
    save_seconds: Free[Amount] = 0.0  # also save when so long has passed since the last save; 0 off
    keep_every: Free[Size] = 0  # steps; checkpoints at its multiples are kept for ever; 0 is none
    keep_best: Free[Size] = 0  # checkpoints with the lowest held-out loss that are kept; 0 is none
    mirror: Free[str] = ""  # s3://, gs:// or a folder, where checkpoints and log are copied; "" off
    stall_factor: Free[Amount] = 20.0  # warn after so many times the median step without one; 0 off
    log_every: Free[Count] = 10  # steps
    async_save: Free[bool] = True  # write checkpoints in the background
    profile_steps: Free[Size] = 0  # steps traced by the profiler, from step 10
    check_writes: Free[bool] = True  # a level that was to be written and was not ends the run
    tensorboard: Free[bool] = False  # write TensorBoard events (extra `log`)
    wandb: Free[str] = ""  # W&B project; "" is off (extra `log`, mode from WANDB_MODE)

    def check(self) -> None:
        want = f"must divide train.batch_size={self.batch_size}"
        self.require(self.batch_size % self.grad_accum == 0, "grad_accum", want)
        want = "wants train.init_from, whose model it takes"
        self.require(self.init_model == "given" or self.init_from != "", "init_model", want)
        want = (
            f"wants train.grad_accum=1, got {self.grad_accum}: the mesh decides; give one of both"
        )
        self.require(not self.device_rows or self.grad_accum == 1, "device_rows", want)


AxisSize = Annotated[int, Range(least=1, also=-1)]


@dataclass(frozen=True)
class MeshConfig(Block):
    """Sizes of the mesh axes; -1 takes the devices that are left."""

    data: AxisSize = -1  # batch
    fsdp: AxisSize = 1  # batch, and parameters sharded over it
    model: AxisSize = 1  # heads, hidden widths, vocabulary
    offload: bool = False  # moments of the optimizer lie in the host's memory between updates

    def check(self) -> None:
        rest = [name for name in ("data", "fsdp", "model") if getattr(self, name) == -1]
        for name in rest[1:]:
            self.require(
                False, name, f"wants a size: mesh.{rest[0]} takes the devices that are left"
            )


@dataclass(frozen=True)
class Config(Block):
    """One experiment."""

    seed: Annotated[int, Range(least=0, most=2**32 - 1)] = 0  # of parameters, data order, sampling
    model: ModelConfig = field(default_factory=ModelConfig)
    teach: TeachConfig = field(default_factory=TeachConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: Free[MeshConfig] = field(default_factory=MeshConfig)

    def check(self) -> None:
        self._take_steps()
        check_teach(self.model, self.teach)
        self._check_align()
        self._check_stream()
        want = f"wants at most the {self.model.max_len} positions of GPT-2, model.max_len"
        fits = not self.model.kind.gpt2 or self.data.seq_len <= self.model.max_len
        self.require(fits, "data.seq_len", want)
        model = self.model
        want = (
            "is for synthetic tasks that are read as whole rows; wants data.source='synthetic', "
            "teach.mode='off' and model.cms.surprise=()"
        )
        whole_rows = self.data.is_synthetic and not self.teaches and not model.cms.surprise
        self.require(model.answers == "each" or whole_rows, "model.answers", want)

    def _take_steps(self) -> None:
        """Let ``train.steps`` follow from ``train.tokens``."""
        tokens, steps = self.train.tokens, self.train.steps
        self.require(steps > 0 or tokens > 0, "train.steps", "wants 1 or more, or train.tokens")
        if tokens == 0:
            return
        want = f"wants train.epochs=0, got {self.train.epochs}: give one of both"
        self.require(self.train.epochs == 0, "train.tokens", want)
        per_step = self.train.batch_size * self.data.seq_len
        follow = -(-tokens // per_step)
        want = f"gives {follow} steps of {per_step:,} tokens; got train.steps={steps}: give one"
        self.require(steps in (0, follow), "train.tokens", want)
        if steps == 0:
            object.__setattr__(self, "train", replace(self.train, steps=follow))

    def _check_align(self) -> None:
        data, align = self.data, self.align
        want = f"must be a multiple of data.align={align}"
        self.require(data.seq_len % align == 0, "data.seq_len", want)
        chunks = {"model.memory (chunks and segments)": self.model.memory_chunk}
        if self.teaches:
            chunks["teach.chunk"] = self.teach.chunk
        field = "data.seq_len" if data.is_synthetic and not data.align else "data.align"
        for name, chunk in chunks.items():
            want = (
                f"must be a multiple of {name}={chunk}; rows are cut by it, so give the same "
                "value to every model that is compared with this one"
            )
            require(align % chunk == 0, field, align, want)

    def _check_stream(self) -> None:
        model, data, none = self.model, self.data, self.train.carry == "none"
        want = f"wants data.mode='stream': rows of data.mode={data.mode!r} do not continue"
        self.require(none or data.mode == "stream", "train.carry", want)
        want = f"full attention of {model.block!r} cannot hold a whole run; wants model.window"
        self.require(none or not model.attends or model.window > 0, "train.carry", want)
        want = (
            "wants a block with CMS levels that are not written, model.cms.fast_layers=0; got "
            f"{model.block!r} with model.cms.fast_layers={model.cms.fast_layers}"
        )
        unwritten = model.has_cms and model.fast_layers == 0
        self.require(not model.cms.surprise or unwritten, "model.cms.surprise", want)

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
    periods = model.cms.periods
    want = f"must divide the fastest period of model.cms.periods={periods}"
    teach.require(periods[0] % teach.chunk == 0, "chunk", want)
    fast = range(model.layers - model.fast_layers, model.layers)
    for name, known in (("levels", range(len(periods))), ("layers", fast)):
        chosen = getattr(teach, name)
        want = f"wants some of {tuple(known)}, which have fast weights, or None for all"
        fits = chosen is None or (len(chosen) > 0 and set(chosen) <= set(known))
        teach.require(fits, name, want)


place(Config)
