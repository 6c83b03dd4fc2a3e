"""What an experiment consists of, at each size: text, model, steps, and what is scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Size:
    """One size of the experiment; fields of runs are those of the configuration."""

    name: str
    model: str  # FILE:ARG of the pretraining
    vocab_size: int  # pieces of a byte-level BPE that is trained here; 0 is GPT-2's published one
    target_tokens: int  # of pretraining text, each read about once
    shard_size: int
    held_out: float  # share of the pretraining text
    drills: float  # share of the training text that is synthetic arithmetic
    pretrain: dict[str, Any] = field(default_factory=dict)
    tulu: dict[str, Any] = field(default_factory=dict)
    gsm8k: dict[str, Any] = field(default_factory=dict)
    dialogues: int = 0  # conversations of stage 1; 0 is all of the file
    chat_drills: int = 0  # questions of arithmetic among them
    problems: int = 0  # of GSM8K that are trained on; 0 is all
    score: dict[str, list[str]] = field(default_factory=dict)  # flags of each evaluation
    bytes_needed: int = 0  # on disk, for two conditions


SMALL_SFT = {
    "data.seq_len": 512,  # in 1,024 pieces a problem of GSM8K has 290 tokens on average
    "data.valid_rows": 32,
    "train.eval_every": 0,
    "train.save_every": 100,
    "train.log_every": 25,
    "train.keep_latest": 1,
}
FULL = Size(
    name="full",
    model="configs/gpt2.py:124m_10b",
    vocab_size=0,
    target_tokens=9_500_000_000,
    shard_size=100_000_000,
    held_out=0.005,
    drills=0.0005,
    pretrain={"train.keep_latest": 1, "train.keep_every": 2000},
    score={
        "checkpoints": ["--protocol", "completion"],
        "gsm8k": [],
        "probes": [],
    },
    bytes_needed=160 << 30,  # two times 20 GB of shards and 12 checkpoints of 1.5 GB, raw text
)
QUICK = Size(
    name="quick",
    model="configs/gpt2.py:smoke",
    vocab_size=1024,
    target_tokens=1_100_000,
    shard_size=0,
    held_out=0.02,
    drills=0.15,
    pretrain={
        "data.seq_len": 256,
        "data.valid_rows": 64,
        "model.max_len": 512,
        "train.steps": 600,
        "train.batch_size": 8,
        "train.eval_every": 300,
        "train.save_every": 150,
        "train.keep_latest": 1,
        "train.keep_every": 300,
        "train.log_every": 50,
        "optim.learning_rate": 3e-3,
        "optim.warmup_steps": 50,
    },
    tulu={
        **SMALL_SFT,
        "train.epochs": 1.0,
        "train.batch_size": 4,
        "optim.learning_rate": 2e-3,
        "optim.warmup_share": 0.05,
    },
    gsm8k={
        **SMALL_SFT,
        "train.epochs": 1.0,
        "train.batch_size": 4,
        "optim.learning_rate": 5e-4,
    },
    dialogues=600,
    chat_drills=6000,
    problems=1500,
    score={
        "checkpoints": ["--protocol", "completion", "--max-samples", "200"],
        "gsm8k": ["--max-samples", "100", "--max-tokens", "128"],
        "probes": ["--max-tokens", "16"],
    },
    bytes_needed=2 << 30,
)
TINY = Size(
    name="tiny",
    model="configs/gpt2.py:test",
    vocab_size=512,
    target_tokens=20_000,
    shard_size=0,
    held_out=0.1,
    drills=0.2,
    pretrain={
        "data.seq_len": 64,
        "data.valid_rows": 8,
        "model.max_len": 256,
        "train.steps": 20,
        "train.batch_size": 4,
        "train.eval_every": 10,
        "train.save_every": 5,
        "train.keep_latest": 1,
        "train.keep_every": 10,
        "train.log_every": 5,
    },
    tulu={**SMALL_SFT, "data.seq_len": 128, "train.epochs": 0.2, "train.save_every": 3},
    gsm8k={**SMALL_SFT, "data.seq_len": 128, "train.epochs": 0.2, "train.save_every": 3},
    dialogues=40,
    chat_drills=200,
    problems=60,
    score={
        "checkpoints": ["--protocol", "completion", "--max-samples", "8"],
        "gsm8k": ["--max-samples", "6", "--max-tokens", "16"],
        "probes": ["--max-tokens", "8"],
    },
    bytes_needed=256 << 20,
)
SIZES = {size.name: size for size in (FULL, QUICK, TINY)}
