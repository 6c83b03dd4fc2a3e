"""What writing is worth to a trained Transformer that never learned to write, text by text.

    python benchmarks/retrofit.py --base runs/transformer --data-root FOLDER [--out FILE]
    python benchmarks/retrofit.py --tables [--out FILE]      the tables of the records in FILE

FOLDER has lm/SEGMENT/{valid,test}.jsonl.gz. Every base is retrofitted (one level of period 64 in
its last block), nothing is trained. For each corpus, rows of its test split are read three times:
without writes, with the safe default, and with what `hub calibrate` finds on rows of the valid
split. `wild` is the default at ten times its rate: what the bound on a loss is worth. Then the
memory file: the first half of a document is read, all but what was learned is cleared, and its
second half is scored with that memory, with another document's, and with none. `--sweep` also reads
with plain gradients (`sgd`) and with shares of the norm (`unit`) at several rates, unbounded. One
JSON line for each base and corpus.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from eval.core.report import table as markdown_table  # noqa: E402
from nested_jax import machine  # noqa: E402
from nested_jax.hub.calibrate import Bench, Setting, search, spread  # noqa: E402
from nested_jax.hub.retrofit import retrofit, retrofit_config  # noqa: E402
from nested_jax.hub.texts import documents, token_rows  # noqa: E402
from nested_jax.models.lm import build_model  # noqa: E402
from nested_jax.models.memories import begin  # noqa: E402
from nested_jax.read import read  # noqa: E402
from nested_jax.teach import teach  # noqa: E402
from nested_jax.train.opened import Opened, open_checkpoint  # noqa: E402
from nested_jax.train.watch.progress import Clock  # noqa: E402

SEGMENTS = (
    "code",
    "literary_novels",
    "dialogue_sgd",
    "medical_medquad",
    "encyclopedic_wikipedia",
)
LONG = ("code", "literary_novels", "encyclopedic_wikipedia")  # with documents of two halves
RECORDS = ROOT / "benchmarks" / "results" / "retrofit-cpu.jsonl"
HALF = 1024  # tokens that are read once, and tokens that are scored after
WILD = 10.0
SWEEP = {"sgd": (0.005, 0.02, 0.05, 0.1), "unit": (0.0025, 0.01, 0.04, 0.16)}


def retrofitted(base: Path) -> Opened:
    opened = open_checkpoint(base)
    cfg = retrofit_config(opened.cfg, "64", "1")
    params = retrofit(opened.params, opened.cfg.model, cfg.model)
    return Opened(opened.saved._replace(cfg=cfg), params, opened.tokenizer)


def rows_of(opened: Opened, root: Path, segment: str, split: str, flags: Any) -> np.ndarray:
    name = str(root / "lm" / segment / f"{split}.jsonl.gz")
    texts = documents(name, "--data-root")
    return token_rows(texts, opened.text_tokenizer, flags.rows, flags.length)


def corpus(opened: Opened, segment: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Return bits per token of one corpus, by how its rows are read."""
    valid, test = (rows_of(opened, flags.data_root, segment, s, flags) for s in ("valid", "test"))
    tuned = Bench(opened, valid, Clock(), flags.seconds)
    best = search(tuned).setting
    safe = Setting(opened.cfg, tuned.ones())
    bench = Bench(opened, test, Clock(), flags.seconds)
    found: dict[str, Any] = {"none": bits(bench.base)}
    settings = {"safe": safe, "calibrated": best, "wild": safe.times(WILD)}
    for name, setting in settings.items():
        loss_BT = bench.score(setting, test)
        gain, error = spread((bench.base - loss_BT).mean(axis=1) / math.log(2))
        quarters = np.array_split(bench.base - loss_BT, 4, axis=1)
        found[name] = bits(loss_BT)
        found[f"{name}_gain"] = {
            "mean": gain,
            "error": error,
            "quarters": [float(q.mean() / math.log(2)) for q in quarters],
        }
    if flags.sweep:
        found["sweep"] = {rule: sweep(bench, safe, rule) for rule in SWEEP}
    final = best.final()
    rates = {"inner_lr": final.model.cms.inner_lr, "chunk": final.teach.chunk}
    return found | {"rows": len(test), "length": flags.length, "rates": rates}


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
    gains = {
        f"{whose}_gain": spread((losses["none"] - losses[whose]).mean(axis=1) / math.log(2))
        for whose in ("own", "other")
    }
    return {whose: bits(nats) for whose, nats in losses.items()} | gains | {"rows": len(texts)}


def measure(base: Path, flags: argparse.Namespace) -> Iterator[dict[str, Any]]:
    opened = retrofitted(base)
    about = {
        "base": f"{flags.name}, {opened.step} steps",
        "seed": opened.cfg.seed,
        "step": opened.step,
        "device": machine.device_name(),
        "versions": machine.versions(),
        "git_commit": machine.git_commit(),
    }
    for segment in SEGMENTS:
        record = {**about, "corpus": segment, "read": corpus(opened, segment, flags)}
        if segment in LONG:
            record["memory"] = memory(opened, segment, flags)
        yield record


def tables(records: list[dict[str, Any]]) -> str:
    """Return the Markdown tables of records: mean over seeds, and the lowest and highest."""
    parts = []
    for base in dict.fromkeys(r["base"] for r in records):
        rows, halves = [], []
        for segment in SEGMENTS:
            mine = [r for r in records if r["base"] == base and r["corpus"] == segment]
            if not mine:
                continue
            reads = [r["read"] for r in mine]
            cells = [f"{statistics.mean(r['none'] for r in reads):.3f}"]
            for name in ("safe", "calibrated", "wild"):
                cells.append(over([100 * (r[name] / r["none"] - 1) for r in reads]))
            rows.append([segment, str(len(reads)), *cells])
            with_memory = [r["memory"] for r in mine if "memory" in r]
            if with_memory:
                cells = [f"{statistics.mean(m['none'] for m in with_memory):.3f}"]
                for name in ("own", "other"):
                    cells.append(over([100 * (m[name] / m["none"] - 1) for m in with_memory]))
                halves.append([segment, str(len(with_memory)), *cells])
        header = ("corpus", "seeds", "no writes, bits per token")
        ways = ("safe default", "calibrated", "default x 10")
        parts.append(f"**{base}**: rows of test text, change of the loss by writing\n")
        parts.append(markdown_table((*header, *ways), rows))
        parts.append("\nSecond halves of documents, given a memory alone\n")
        whose = ("own memory", "another document's")
        parts.append(markdown_table(("corpus", "seeds", "no memory", *whose), halves) + "\n")
        swept = [r for r in records if r["base"] == base and "sweep" in r["read"]]
        if swept:
            parts.append("Change of the loss by rule and rate, without a bound\n")
            columns = [(rule, rate) for rule in SWEEP for rate in map(str, SWEEP[rule])]
            header = ("corpus", *(f"{rule} {rate}" for rule, rate in columns))
            lines = [
                [r["corpus"], *(over([change(r["read"], *column)]) for column in columns)]
                for r in swept
            ]
            parts.append(markdown_table(header, lines) + "\n")
    return "\n".join(parts)


def change(read: dict[str, Any], rule: str, rate: str) -> float:
    return 100 * (read["sweep"][rule][rate] / read["none"] - 1)


def over(values: list[float]) -> str:
    """Return the mean of percentages, with the lowest and the highest of several."""
    text = f"{statistics.mean(values):+.2f} %"
    if len(values) > 1:
        text += f" ({min(values):+.2f} to {max(values):+.2f})"
    return text


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, nargs="*", default=[], help="workdirs of Transformers")
    parser.add_argument("--name", default="transformer.py:smoke", help="what they are, for tables")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--rows", type=int, default=6, help="of each corpus and split")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--seconds", type=float, default=60, help="of each calibration")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--out", type=Path, default=RECORDS)
    parser.add_argument("--tables", action="store_true")
    flags = parser.parse_args(arguments)
    for base in flags.base:
        for record in measure(base, flags):
            with flags.out.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(json.dumps(record), flush=True)
    if flags.tables:
        print(tables([json.loads(line) for line in flags.out.read_text().splitlines()]))


if __name__ == "__main__":
    main(sys.argv[1:])
