"""The stages of the experiment: data, pretraining, fine-tuning and scores of each condition."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eval.__main__ import main as evaluate
from eval.core.datasets import DEFAULTS, DataRoot
from nested_jax.config import Config, load_config
from nested_jax.data.manifest import SourceSpec, load_manifest
from nested_jax.data.prepare.hf_source import download, downloaded
from nested_jax.data.prepare.inject import Injection
from nested_jax.data.prepare.products import FACTS
from nested_jax.data.prepare.shard_block import ShardOptions
from nested_jax.data.prepare.shard_corpus import shard_source
from nested_jax.data.records import json_rows, read_object
from nested_jax.data.shards import TOKENIZER
from nested_jax.data.tokenizers.tokenizer import load_tokenizer, train_tokenizer
from nested_jax.errors import ROOT, require
from nested_jax.files import write_bytes
from nested_jax.hub.export import main as export
from nested_jax.train.trainer import train
from nested_jax.train.workdir import SUMMARY
from recipes.domain_tokens import text
from recipes.domain_tokens.sizes import Size
from recipes.stages import Stage

RUNS = ("pretrain", "tulu", "gsm8k")  # of a condition, in their order
CHARS = 6  # of text per token that is asked for: more than any tokenizer here needs


@dataclass(frozen=True)
class Experiment:
    """An experiment in a folder."""

    out: Path
    size: Size
    rule: str  # of the domain tokens
    root: DataRoot  # of samples and evaluations
    tokenizer: str  # file of the full size
    tulu: str  # conversations of the full size
    download: str  # folder for FineWeb-Edu's files, or one that has them
    workers: int
    say: Callable[[str], None]

    def run_of(self, stage: str, condition: str) -> Path:
        return self.out / "runs" / condition / stage

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def model_file(self) -> Path:
        return self.data / "tokenizer" / TOKENIZER

    def injection(self, condition: str) -> Injection:
        return Injection(condition, scheme="facts", rule=self.rule)  # type: ignore[arg-type]

    # --- data ---

    def make_texts(self) -> dict[str, Any]:
        """Write the text of a small experiment: a corpus, conversations, problems, questions."""
        size = self.size
        if size.name == "full":
            require(Path(self.tulu).exists(), "--tulu", self.tulu, "wants JSON lines of Tulu-3")
            return {}
        chars = size.target_tokens * CHARS
        corpus, chat = self.data / "corpus", self.data / "chat"
        found = {
            f"corpus {split}": text.write_lines(
                corpus / f"{split}.jsonl", text.corpus(self.root, split, round(share * chars))
            )
            for split, share in (("train", 1.0), ("valid", size.held_out))
        }
        for split, share in (("train", 1.0), ("valid", 0.1)):
            dialogues, drills = round(share * size.dialogues), round(share * size.chat_drills)
            rows = text.conversations(self.root, split, dialogues, drills)
            found[f"chat {split}"] = text.write_lines(chat / f"{split}.jsonl", rows)
        rows = text.problems(self.root, "train", size.problems)
        found["problems"] = text.write_lines(self.data / "problems" / "train.jsonl", rows)
        text.small_root(self.root, self.data / "root", self.say)
        return found

    def make_tokenizer(self) -> dict[str, Any]:
        """Put the tokenizer in its place; all conditions share it."""
        if self.size.vocab_size:
            files = (self.data / "corpus/train.jsonl", self.data / "chat/train.jsonl")
            texts = [text_of(row) for file in files for _, row in json_rows(file)]
            size = self.size.vocab_size + len(FACTS)
            model = train_tokenizer(texts, size, symbols=FACTS, model_type="gpt2").model
        else:
            model = load_tokenizer(self.tokenizer).model
        self.model_file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.model_file, model)
        tokenizer = load_tokenizer(self.model_file)
        return {"sha256": tokenizer.hash, "vocab_size": tokenizer.vocab_size}

    def source(self) -> SourceSpec:
        if self.size.name != "full":
            return SourceSpec(name="text", dataset=str(self.data / "corpus"), rules="none")
        (spec,) = load_manifest(str(ROOT / "configs/data/fineweb_edu.py")).sources
        return downloaded(spec, Path(self.download)) if self.download else spec

    def fetch(self) -> dict[str, Any]:
        """Fetch the files of the pretraining text, where ``--download`` asks for it."""
        if self.size.name != "full" or not self.download:
            return {}
        (spec,) = load_manifest(str(ROOT / "configs/data/fineweb_edu.py")).sources
        return {"files": download(spec, Path(self.download), self.say).data_files}

    def shard(self, condition: str) -> dict[str, Any]:
        """Write the shards of a condition; say how many tokens there are."""
        size = self.size
        options = ShardOptions(
            held_out=size.held_out,
            injection=self.injection(condition),
            workers=self.workers,
            target_tokens=size.target_tokens,
            shard_size=size.shard_size,
            drills=size.drills,
        )
        folder = self.data / condition
        store = shard_source(self.source(), self.model_file, folder, options, self.say)
        train = store.select("train")
        return {
            "unique_tokens": sum(shard.tokens for shard in train),
            "domain_tokens": sum(shard.symbols for shard in train),
            "bytes": sum(shard.bytes for shard in train),
            "documents": sum(shard.documents for shard in train),
            "held_out_domain_tokens": sum(s.symbols for s in store.select("valid")),
        }

    # --- runs ---

    def config(self, stage: str, condition: str) -> Config:
        """Return the configuration of a run."""
        vocabulary = load_tokenizer(self.model_file).vocab_size
        if stage == "pretrain":
            fields = {
                "data.source": str(self.data / condition),
                "model.vocab_size": vocabulary,
                "data.vocab_size": max(vocabulary, 512),
                **self.size.pretrain,
            }
            return load_config(str(ROOT / self.size.model), fields)
        before = self.run_of(RUNS[RUNS.index(stage) - 1], condition)
        small = self.size.name != "full"
        if stage == "tulu":
            source = str(self.data / "chat") if small else self.tulu
        else:
            source = str(
                self.data / "problems" if small else self.root.find("gsm8k/train.jsonl.gz")
            )
        spec = f"{ROOT / 'configs/sft.py'}:{stage},init={before}"
        fields = {
            "data.source": source,
            "data.cache_dir": str(self.out / "cache"),
            "data.chat.condition": condition,
            "data.chat.rule": self.rule,
            **(self.size.tulu if stage == "tulu" else self.size.gsm8k),
        }
        return load_config(spec, fields)

    def train(self, stage: str, condition: str) -> dict[str, Any]:
        """Train a run to its end; return its summary."""
        workdir = self.run_of(stage, condition)
        if not (workdir / SUMMARY).is_file():
            train(self.config(stage, condition), workdir)
        summary = read_object(workdir / SUMMARY, step=int, valid_loss=float)
        return {name: summary[name] for name in summary if name not in ("versions", "scores")}

    # --- scores ---

    def score(self, task: str, stage: str, condition: str, words: list[str]) -> dict[str, Any]:
        """Evaluate a run; return the result without its items, which are beside it."""
        out = self.out / "scores" / condition / f"{stage}-{task}.json"
        run = self.run_of(stage, condition)
        command = [task, "--checkpoint", str(run), "--out", str(out), "--save-items"]
        self.evaluate([*command, *self.root_words(), *words])
        result = read_object(out, metrics=dict, seconds=float)
        return {"metrics": result["metrics"], "seconds": result["seconds"], "file": str(out)}

    def score_checkpoints(self, condition: str, words: list[str]) -> dict[str, Any]:
        """Score HellaSwag at every kept checkpoint of the pretraining."""
        run, folder = self.run_of("pretrain", condition), self.out / "scores" / "checkpoints"
        command = ["checkpoints", "--run", f"{condition}={run}", "--out-dir", str(folder)]
        self.evaluate([*command, "--tasks", "hellaswag", "--", *self.root_words(), *words])
        found = read_object(folder / condition / "checkpoint_results.json", results=list)
        return {"checkpoints": found["results"]}

    def root_words(self) -> list[str]:
        if self.size.name != "full":
            return ["--data-root", str(self.data / "root")]
        return ["--data-root", str(self.root.roots[0])] if self.root.roots != DEFAULTS else []

    def evaluate(self, words: list[str]) -> None:
        status = evaluate(words)
        require(status == 0, "python -m eval", " ".join(words), f"ended with status {status}")

    def export(self, stage: str, condition: str) -> dict[str, Any]:
        """Export a run for Hugging Face, and check the export."""
        folder = self.out / "exported" / condition / stage
        shutil.rmtree(folder, ignore_errors=True)  # of a start that was killed
        folder.parent.mkdir(parents=True, exist_ok=True)
        run = self.run_of(stage, condition)
        words = ["--checkpoint", str(run), "--out", str(folder), "--layout", "gpt2", "--check"]
        status = export(words)
        require(status == 0, "python -m nested_jax.export", " ".join(words), f"status {status}")
        return {"folder": str(folder), "checked": True}


def text_of(row: Mapping[str, Any]) -> str:
    """Return the text of a line of a corpus or of a conversation."""
    return row["text"] if "text" in row else "\n".join(m["content"] for m in row["messages"])


def stages_of(experiment: Experiment, conditions: list[str], *, data: bool) -> list[Stage]:
    """Return the stages of an experiment in their order."""
    words = experiment.size.score["checkpoints"]
    found: list[Stage] = []
    if data:
        found += [
            Stage("download", 2, experiment.fetch),
            Stage("texts", 1, experiment.make_texts),
            Stage("tokenizer", 2, experiment.make_tokenizer),
        ]
        found += [Stage(f"shards/{c}", 2, partial(experiment.shard, c)) for c in conditions]
    for c in conditions:
        found += [
            Stage(f"pretrain/{c}", 40, partial(experiment.train, "pretrain", c)),
            Stage(f"checkpoints/{c}", 8, partial(experiment.score_checkpoints, c, words)),
            Stage(f"export/{c}", 2, partial(experiment.export, "pretrain", c)),
            scored(experiment, "probes", "pretrain", c, 2),
            Stage(f"tulu/{c}", 12, partial(experiment.train, "tulu", c)),
            scored(experiment, "probes", "tulu", c, 2),
            scored(experiment, "gsm8k", "tulu", c, 4),
            Stage(f"gsm8k/{c}", 10, partial(experiment.train, "gsm8k", c)),
            scored(experiment, "probes", "gsm8k", c, 2),
            scored(experiment, "gsm8k", "gsm8k", c, 4),
        ]
    return found


def scored(experiment: Experiment, task: str, stage: str, condition: str, weight: float) -> Stage:
    """Return the stage that evaluates a run."""
    words = experiment.size.score[task]
    name = f"score {task} after {stage}/{condition}"
    return Stage(name, weight, partial(experiment.score, task, stage, condition, words))
