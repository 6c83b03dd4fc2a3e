"""A data root of a few rows for every task, and checkpoints of runs that never took a step."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from tiny import WORDS, synthetic_text, tiny_config

from eval.core.texts import CORPORA
from eval.tasks.zeroshot_files import SETS
from nested_jax.config import Config
from nested_jax.train.plan import make_plan
from nested_jax.train.start import open_start
from nested_jax.train.watch.progress import Display
from nested_jax.train.workdir import hold_workdir

QUESTIONS = 80
INTENTS = {"pay_bill": "bank", "open_account": "bank", "play_song": "home", "set_alarm": "home"}


def write_root(folder: Path) -> Path:
    """Write rows for every task; answers are drawn, so that nothing but luck finds them."""
    rng = random.Random(7)
    for task in SETS.values():
        rows = (question(rng, task.columns) for _ in range(QUESTIONS))
        write_rows(folder / task.file, rows)
    for segment in CORPORA[1:]:
        for split in ("train", "test"):
            texts = ({"text": synthetic_text(rng.randrange(999))} for _ in range(3))
            write_rows(folder / "lm" / segment / f"{split}.jsonl.gz", texts)
    for split in ("train", "test"):
        file = folder / "lm" / "wikitext2" / f"{split}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f" \n = Title {i} = \n \n {phrase(rng, 30)}\n" for i in range(3)))
        for name in ("clinc150", "banking77"):
            rows = (
                {"text": phrase(rng, 4), "intent": intent, "domain": domain}
                for intent, domain in INTENTS.items()
                for _ in range(12)
            )
            write_rows(folder / "continual" / name / f"{split}.jsonl.gz", rows)
    file = folder / "long_context" / "english_words.txt"
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(w for w in WORDS) + "\n")
    return folder


def question(rng: random.Random, columns: Iterable[str]) -> dict[str, Any]:
    """Return a row of a zero-shot task."""
    row: dict[str, Any] = {c: phrase(rng, rng.randrange(3, 9)) for c in columns}
    row["choices"] = [phrase(rng, rng.randrange(1, 4)) for _ in range(4)]
    row["gold"] = rng.randrange(2 if "option1" in row else 4)
    row["sentence"] = f"{phrase(rng, 3)} _ {phrase(rng, 3)}"
    return row


def phrase(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    file = file.with_suffix("")  # plain: a file without .gz serves too
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def untrained(workdir: Path, data: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Save the checkpoint of a run before its first step, which compiles nothing."""
    return save_untrained(tiny_config(data, changes), workdir)


def save_untrained(cfg: Config, workdir: Path) -> Path:
    display = Display(quiet=True)
    plan = make_plan(cfg, workdir, display.say)
    with jax.set_mesh(plan.mesh), hold_workdir(workdir), open_start(plan, display) as start:
        meta = start.record.meta(0)
        start.checkpoints.save(start.state, start.batches.get_state(), meta)
    return workdir
