"""Find how a model should write while it reads, on a text of yours.

    python -m nested_jax.hub calibrate --checkpoint RUN --text FILE|FOLDER|stdlib:SEGMENT

    --checkpoint RUN    with CMS levels, as `retrofit` makes it; its configuration is changed
    --text NAME         what it is to read later looks like this
    --second NAME       a text that is not used, to see what is gained on it (default: every fourth
                        row of --text, which is then not used)
    --tokens N          tokens of the text (default 32768), --length N of a row (default 2048)
    --minutes N         when no further trial begins (default 5)
    --dry-run           change nothing

Every token is scored before the write that it causes. Rates of all levels, then of each level and
matrix, layers, clip, gate and chunk are tried in turn. One is kept where it gains more than its
standard error over rows. A rate whose loss is not finite is named and never kept.

Exit status: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nested_jax.config import Config
from nested_jax.config.schema import to_dict
from nested_jax.errors import require
from nested_jax.files import write_json
from nested_jax.hub.texts import documents, enough, token_rows
from nested_jax.models.lm import build_model, uses_slots
from nested_jax.teach import teach
from nested_jax.train.integrity import seal
from nested_jax.train.opened import Opened, open_checkpoint
from nested_jax.train.stop_rules import DIVERGENCE_MARGIN
from nested_jax.train.watch.progress import Clock
from nested_jax.train.workdir import CONFIG
from nested_jax.types import PyTree

SPANS = 4  # parts of a row whose gain is printed
WRONG = (0.25, 0.5, 1.0, 2.0, 4.0)  # factors on the rates whose cost is printed
FASTEST, SLOWEST = 64.0, 1 / 64  # factors on the rates that are tried


@dataclass(frozen=True)
class Setting:
    """How a model writes: its configuration, and the rates as factors on it."""

    cfg: Config
    factors: np.ndarray  # [levels, blocks, matrices]

    def times(self, factor: float, at: Any = ()) -> Setting:
        factors = self.factors.copy()
        factors[at] *= factor
        return replace(self, factors=factors)

    def teaching(self, **changes: Any) -> Setting:
        return replace(self, cfg=replace(self.cfg, teach=replace(self.cfg.teach, **changes)))

    def chunk(self, factor: float) -> Setting:
        """Write every `factor` as many tokens."""
        teach, model = self.cfg.teach, self.cfg.model
        periods = tuple(int(p * factor) for p in model.cms.periods)
        changed = replace(model, cms=replace(model.cms, periods=periods))
        teach = replace(teach, chunk=int(teach.chunk * factor))
        return replace(self, cfg=replace(self.cfg, model=changed, teach=teach))

    def final(self) -> Config:
        """Return the configuration with the rates in it."""
        model, layers = self.cfg.model, self.factors.shape[1]
        rates = [
            self.cfg.model.cms.level_lr(i)[j % len(self.cfg.model.cms.level_lr(i))] * float(x)
            for i, level in enumerate(self.factors)
            for j, x in enumerate(level.max(axis=0))
        ]
        written = np.flatnonzero(self.factors.max(axis=(0, 2)) > 0)
        first = model.layers - layers
        teach = self.cfg.teach
        if 0 < len(written) < layers:
            teach = replace(teach, layers=tuple(int(first + i) for i in written))
        changed = replace(model, cms=replace(model.cms, inner_lr=tuple(rates)))
        return replace(self.cfg, model=changed, teach=teach)


class Trial(NamedTuple):
    """A setting that was tried."""

    setting: Setting
    loss_BT: np.ndarray

    @property
    def finite(self) -> bool:
        """No row has lost more than a uniform guess would."""
        worst = math.log(self.setting.cfg.model.vocab_size) + DIVERGENCE_MARGIN
        return bool((self.loss_BT.mean(axis=1) <= worst).all())


class Bench:
    """Scores rows with settings of one model; a configuration is compiled once."""

    def __init__(self, opened: Opened, rows: np.ndarray, clock: Clock, seconds: float) -> None:
        self.opened, self.rows, self.clock, self.seconds = opened, rows, clock, seconds
        self.steps: dict[Config, Callable[..., Any]] = {}
        self.longest, self.count = 0.0, 0
        off = replace(opened.cfg, teach=replace(opened.cfg.teach, mode="off"))
        self.base = self.score(Setting(off, self.ones()), rows)

    def ones(self) -> np.ndarray:
        model = self.opened.cfg.model
        first = self.opened.params["suffix"]["cms"]["log_rate_0"]
        return np.ones((len(model.cms.periods), *first.shape))

    def score(self, setting: Setting, rows: np.ndarray) -> np.ndarray:
        """Return the nats of every target, [B, T], each before the write that it causes."""
        if setting.cfg not in self.steps:
            self.steps[setting.cfg] = jax.jit(partial(losses, setting.cfg))
        factors = jnp.asarray(setting.factors, jnp.float32)
        return np.asarray(self.steps[setting.cfg](self.opened.params, factors, rows))

    def gain(self, loss_BT: np.ndarray) -> tuple[float, float]:
        """Return the mean gain over no writes in bits per token, and its standard error."""
        return spread((self.base - loss_BT).mean(axis=1) / math.log(2))

    @property
    def over(self) -> bool:
        return self.clock.total() + self.longest > self.seconds

    def attempt(self, name: str, setting: Setting, best: Trial | None) -> Trial | None:
        """Try a setting; return it if it is better than `best` by more than chance, else `best`."""
        begun = self.clock.total()
        trial = Trial(setting, self.score(setting, self.rows))
        self.longest = max(self.longest, self.clock.total() - begun)
        self.count += 1
        kept = trial.finite and (best is None or better(trial, best))
        said = "diverges" if not trial.finite else f"gains {self.gain(trial.loss_BT)[0]:+.4f}"
        say(
            f"trial {self.count}, {self.clock.total():.0f} of {self.seconds:.0f} s: {name}: {said}"
            f"{' bits per token' if trial.finite else ''}{', kept' if kept else ''}"
        )
        return trial if kept else best


def better(trial: Trial, best: Trial) -> bool:
    mean, error = spread((best.loss_BT - trial.loss_BT).mean(axis=1))
    return mean > error


def spread(values_B: np.ndarray) -> tuple[float, float]:
    """Return the mean over rows and its standard error."""
    return float(values_B.mean()), float(values_B.std(ddof=1) / math.sqrt(len(values_B)))


def losses(cfg: Config, params: PyTree, factors: jax.Array, rows: jax.Array) -> jax.Array:
    """Return the nats of every target of rows that are read from a fresh state."""
    cms = dict(params["suffix"]["cms"])
    for i in range(len(cfg.model.cms.periods)):
        cms[f"log_rate_{i}"] = cms[f"log_rate_{i}"] + jnp.log(factors[i])
    params = {**params, "suffix": {**params["suffix"], "cms": cms}}
    model = build_model(cfg.model)
    rows = rows.astype(jnp.int32)
    state = model.init_state(params, rows.shape[0], rows.shape[1])
    teaching = replace(cfg.teach, meta_gradient="stop", remat="none")
    return teach(model, params, state, rows[:, :-1], rows[:, 1:], teaching)[1].loss_BT


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, type=Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--second")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--dry-run", action="store_true")


def run(flags: argparse.Namespace) -> None:
    """Calibrate a checkpoint.

    Raises:
      ValueError: a number out of its range, a model without levels that learn their rate, too
        little text, and what `open_checkpoint` raises.
    """
    require(math.isfinite(flags.minutes) and flags.minutes > 0, "--minutes", flags.minutes, "above")
    opened = open_checkpoint(flags.checkpoint)
    model = opened.cfg.model
    fits = opened.cfg.teaches and model.cms.learned_rate
    want = "wants a model that writes CMS levels with learned rates, as `retrofit` makes it"
    require(fits, "--checkpoint", str(flags.checkpoint), want)
    most = model.max_len if uses_slots(model) else flags.length
    length = min(flags.length, most) // opened.cfg.teach.chunk * opened.cfg.teach.chunk
    want = f"wants at least a chunk of {opened.cfg.teach.chunk} tokens"
    require(length > 0, "--length", flags.length, want)
    tuned, second = texts(opened, flags, length)
    bench = Bench(opened, tuned, Clock(), 60 * flags.minutes)
    best = search(bench)
    report(bench, best, second)
    if not flags.dry_run:
        cfg = best.setting.final()
        mean, error = bench.gain(best.loss_BT)
        rewrite(opened, cfg, {"text": flags.text, "bits_per_token": mean, "error": error})
        say(f"written into {opened.workdir}: model.cms.inner_lr={cfg.model.cms.inner_lr}")


def texts(opened: Opened, flags: argparse.Namespace, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that are tuned on, and those that are not."""
    tokenizer, count = opened.text_tokenizer, max(flags.tokens // length, 8)
    rows = token_rows(documents(flags.text, "--text"), tokenizer, count, length)
    enough(rows, 4, "--text", flags.text)
    if flags.second is None:
        held = np.arange(len(rows)) % 4 == 3
        return rows[~held], rows[held]
    second = token_rows(documents(flags.second, "--second"), tokenizer, count // 2, length)
    enough(second, 2, "--second", flags.second)
    return rows, second


def search(bench: Bench) -> Trial:
    """Return the best setting that was found in the time."""
    start = Setting(bench.opened.cfg, bench.ones())
    best = bench.attempt("rates as they are", start, None)
    factor, step = 1.0, 2.0
    while SLOWEST < factor < FASTEST and not bench.over:
        found = bench.attempt(f"all rates x{factor * step:g}", start.times(factor * step), best)
        if found is not best:
            best, factor = found, factor * step
        elif step > 1 and factor == 1.0:
            step = 0.5
        else:
            break
    if best is None:
        best = Trial(start.times(0.0), bench.base)  # every rate diverged: nothing is written
    for name, change in changes(bench, best):
        if bench.over:
            break
        best = bench.attempt(name, change(best.setting), best) or best
    return best


def changes(bench: Bench, best: Trial) -> Iterator[tuple[str, Callable[[Setting], Setting]]]:
    """Yield what is tried one after the other, each on the best so far."""
    levels, layers, matrices = best.setting.factors.shape
    every = slice(None)
    for i in range(levels if levels > 1 else 0):
        for factor in (0.0, 0.25, 4.0):
            yield f"level {i} x{factor:g}", partial(Setting.times, factor=factor, at=i)
    for j, matrix in enumerate(("gate", "up", "down")[-matrices:]):
        for factor in (0.0, 3.0):
            at: Any = (every, every, j)
            yield f"{matrix} x{factor:g}", partial(Setting.times, factor=factor, at=at)
    for first in range(1, layers):
        at = (every, slice(0, first))
        name = f"the last {layers - first} of {layers} blocks"
        yield name, partial(Setting.times, factor=0.0, at=at)
    chunk, align = bench.opened.cfg.teach.chunk, bench.opened.cfg.align
    for size in (2 * chunk, chunk // 2):
        if size >= 8 and align % size == 0:
            yield f"chunks of {size}", partial(Setting.chunk, factor=size / chunk)
    easy = float(np.quantile(bench.base.reshape(len(bench.base), -1, 8).mean(axis=-1), 0.25))
    yield f"a gate at {easy:.2f} nats", partial(Setting.teaching, surprise_threshold=easy)
    yield "a clip at 0.5", partial(Setting.teaching, clip=0.5)


def report(bench: Bench, best: Trial, second: np.ndarray) -> None:
    """Print gains by position, on the second text, and of wrong rates."""
    off = Setting(bench.opened.cfg, bench.ones()).teaching(mode="off")
    say("gain in bits per token, with 95 % intervals over rows:")
    unused = bench.score(off, second), bench.score(best.setting, second)
    for name, base, loss in (("the text", bench.base, best.loss_BT), ("a second text", *unused)):
        gains = (base - loss) / math.log(2)
        parts = [gains, *np.array_split(gains, SPANS, axis=1)]
        shown = [interval(part.mean(axis=1)) for part in parts]
        say(f"  {name}: {shown[0]}; by quarter {', '.join(shown[1:])}")
    if bench.base.size and best.setting.factors.max() > 0:
        for factor in WRONG:
            loss = bench.score(best.setting.times(factor), bench.rows)
            said = f"{bench.gain(loss)[0]:+.4f}" if np.isfinite(loss).all() else "diverges"
            say(f"  rates x{factor:g}: {said}")


def interval(values_B: np.ndarray) -> str:
    mean, error = spread(values_B) if len(values_B) > 1 else (float(values_B.mean()), math.nan)
    return f"{mean:+.4f} ± {1.96 * error:.4f}"


def rewrite(opened: Opened, cfg: Config, found: dict[str, Any]) -> None:
    """Put a configuration into a checkpoint; its arrays stay as they are."""
    meta = {**opened.saved.meta, "config": to_dict(cfg), "calibrated": found}
    write_json(opened.saved.folder / "meta" / "metadata", seal(meta))
    write_json(opened.workdir / CONFIG, to_dict(cfg))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
