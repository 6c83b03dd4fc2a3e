"""Losses of texts of five corpora, by how a model reads them."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.retrofit.models import Models, call
from nested_jax import machine
from nested_jax.hub.calibrate import Bench, Setting, search, spread
from nested_jax.hub.texts import documents, token_rows
from nested_jax.models.lm import build_model
from nested_jax.models.memories import begin
from nested_jax.read import read
from nested_jax.teach import teach
from nested_jax.train.opened import Opened, open_checkpoint
from nested_jax.train.watch.progress import Clock

SEGMENTS = (
    "code",
    "literary_novels",
    "dialogue_sgd",
    "medical_medquad",
    "encyclopedic_wikipedia",
)
LONG = ("code", "literary_novels", "encyclopedic_wikipedia")  # with documents of two halves
TASKS = "tasks"  # the record that is of no corpus
HALF = 1024  # tokens that are read once, and tokens that are scored after
DISTANCES = (128, 1024, 4096, 16384)  # tokens between two readings of a passage
PASSAGES = 4
WILD = 10.0  # times the default rate: what the bound on a loss is worth
SWEEP = {"sgd": (0.005, 0.02, 0.05, 0.1), "unit": (0.0025, 0.01, 0.04, 0.16)}


def measure(
    models: Models, flags: argparse.Namespace, done: Collection[str]
) -> Iterator[dict[str, Any]]:
    """Yield one record for each corpus, and one for `TASKS`, but for those that are done."""
    about = {
        "base": models.name,
        "seed": models.seed,
        "further": models.further,
        "device": machine.device_name(),
        "versions": machine.versions(),
        "git_commit": machine.git_commit(),
    }
    if set(done) == {*SEGMENTS, TASKS}:
        return
    trained = models.training()
    readers = {
        name: open_checkpoint(getattr(models, name))
        for name in ("reader", "longer_reader", "rates", "everything")
    }
    for segment in (name for name in SEGMENTS if name not in done):
        record = {**about, "corpus": segment, "read": corpus(readers, segment, flags)}
        if segment in LONG:
            record["memory"] = memory(readers["reader"], segment, flags)
        yield record
    if TASKS not in done:
        yield {**about, "trained": trained, TASKS: tasks(models, flags)}


def rows_of(opened: Opened, segment: str, split: str, flags: argparse.Namespace) -> np.ndarray:
    name = str(flags.data_root / "lm" / segment / f"{split}.jsonl.gz")
    texts = documents(name, "--data-root")
    return token_rows(texts, opened.text_tokenizer, flags.rows, flags.length)


def corpus(readers: dict[str, Opened], segment: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Return bits per token of one corpus, by the model and by how it reads.

    All models read the same rows: their hash is in what is returned.
    """
    reader = readers["reader"]
    valid, test = (rows_of(reader, segment, s, flags) for s in ("valid", "test"))
    for name, other in readers.items():
        same = np.array_equal(test, rows_of(other, segment, "test", flags))
        assert same, f"{name} reads other rows"
    tuned = Bench(reader, valid, Clock(), flags.seconds)
    best = search(tuned).setting
    safe = Setting(reader.cfg, tuned.ones())
    bench = Bench(reader, test, Clock(), flags.seconds)
    losses = {
        "none": bench.base,
        "safe": bench.score(safe, test),
        "calibrated": bench.score(best, test),
        "wild": bench.score(safe.times(WILD), test),
    }
    for way, name in (("longer", "longer_reader"), ("rates", "rates"), ("everything",) * 2):
        other = Bench(readers[name], test, Clock(), flags.seconds)
        losses[way] = other.base
        losses[f"{way}_writes"] = other.score(Setting(readers[name].cfg, other.ones()), test)
    final = best.final()
    return {
        **{way: bits(nats) for way, nats in losses.items()},
        "gains": {way: gains(bench.base - nats) for way, nats in losses.items() if way != "none"},
        **({"sweep": {rule: sweep(bench, safe, rule) for rule in SWEEP}} if flags.sweep else {}),
        "rows": len(test),
        "rows_sha256": hashlib.sha256(test.tobytes()).hexdigest(),
        "length": flags.length,
        "rates": {"inner_lr": final.model.cms.inner_lr, "chunk": final.teach.chunk},
        "trials": tuned.count,
    }


def gains(nats_BT: np.ndarray) -> dict[str, Any]:
    """Return the gain over no writes in bits per token: mean, standard error, and by quarter."""
    gain, error = spread(nats_BT.mean(axis=1) / math.log(2))
    quarters = [bits(part) for part in np.array_split(nats_BT, 4, axis=1)]
    return {"mean": gain, "error": error, "quarters": quarters}


def sweep(bench: Bench, safe: Setting, rule: str) -> dict[str, float]:
    """Return bits per token by the rate, with no bound on what writes may lose."""
    cfg = safe.cfg
    cms = replace(cfg.model.cms, optimizer=rule, inner_lr=1.0, trust=0.0)
    plain = replace(safe, cfg=replace(cfg, model=replace(cfg.model, cms=cms)))
    rates = SWEEP[rule]
    return {str(rate): bits(bench.score(plain.times(rate), bench.rows)) for rate in rates}


def bits(nats: np.ndarray) -> float:
    return float(nats.mean(dtype=np.float64) / math.log(2))


def memory(opened: Opened, segment: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Return bits per token of second halves, by whose memory they are read with."""
    name = str(flags.data_root / "lm" / segment / "test.jsonl.gz")
    found, tokenizer = [], opened.text_tokenizer
    for text in documents(name, "--data-root"):
        tokens = tokenizer.encode(text[: 60 * HALF])
        if len(tokens) > 2 * HALF and len(found) < flags.rows:
            found.append(tokens[: 2 * HALF + 1])
    texts = np.asarray(found, np.int32)
    model = build_model(opened.cfg.model)
    own = read(model, opened.params, opened.cfg, list(texts[:, : HALF + 1])).memory
    off = replace(opened.cfg.teach, mode="off")
    second = texts[:, HALF:]
    fresh = jax.jit(partial(model.init_state, batch_size=len(texts), capacity=HALF))(opened.params)
    score = jax.jit(partial(teach, model, cfg=off))
    other = jax.tree.map(lambda x: np.roll(np.asarray(x), 1, axis=0), own)
    states = {
        "none": fresh,
        "own": begin(model, fresh, own),
        "other": begin(model, fresh, other),
    }
    losses = {
        whose: np.asarray(score(opened.params, state, second[:, :-1], second[:, 1:])[1].loss_BT)
        for whose, state in states.items()
    }
    gained = {
        f"{whose}_gain": spread((losses["none"] - losses[whose]).mean(axis=1) / math.log(2))
        for whose in ("own", "other")
    }
    return {whose: bits(nats) for whose, nats in losses.items()} | gained | {"rows": len(texts)}


def tasks(models: Models, flags: argparse.Namespace) -> dict[str, Any]:
    """Return what `python -m eval` says: passages read again, and zero-shot tasks."""
    distances = ",".join(map(str, DISTANCES))
    repeat = (
        "--distances",
        distances,
        "--passages",
        str(PASSAGES),
        "--segments",
        "run",
        "--memorize",
    )
    root = ("--data-root", str(flags.data_root), "--tasks", "all")
    asked = (*root, "--max-samples", str(flags.questions))
    found = {
        f"repeat {name}": ask("repeat", getattr(models, name), *repeat)
        for name in ("reader", "everything")
    }
    if flags.questions and models.steps == max(flags.steps):
        found["zeroshot base"] = ask("zeroshot", models.base, *asked)
        found["zeroshot reader"] = ask("zeroshot", models.reader, *asked, "--memorize")
    return found


def ask(task: str, workdir: Path, *arguments: str) -> dict[str, Any]:
    """Return the metrics of a task of `python -m eval`, and the hash of its items."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        call("-m", "eval", task, "--checkpoint", str(workdir), *arguments, "--out", str(out))
        result = json.loads(out.read_text())
    return {name: result[name] for name in ("metrics", "items_sha256") if name in result}
