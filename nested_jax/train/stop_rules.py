"""The conditions under which a run is stopped because it makes no sense any more."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nested_jax.config import Config
from nested_jax.errors import NotWrittenError
from nested_jax.train.plan import taught_levels
from nested_jax.train.watch.meter import Meter

MAX_BAD_UPDATES = 25  # in a row that are not finite
DIVERGENCE_MARGIN = 0.5  # nats above ln(vocabulary)
WRITTEN_BY = 50  # steps after which every taught level has been written, or blocked


class Diverged(Exception):
    """The loss is not finite or worse than uniform, or too many updates were not finite."""


def check_step(step: int, metrics: Mapping[str, float]) -> None:
    """Raise `Diverged` on a loss that is not finite, or too many bad updates in a row."""
    if not math.isfinite(metrics["loss"]):
        raise Diverged(f"step {step}: the loss is {metrics['loss']}")
    bad = int(metrics["bad_updates_in_a_row"])
    if bad >= MAX_BAD_UPDATES:
        raise Diverged(
            f"step {step}: {bad} updates in a row were not finite, the limit is {MAX_BAD_UPDATES}"
        )


def check_window(cfg: Config, step: int, meter: Meter) -> None:
    """Raise if the mean loss since the last line is worse than uniform, or a level is not written.

    Worse than uniform: above ln(vocabulary) + `DIVERGENCE_MARGIN`, after the warm-up.
    """
    assert meter.train_loss is not None
    limit = math.log(cfg.model.vocab_size) + DIVERGENCE_MARGIN
    if step > cfg.optim.warmup_steps and meter.train_loss > limit:
        raise Diverged(
            f"step {step}: the loss is {meter.train_loss:.4f}, worse than ln(vocabulary) + "
            f"{DIVERGENCE_MARGIN} = {limit:.4f}"
        )
    if cfg.train.check_writes and (step >= WRITTEN_BY or step == cfg.train.steps):
        check_written(cfg, step, meter)


def check_written(cfg: Config, step: int, meter: Meter) -> None:
    """Raise `NotWrittenError` for a taught level with no write; blocked writes count."""
    for level in taught_levels(cfg):
        done = (meter.totals.get(f"teach/level{level}/{what}", 0) for what in ("writes", "blocked"))
        if not sum(done):
            raise NotWrittenError(
                f"step {step}: CMS level {level} (period {cfg.model.cms.periods[level]}) was never "
                "written, nor blocked by the surprise gate. Rows hold too few whole periods of a "
                "document: lengthen data.seq_len, shorten the period, or leave the level out of "
                "teach.levels"
            )
