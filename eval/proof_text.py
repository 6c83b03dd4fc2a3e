"""Loss by position in the sequence: what writing is worth on real text, and where."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.proof_cells import Result
from nested_jax.checkpoint import load_checkpoint
from nested_jax.config import Config
from nested_jax.data.pipeline import valid_batches
from nested_jax.metrics import write_json
from nested_jax.models.lm import build_model
from nested_jax.teach import teach
from nested_jax.types import Array, PyTree

PARTS = 4  # of a row, in which the loss is averaged


def position_tables(proof: Any, chosen: Sequence[Any]) -> str:
    """Return bits a byte of every model, its loss by quarter of the row, and gains over seeds."""
    from eval.proof_report import mean_spread, table

    rows = []
    for one in chosen:
        if not one.results:
            rows.append([one.model, "failed", *[""] * PARTS])
            continue
        bits = [run.summary["valid_bits_per_byte"] for run in one.results]
        parts = zip(*(positions(run, proof.out) for run in one.results), strict=True)
        rows.append(
            [
                one.model,
                mean_spread(bits, 1.0, 4),
                *(mean_spread(part, 1.0, 4) for part in parts),
            ]
        )
    quarters = [f"quarter {i + 1}" for i in range(PARTS)]
    main = table(["model", "bits a byte", *(f"{q}, nats a token" for q in quarters)], rows)
    return f"{main}\n\n{gains(proof, chosen)}".strip()


def gains(proof: Any, chosen: Sequence[Any]) -> str:
    """Return what writing gains, seed by seed, for each pair of a model with writes and without."""
    from eval.proof_report import mean_spread, table

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
        parts = np.array(
            [
                np.subtract(positions(a, proof.out), positions(b, proof.out))
                for a, b in zip(off, on, strict=True)
            ]
        ).T
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
    quarters = [f"quarter {i + 1}" for i in range(PARTS)]
    header = ["gain from writing", "bits a byte", *(f"{q}, nats" for q in quarters), "seeds"]
    return table(header, rows)


def positions(run: Result, out: Path) -> list[float]:
    """Return the mean held-out loss in each part of a row, nats a token; kept beside the run."""
    workdir = run.cell.workdir(out)
    file = workdir / "positions.json"
    if not file.exists():
        params, cfg, step = load_checkpoint(workdir)
        write_json(file, {"step": step, "parts": measure(params, cfg)})
    return json.loads(file.read_text())["parts"]


def measure(params: PyTree, cfg: Config) -> list[float]:
    """Return the mean loss of the held-out rows by part, with the inner loop of training."""
    model = build_model(cfg.model)
    score = jax.jit(partial(row_losses, model, cfg=cfg))
    total, count = np.zeros(PARTS), np.zeros(PARTS)
    for batch in valid_batches(cfg.data, batch_size=4, align=cfg.align):
        loss_BT = np.asarray(score(params, batch))
        for i, (loss, weight) in enumerate(
            zip(
                np.array_split(loss_BT * batch["weights_BT"], PARTS, axis=1),
                np.array_split(batch["weights_BT"], PARTS, axis=1),
                strict=True,
            )
        ):
            total[i] += float(loss.sum())
            count[i] += float(weight.sum())
    return [t / max(c, 1.0) if c else math.nan for t, c in zip(total, count, strict=True)]


def row_losses(model: Any, params: PyTree, batch: dict[str, Array], *, cfg: Config) -> Array:
    """Return the loss of every target, each document of a row from a fresh state, [B, T]."""
    segments_BT = batch["segments_BT"]
    changed_BT = (segments_BT[:, 1:] != segments_BT[:, :-1]) & (segments_BT[:, 1:] > 0)
    rows, tokens = segments_BT.shape
    _, taught = teach(
        model,
        params,
        model.init_state(params, rows, capacity=tokens),
        batch["tokens_BT"],
        batch["targets_BT"],
        cfg.teach,
        weights_BT=batch["weights_BT"],
        starts_BT=jnp.pad(changed_BT, [(0, 0), (1, 0)]),
        origin="fresh",
    )
    return taught.loss_BT
