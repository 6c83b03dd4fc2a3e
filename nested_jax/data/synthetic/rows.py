"""Synthetic tasks by name, as rows that the ordinary trainer reads.

``task_of("mqar,tokens=128,pairs=8")`` is a `Task`: a frozen description that gives row `index` of a
split as a pure function of (task, seed, split, index), and scores predictions.
`SyntheticSource` is a random-access source of such rows with the four arrays of ``types.Batch`` and
the interface of ``packing.PackedSource``: batches, shuffling and resume are the pipeline's.

Every task asks for single tokens, formal languages too (formal.py says how a set of valid symbols
becomes one), so that the loss is the ordinary weighted cross-entropy and a prediction an argmax:

    task = task_of("formal,language=parity")
    rows = [task.example(seed, i, "test") for i in range(n)]
    task.score(logits.argmax(-1), rows)          # .token .example .sequence .macro
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from nested_jax.config import TaskConfig
from nested_jax.config.schema import from_dict
from nested_jax.data.packing import Row
from nested_jax.data.synthetic.formal import Formal
from nested_jax.data.synthetic.mad import (
    Compression,
    FuzzyRecall,
    InContextRecall,
    Memorization,
    SelectiveCopy,
)
from nested_jax.data.synthetic.recall import MQAR, Copy, Induction, Needle
from nested_jax.data.synthetic.task import Split, Task
from nested_jax.errors import require

TASKS: dict[str, type[Task]] = {
    "mqar": MQAR,
    "induction": Induction,
    "copy": Copy,
    "needle": Needle,
    "formal": Formal,
    "in_context_recall": InContextRecall,
    "noisy_recall": InContextRecall,
    "fuzzy_recall": FuzzyRecall,
    "selective_copy": SelectiveCopy,
    "compression": Compression,
    "memorization": Memorization,
}
DEFAULTS: dict[str, dict[str, int | float | str]] = {
    "noisy_recall": {"vocab": 32, "noise_vocab": 16, "noise": 0.2},
}
MAD_TASKS = tuple(TASKS)[-6:]


def task_of(spec: str) -> Task:
    """Return the task that ``NAME[,FIELD=VALUE...]`` describes.

    Raises:
      ValueError: an unknown name or field, a value of the wrong type, settings that do not fit.
    """
    name, *fields = [part.strip() for part in spec.split(",")]
    require(name in TASKS, "task", name, f"wants one of {', '.join(TASKS)}")
    settings = dict(DEFAULTS.get(name, {}))
    for part in fields:
        field, equals, text = part.partition("=")
        require(bool(equals), f"task {name}", part, "wants FIELD=VALUE")
        settings[field] = number_or_text(text)
    return from_dict(settings, TASKS[name], f"{name}.")


def number_or_text(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def tasks_of(specs: tuple[str, ...]) -> dict[str, Task]:
    return {spec: task_of(spec) for spec in specs}


def symbols(cfg: TaskConfig) -> int:
    """Return the symbols that the tasks of a run need together."""
    return max(task.vocab_size for task in tasks_of(cfg.train + cfg.scored).values())


def reads(cfg: TaskConfig) -> set[str]:
    """Return from where the answers of a run's tasks are read: "each" position, the "last"."""
    return {task.read for task in tasks_of(cfg.train + cfg.scored).values()}


def identity(cfg: TaskConfig) -> str:
    """Return a hash of the tasks with all their settings, defaults too: what a run learned from."""
    text = repr((tasks_of(cfg.train), tasks_of(cfg.scored), cfg.rows, cfg.seed))
    return hashlib.sha256(text.encode()).hexdigest()


def train_sources(cfg: TaskConfig, seq_len: int) -> tuple[SyntheticSource, ...]:
    """Return the training rows of every task, padded to `seq_len` tokens."""
    tasks = tasks_of(cfg.train).values()
    return tuple(SyntheticSource(task, cfg.seed, seq_len, cfg.rows) for task in tasks)


@dataclass(frozen=True)
class SyntheticSource:
    """Rows of one split of a task; ``source[i]`` is a dict of four arrays [T].

    A row is one document. What comes after its last answer is padding (id 0, segment 0), up to
    `seq_len` tokens.
    """

    task: Task
    seed: int
    seq_len: int  # at least task.length
    rows: int  # rows of an epoch
    split: Split = "train"

    def __post_init__(self) -> None:
        least = self.task.length
        require(self.seq_len >= least, "data.seq_len", self.seq_len, f"wants {least} or more")
        require(self.rows >= 1, "rows", self.rows, "wants 1 or more")
        require(
            self.task.read == "each" or self.seq_len == least,
            "data.seq_len",
            self.seq_len,
            f"wants the {least} tokens of {self.task}, all answered from the last of them",
        )

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Row:
        rows = self.empty(1)
        self.fill(rows, 0, int(index))
        return {name: array[0] for name, array in rows.items()}

    def empty(self, rows: int) -> Row:
        """Return `rows` rows of padding, [B, T]."""
        shape = (rows, self.seq_len)
        return {
            "tokens_BT": np.zeros(shape, np.int32),
            "targets_BT": np.zeros(shape, np.int32),
            "weights_BT": np.zeros(shape, np.float32),
            "segments_BT": np.zeros(shape, np.int32),
        }

    def fill(self, rows: Row, place: int, index: int) -> None:
        """Write row `index` of the source over row `place`, which is padding, of `rows`."""
        require(0 <= index < self.rows, "row", index, f"wants 0 to {self.rows - 1}")
        example = self.task.example(self.seed, index, self.split)
        used = int(np.flatnonzero(example.weights_T)[-1]) + 1
        rows["tokens_BT"][place, :used] = example.tokens_T[:used]
        rows["targets_BT"][place, :used] = example.targets_T[:used]
        rows["weights_BT"][place, :used] = example.weights_T[:used]
        rows["segments_BT"][place, :used] = 1
