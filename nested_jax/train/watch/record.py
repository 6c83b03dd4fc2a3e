"""The record of a run: metrics.jsonl, what is shown, evaluations, summary.json."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax

from nested_jax import machine
from nested_jax.config import Config
from nested_jax.data.identity import TRAIN_ORDER
from nested_jax.files import write_bytes, write_json
from nested_jax.losses import perplexity
from nested_jax.optim import group_counts
from nested_jax.storage import scheme, size_of
from nested_jax.train.fits import Identity, run_meta
from nested_jax.train.heldout import HeldOut, describe, trigram_baseline
from nested_jax.train.plan import Plan
from nested_jax.train.signals import SAVE
from nested_jax.train.state import TrainState
from nested_jax.train.stop_rules import check_step, check_window
from nested_jax.train.task_scores import TaskScores
from nested_jax.train.watch.meter import Meter
from nested_jax.train.watch.progress import Clock, Display
from nested_jax.train.watch.trackers import Tracker, open_trackers
from nested_jax.train.workdir import METRICS, STARTS, SUMMARY
from nested_jax.types import PyTree

Report = Callable[[str], None]
Evaluator = Callable[[Any, PyTree, Config, int], dict[str, float]]  # model, params, config, step
UPLOAD_SECONDS = 30.0  # between two uploads of metrics.jsonl to a bucket, beside those at saves
NOT_SCORES = ("step", "valid_loss", "valid_bits_per_byte")  # have fields of their own


class Summary(NamedTuple):
    """What a finished run leaves in summary.json."""

    step: int
    train_loss: float  # nats per token, mean since the log line before the last
    valid_loss: float  # nats per token, on the fixed held-out set
    valid_bits_per_byte: float | None  # None: synthetic tasks, which have no bytes
    parameters: int
    tokens: int  # targets trained on
    seconds: float  # of wall clock over all starts, with compilation, evaluation and saving
    tokens_per_s: float  # of training steps alone, over all starts
    peak_memory_bytes: int  # of the fullest device, or of the process on CPU
    writes: dict[str, int]  # chunks written, by level
    versions: dict[str, str]
    device: str
    git_commit: str | None
    valid_text_sha256: str  # of the rows that are scored, see data/identity.py
    train_order_sha256: str  # of the rows that are trained on, in their order
    scores: dict[str, float]  # of the last evaluation beside the loss: tasks and evaluators
    unique_tokens: int | None = None  # of the training text, each counted once; None: tasks
    epochs: float | None = None  # tokens / unique_tokens
    trigram_bits_per_byte: float | None = None  # of a byte trigram model of the same text


class MetricsFile:
    """metrics.jsonl, a JSON object a line; every line is flushed as it is written.

    A checkpoint records how long the file was; a restart cuts it there, so lines of steps that are
    taken again, and one that a kill left half written, are neither doubled nor kept.
    """

    def __init__(self, path: Path, size: int, report: Report) -> None:
        found = size_of(path)
        if found < size:
            report(f"{path} holds {found} bytes, the checkpoint knows {size}: lines are missing")
        self.name = str(path)
        self.bucket = path if scheme(path) else None
        self.uploaded = time.monotonic()
        if self.bucket is None:
            self._file: Any = open(path, "ab")  # noqa: SIM115  (open for the whole run)
        else:  # no object grows: the lines are kept here, and uploaded as a whole
            self._file = tempfile.NamedTemporaryFile("w+b")  # noqa: SIM115
            self._file.write(path.read_bytes() if found else b"")
        self._file.truncate(min(found, size))

    def write(self, line: Mapping[str, Any]) -> None:
        with self._named():
            self._file.seek(0, os.SEEK_END)
            self._file.write(json.dumps(finite(line)).encode() + b"\n")
            self._file.flush()
        if self.bucket is not None and time.monotonic() - self.uploaded > UPLOAD_SECONDS:
            self._upload()

    def _upload(self) -> None:
        assert self.bucket is not None
        self._file.seek(0)
        self.bucket.write_bytes(self._file.read())
        self.uploaded = time.monotonic()

    def sync(self) -> int:
        """Put all lines on disk; return the length of the file in bytes.

        Raises:
          OSError: they cannot be written, or the file is not there any more.
        """
        with self._named():
            self._file.flush()
            os.fsync(self._file.fileno())
        if self.bucket is not None:
            self._upload()
            return self._file.tell()
        found = os.fstat(self._file.fileno())
        if not os.path.exists(self.name) or not os.path.samestat(found, os.stat(self.name)):
            raise FileNotFoundError(errno.ENOENT, "was moved or removed by others", self.name)
        return found.st_size

    def close(self) -> None:
        with self._named():
            self._file.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say which file was full; Python does not."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from error


def add_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line to a small file of JSON lines, whole or not at all."""
    found = path.read_bytes() if path.exists() else b""
    write_bytes(path, found + json.dumps(line).encode() + b"\n")


def finite(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the line with null for what JSON cannot say: NaN and infinities."""
    bad = {k for k, v in line.items() if isinstance(v, float) and not math.isfinite(v)}
    return {name: None if name in bad else value for name, value in line.items()}


class Record:
    """What one start of a run measures and writes down, beside its checkpoints.

    The metrics of a step are fetched while the next one computes, so the device never waits for
    the host: the loop gives them with `keep`, and `settle` takes them in.
    """

    def __init__(
        self, plan: Plan, data: Identity, display: Display, evaluators: Sequence[Evaluator]
    ) -> None:
        self.plan, self.data, self.display, self.evaluators = plan, data, display, evaluators
        self.train, self.flops = plan.cfg.train, plan.flops
        self.clock = Clock()
        self.meter = Meter()
        self.seconds_before = 0.0  # of earlier starts
        self.run = uuid.uuid4().hex[:16]  # the run's identity: the same in all of its starts
        self.lines: MetricsFile | None = None  # of process 0 alone, like the trackers
        self.trackers: list[Tracker] = []
        self.held_out: HeldOut | TaskScores | None = None  # read at the first evaluation
        self.pending: tuple[int, dict[str, Any]] | None = None  # metrics not yet fetched
        self.stop_signal = 0  # the same in every process, after the same step
        self.save_due = False  # likewise: train.save_seconds have passed

    def open(self, step: int, meta: Mapping[str, Any] | None) -> None:
        """Open the files of a start at `step`, and go on counting from the checkpoint of `meta`."""
        if meta is not None:
            self.meter = Meter(**meta["meter"])
            self.seconds_before = self.meter.seconds
            self.run = meta.get("run", self.run)
        if jax.process_index() == 0:
            length = meta["metrics_bytes"] if meta is not None else 0
            self.lines = MetricsFile(self.plan.workdir / METRICS, length, self.display.say)
            self.trackers = open_trackers(self.plan.cfg, self.plan.workdir, step, self.about(step))

    def about(self, step: int) -> dict[str, Any]:
        """Return what this start is: the run, where it runs, and with which versions."""
        plan = self.plan
        return {
            "run": self.run,
            "step": step,
            "steps": self.train.steps,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "devices": machine.device_name(),
            "mesh": dict(plan.mesh.shape),
            "processes": jax.process_count(),
            "parameters": plan.parameters,
            "optimizer": group_counts(plan.cfg.optim, plan.info),
            "versions": machine.versions(),
            "git_commit": machine.git_commit(),
        }

    # --- while it trains ---

    def begin(self, step: int, needs: Mapping[str, int]) -> None:
        """Note the start, and begin to measure time and to show it.

        Args:
          needs: bytes per device by what they are of, as the compiler says.
        """
        if self.lines is not None:
            add_line(self.plan.workdir / STARTS, {**self.about(step), "needs": dict(needs)})
        for tracker in self.trackers:
            tracker.log({f"needs/{name}": size for name, size in needs.items()}, step)
        self.display.start(step, self.train.steps)
        self.clock.lap()

    def keep(self, step: int, metrics: dict[str, Any]) -> None:
        """Keep the metrics of a step that has been started, to be fetched by `settle`."""
        self.pending = step, metrics

    def settle(self) -> None:
        """Take in the metrics of the pending step: checks, counters, a line of the log."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        due, self.stop_signal = divmod(int(values.pop("signal")), SAVE)
        self.save_due = due > 0
        self.meter.lap(self.clock.lap())
        check_step(step, values)
        self.meter.add(values)
        self.display.advance(step)
        if step % self.train.log_every == 0 or step == self.train.steps:
            self.log(step)

    def log(self, step: int) -> None:
        """Write the line of the steps since the line before, and check their loss."""
        window = self.meter.flush()
        line: dict[str, Any] = {
            "step": step,
            "tokens": int(self.meter.totals["tokens"]),
            "loss": window["loss"],
            "ppl": perplexity(window.pop("loss")),
            "learning_rate": window.pop("learning_rate"),
            "grad_norm": window.pop("grad_norm"),
            "tokens_per_s": window.pop("tokens_per_s"),
            "step_s": (step_s := window.pop("step_s")),
        }
        if step_s > 0:
            line["flops_per_s"] = self.flops / step_s
            peak = machine.peak_flops(jax.devices()[0].device_kind)
            if peak is not None:
                line["mfu"] = line["flops_per_s"] / (peak * jax.device_count())
        self.write(line | window)
        self.display.update(line, self.train.steps)
        check_window(self.plan.cfg, step, self.meter)

    def write(self, line: dict[str, Any]) -> None:
        if self.lines is not None:
            self.lines.write(line)
        for tracker in self.trackers:
            tracker.log(line, line["step"])

    # --- evaluations ---

    def scored(self, step: int) -> bool:
        """Whether the newest evaluation is of this step."""
        return self.meter.valid.get("step") == step

    def open_held_out(self) -> HeldOut | TaskScores:
        """Return the held-out set, which is read once."""
        if self.held_out is None:
            kind = TaskScores if self.plan.cfg.data.is_synthetic else HeldOut
            self.held_out = kind(self.plan)
        return self.held_out

    def identity(self) -> dict[str, str]:
        """Return what compared runs have in common: the text scored, and the order trained in."""
        return {
            "valid_text_sha256": self.open_held_out().sha256,
            "train_order_sha256": self.data[TRAIN_ORDER],
        }

    def evaluate(self, step: int, state: TrainState) -> None:
        """Score the held-out set and run the evaluators; a line of the log."""
        with self.clock:
            scores = self.open_held_out().score(state)
            self.display.say(f"step {step}  {describe(scores)}")
            for evaluator in self.evaluators:
                scores |= evaluator(self.plan.model, state.params, self.plan.cfg, step)
            self.meter.valid = {"step": step, **scores}
            self.write({**self.meter.valid, **self.identity()})

    # --- what it leaves behind ---

    def meta(self, step: int) -> dict[str, Any]:
        """Return the item ``meta`` of a checkpoint; the log lines before it are on disk then."""
        self.meter.seconds = self.seconds_before + self.clock.total()
        return {
            **run_meta(self.plan.cfg, step, self.data),
            "meter": self.meter.state(),
            "metrics_bytes": self.lines.sync() if self.lines is not None else 0,
            "run": self.run,
            "versions": machine.versions(),
            "git_commit": machine.git_commit(),
        }

    def summarize(self, step: int) -> Summary:
        """Write summary.json."""
        unique = sum(splits["train"] for splits in self.plan.data.tokens.values()) or None
        meter, cfg = self.meter, self.plan.cfg.data
        trigram = trigram_baseline(cfg) if self.lines is not None and not cfg.is_synthetic else None
        summary = Summary(
            step=step,
            train_loss=math.nan if meter.train_loss is None else meter.train_loss,
            valid_loss=meter.valid["valid_loss"],
            valid_bits_per_byte=meter.valid.get("valid_bits_per_byte"),
            parameters=self.plan.parameters,
            tokens=int(meter.totals["tokens"]),
            seconds=self.seconds_before + self.clock.total(),
            tokens_per_s=meter.tokens_per_s,
            peak_memory_bytes=machine.peak_memory(),
            writes=meter.by_level("writes"),
            versions=machine.versions(),
            device=machine.device_name(),
            git_commit=machine.git_commit(),
            **self.identity(),
            scores={name: x for name, x in meter.valid.items() if name not in NOT_SCORES},
            unique_tokens=unique,
            epochs=meter.totals["tokens"] / unique if unique else None,
            trigram_bits_per_byte=trigram,
        )
        if self.lines is not None:
            self.lines.sync()
            write_json(self.plan.workdir / SUMMARY, finite(summary._asdict()))
            beside = ""
            if trigram is not None:
                beside = f" (a byte trigram model of the same text: {trigram:.4f})"
            self.display.say(
                f"done: step {step}, {describe(meter.valid)}{beside}, {summary.seconds:.0f} s"
            )
        return summary

    def close(self) -> None:
        """Close everything, also what comes after something that fails to close."""
        with ExitStack() as stack:
            if self.lines is not None:
                stack.callback(self.lines.close)
            for tracker in self.trackers:
                stack.callback(tracker.close)
            stack.callback(self.display.stop)
