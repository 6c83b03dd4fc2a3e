"""Our local files as tasks of lm-evaluation-harness: its prompts, loop and metrics, no network."""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from eval.core.datasets import DataRoot
from eval.core.flags import choose
from eval.core.items import ASKED, item_hash
from eval.core.texts import CORPORA, documents
from eval.tasks.zeroshot_files import SETS, ZeroShot
from nested_jax.errors import import_extra

SPLIT = "test"  # what every file is called inside the harness
RATES = ("acc", "acc_norm")
ROLLING = ("word_perplexity", "byte_perplexity", "bits_per_byte")


def import_harness(name: str) -> ModuleType:
    """Import a module of lm_eval, or `datasets`, which it brings."""
    return import_extra(name, "eval")


def choose_local(text: str) -> list[str]:
    """Return names of zero-shot tasks and of text segments.

    Raises:
      ValueError: an unknown name, with the known ones.
    """
    return choose(text, (*SETS, *CORPORA), "--tasks")


def run_local(
    model: Any, names: Sequence[str], root: DataRoot, flags: argparse.Namespace
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Run tasks in the harness; return the metrics of each, and its items."""
    harness = import_harness("lm_eval")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = import_harness("lm_eval.tasks").TaskManager(include_defaults=False)
    found = harness.simple_evaluate(
        model=model,
        tasks=[configuration(name, root, flags.max_samples) for name in names],
        num_fewshot=flags.num_fewshot,
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
        fewshot_random_seed=flags.seed,
    )
    metrics = {name: numbers(found["results"][name], found["samples"][name]) for name in names}
    items = [item(name, sample) for name in names for sample in found["samples"][name]]
    return metrics, items


def configuration(name: str, root: DataRoot, limit: int) -> dict[str, Any]:
    """Return a task as the harness's TaskConfig."""
    rows = rows_of(name, root, limit)
    config: dict[str, Any] = {
        "task": name,
        "custom_dataset": lambda **_: as_dataset(rows),
        "test_split": SPLIT,
        "fewshot_split": SPLIT,
    }
    if name in CORPORA:
        how: dict[str, Any] = {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
        }
        metrics: Sequence[str] = ROLLING
    else:
        how, metrics = FORMS[SETS[name].kind](SETS[name])
    return {**config, **how, "metric_list": [{"metric": metric} for metric in metrics]}


def rows_of(name: str, root: DataRoot, limit: int) -> list[dict[str, Any]]:
    if name in CORPORA:
        texts = documents(root, name, SPLIT)
        found = ({"id": key, "text": text} for key, text in texts)
    else:
        task = SETS[name]
        columns = (*task.columns, "id")
        rows = enumerate(root.rows(task.file, **task.columns))
        found = ({"id": str(i), **{c: row[c] for c in columns if c in row}} for i, (_, row) in rows)
    return list(itertools.islice(found, limit or None))


def as_dataset(rows: list[dict[str, Any]]) -> Any:
    datasets = import_harness("datasets")
    return datasets.DatasetDict({SPLIT: datasets.Dataset.from_list(rows)})


# --- how a question is put to the harness --------------------------------------------------------


def choice(task: ZeroShot) -> tuple[dict[str, Any], Sequence[str]]:
    """Choices after a prompt, which the harness renders by itself from the row's columns."""
    template = task.form.replace("{", "{{").replace("}", "}}")
    return {
        "output_type": "multiple_choice",
        "doc_to_text": template,
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
    }, RATES


def partial(task: ZeroShot) -> tuple[dict[str, Any], Sequence[str]]:
    """One continuation after several contexts: the harness takes the contexts as choices."""
    return {
        "output_type": "multiple_choice",
        "doc_to_text": lambda row: int(row["gold"]),
        "doc_to_choice": lambda row: [context for context, _ in task.pairs(row)],
        "doc_to_target": lambda row: task.pairs(row)[0][1].lstrip(),
    }, RATES[:1]


def word(task: ZeroShot) -> tuple[dict[str, Any], Sequence[str]]:
    """One continuation; for this kind the harness puts no space before it."""
    del task
    return {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": " {{target}}",
    }, ("perplexity", "acc")


FORMS = {"choice": choice, "partial": partial, "word": word}


# --- what the harness found ----------------------------------------------------------------------


def numbers(result: dict[str, Any], samples: Sequence[Any]) -> dict[str, Any]:
    """Return the harness's metrics under the names of ours: ``acc,none`` is acc."""
    kept = {key.partition(",")[0]: value for key, value in result.items() if "," in key}
    kept = {key: value for key, value in kept.items() if isinstance(value, (int, float))}
    return {**kept, "n": len(samples)}


def item(name: str, sample: dict[str, Any]) -> dict[str, Any]:
    """Return an item in the form of ours: whether it was right, and its log-likelihoods."""
    answers = sample["filtered_resps"]
    rolling = name in CORPORA
    found: dict[str, Any] = {
        "id": f"{name}/{sample['doc']['id']}",
        "group": name,
        "logprobs": [float(x) if rolling else float(x[0]) for x in answers],
        ASKED: item_hash(sample["doc"]),
    }
    if rolling:
        found["loss"] = -found["logprobs"][0]  # of the whole text, in nats
    else:
        found["correct"] = bool(sample["acc"])
    return found
