"""Loss by position in the sequence: what writing is worth on real text, and where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from eval.core.plots import figure, save
from eval.core.report import mean_spread, table
from eval.proof.cells import Result
from nested_jax.config import Config
from nested_jax.data.held_out import valid_batches
from nested_jax.files import write_json
from nested_jax.models.lm import build_model
from nested_jax.outer_loss import document_starts
from nested_jax.teach import teach
from nested_jax.train.checkpoint import load_checkpoint
from nested_jax.types import Array, PyTree

PARTS = 16  # of a row, in which the loss is summed
QUARTERS = 4  # of a row, in the tables


class Positions(NamedTuple):
    """Held-out loss by part of the row."""

    nats: list[float]  # summed over the tokens of a part
    tokens: list[float]

    def means(self, parts: int = PARTS) -> list[float]:
        """Return nats per token in each of `parts` equal parts; NaN where a part has no token."""
        nats, tokens = (np.reshape(x, (parts, -1)).sum(axis=1) for x in self)
        return np.divide(nats, tokens, out=np.full(parts, np.nan), where=tokens > 0).tolist()


def position_tables(proof: Any, chosen: Sequence[Any]) -> str:
    """Return bits per byte of every model, its loss by quarter of the row, and gains over seeds."""
    rows = []
    for one in chosen:
        if not one.results:
            rows.append([one.model, one.missing, *[""] * QUARTERS])
            continue
        bits = [run.summary["valid_bits_per_byte"] for run in one.results]
        parts = zip(
            *(positions(run, proof.out).means(QUARTERS) for run in one.results), strict=True
        )
        rows.append(
            [
                one.model,
                mean_spread(bits, 1.0, 4),
                *(mean_spread(part, 1.0, 4) for part in parts),
            ]
        )
    quarters = [f"quarter {i + 1}" for i in range(QUARTERS)]
    main = table(["model", "bits per byte", *(f"{q}, nats per token" for q in quarters)], rows)
    return f"{main}\n\n{gains(proof, chosen)}".strip()


def gains(proof: Any, chosen: Sequence[Any]) -> str:
    """Return what writing gains, seed by seed, for each pair of a model with writes and without."""
    runs = {one.model: {run.cell.seed: run for run in one.results} for one in chosen}
    rows = []
    for name, base in ((n, n.split(",")[0]) for n in runs if n.endswith("writes off")):
        seeds = sorted(set(runs[name]) & set(runs.get(base, {})))
        if not seeds:
            continue
        off, on = ([runs[n][s] for s in seeds] for n in (name, base))
        bits = [
            a.summary["valid_bits_per_byte"] - b.summary["valid_bits_per_byte"]
            for a, b in zip(off, on, strict=True)
        ]
        quarters = [
            [np.array(positions(run, proof.out).means(QUARTERS)) for run in pair]
            for pair in zip(off, on, strict=True)
        ]
        parts = np.array([without - written for without, written in quarters]).T
        rows.append(
            [
                base,
                mean_spread(bits, 1.0, 4),
                *(mean_spread(part.tolist(), 1.0, 4) for part in parts),
                ", ".join(map(str, seeds)),
            ]
        )
    if not rows:
        return ""
    names = [f"quarter {i + 1}, nats" for i in range(QUARTERS)]
    header = ["gain from writing", "bits per byte", *names, "seeds"]
    return table(header, rows)


def by_position(path: Path, proof: Any, runs: Sequence[Any]) -> Path:
    """Draw the mean loss over seeds by position in the row, a line for each model."""
    fig, ax = figure()
    for one in runs:
        curves = [positions(run, proof.out).means() for run in one.results]
        length = one.results[0].cell.load().data.seq_len
        at = (np.arange(PARTS) + 0.5) * length / PARTS
        ax.plot(at, np.mean(curves, axis=0), marker=".", label=one.model)
    ax.set(title="Held-out text", xlabel="position in the row, tokens", ylabel="nats per token")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    return save(fig, path)


def positions(run: Result, out: Path) -> Positions:
    """Return the held-out loss by part of the row; kept beside the run."""
    if run.positions is not None:
        return Positions(run.positions["nats"], run.positions["tokens"])
    workdir = run.cell.workdir(out)
    file = workdir / "positions.json"
    if not file.exists():
        params, cfg, step = load_checkpoint(workdir)
        write_json(file, {"step": step, **measure(params, cfg)._asdict()})
    record = json.loads(file.read_text())
    return Positions(record["nats"], record["tokens"])


def measure(params: PyTree, cfg: Config) -> Positions:
    """Score the held-out rows by part, with the inner loop of training."""
    model = build_model(cfg.model)
    score = jax.jit(partial(row_losses, model, cfg=cfg))
    total, count = np.zeros(PARTS), np.zeros(PARTS)
    for batch in valid_batches(cfg.data, batch_size=4, align=cfg.align):
        weights_BT = batch["weights_BT"]
        loss_BT = np.asarray(score(params, batch)) * weights_BT
        for sums, x_BT in ((total, loss_BT), (count, weights_BT)):
            sums += [part.sum(dtype=float) for part in np.array_split(x_BT, PARTS, axis=1)]
    return Positions(total.tolist(), count.tolist())


def row_losses(model: Any, params: PyTree, batch: dict[str, Array], *, cfg: Config) -> Array:
    """Return the loss of every target, each document of a row from a fresh state, [B, T]."""
    rows, tokens = batch["tokens_BT"].shape
    _, taught = teach(
        model,
        params,
        model.init_state(params, rows, capacity=tokens),
        batch["tokens_BT"],
        batch["targets_BT"],
        cfg.teach,
        weights_BT=batch["weights_BT"],
        starts_BT=document_starts(batch["segments_BT"]),
        start="fresh",
    )
    return taught.loss_BT
