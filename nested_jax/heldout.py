"""The held-out loss of a run, in nats a token and in bits a byte, on a fixed set."""

from __future__ import annotations

import math
from functools import partial

import jax

from nested_jax.data.packing import Row
from nested_jax.data.pipeline import target_bytes, valid_batches
from nested_jax.plan import Plan
from nested_jax.sharding import Rows, place_batch, process_rows, replicated
from nested_jax.train_state import TrainState
from nested_jax.train_step import eval_step


class HeldOut:
    """The first ``data.valid_rows`` rows of the valid split's fixed order, and how to score them.

    Bits a byte do not depend on the tokenizer: summed loss / ln 2 / UTF-8 bytes of the targets.
    """

    def __init__(self, plan: Plan) -> None:
        cfg, self.mesh = plan.cfg, plan.mesh
        batches = valid_batches(cfg.data, batch_size=plan.eval_rows, align=cfg.align)
        self.bytes = target_bytes(batches, plan.data.piece_byte_lengths)
        rows = process_rows(plan.mesh, plan.eval_rows)
        self.batches = [own_rows(batch, rows) for batch in batches]
        step = partial(eval_step, program=plan.program)
        self.eval_step = jax.jit(step, out_shardings=replicated(plan.mesh))

    def score(self, state: TrainState) -> dict[str, float]:
        """Return the loss with the inner loop of training: a chunk is scored, then written."""
        nats = tokens = 0.0
        for batch in self.batches:
            metrics = jax.device_get(self.eval_step(state, place_batch(self.mesh, batch)))
            nats += float(metrics["loss"]) * float(metrics["tokens"])
            tokens += float(metrics["tokens"])
        return {
            "valid_loss": nats / tokens,
            "valid_bits_per_byte": nats / math.log(2) / self.bytes,
        }


def own_rows(batch: Row, rows: Rows) -> Row:
    """Return this process's part of a batch that was read whole."""
    size = len(batch["tokens_BT"]) // rows.parts
    return {name: x[rows.part * size : (rows.part + 1) * size] for name, x in batch.items()}
