"""The outer loop: check everything, restore or start, compile, step, evaluate, save.

What a restart needs to go on bit for bit is one checkpoint: state, position in the data, counters,
and the length of metrics.jsonl. The metrics of a step are fetched while the next one computes, so
the device never waits for the host.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from nested_jax import machine
from nested_jax.config import Config
from nested_jax.config.schema import to_dict
from nested_jax.data.identity import data_identity, train_order_sha256
from nested_jax.data.pipeline import make_train_iterator
from nested_jax.errors import require
from nested_jax.files import write_json
from nested_jax.losses import perplexity
from nested_jax.sharding import place_batch
from nested_jax.train import memory
from nested_jax.train.checkpoint import Checkpoints, Restored, run_meta
from nested_jax.train.heldout import HeldOut, describe, trigram_baseline
from nested_jax.train.layout import sharding_of
from nested_jax.train.plan import Plan, make_plan
from nested_jax.train.progress import Clock, Display
from nested_jax.train.record import Meter, MetricsFile, Summary, Tracker, open_trackers
from nested_jax.train.signals import Signals, Stopped
from nested_jax.train.state import TrainState, create_state
from nested_jax.train.stop_rules import check_step, check_window
from nested_jax.train.task_scores import TaskScores
from nested_jax.train.warm_start import first_params
from nested_jax.train.workdir import hold_workdir, set_aside_record
from nested_jax.types import PyTree

Evaluator = Callable[[Any, PyTree, Config, int], dict[str, float]]  # model, params, config, step
NOT_SCORES = ("step", "valid_loss", "valid_bits_per_byte")  # have fields of their own
PROFILE_AFTER = 10  # steps of a start before the profiler begins


def train(cfg: Config, workdir: str | Path, evaluators: Sequence[Evaluator] = ()) -> Summary:
    """Train to ``train.steps``, going on from the newest checkpoint of `workdir` if it has one.

    Args:
      cfg: the experiment.
      workdir: folder of config.json, metrics.jsonl, checkpoints/STEP and summary.json.
      evaluators: called at every evaluation, beside the held-out loss.
    Raises:
      ValueError: the run cannot work, see `make_plan`, or is not the one of the workdir's
        checkpoints; nothing was written.
      HeldError: another process uses the workdir.
      CheckpointError: a checkpoint could not be written or read; those before stay good.
      Diverged, NotWrittenError: the run makes no sense any more; its last checkpoint stays.
      Stopped: SIGTERM or SIGINT came; everything is saved.
    """
    display = Display(quiet=jax.process_index() > 0)
    plan = make_plan(cfg, Path(workdir), display.say)
    params = first_params(plan)
    with (
        jax.set_mesh(plan.mesh),
        hold_workdir(plan.workdir),
        Signals(plan.mesh) as signals,
    ):
        run = Run(plan, display, signals, evaluators, params)
        try:
            return run.finish()
        finally:
            run.close()


class Run:
    """The host side of one start of a run, around the pure train step."""

    def __init__(
        self,
        plan: Plan,
        display: Display,
        signals: Signals,
        evaluators: Sequence[Evaluator],
        params: PyTree | None = None,
    ) -> None:
        self.plan, self.train, self.display = plan, plan.cfg.train, display
        self.signals, self.evaluators = signals, evaluators
        self.clock = Clock()
        order: Any = {
            "batch_size": self.train.batch_size,
            "align": plan.cfg.align,
            "seed": plan.cfg.seed,
        }
        self.train_order = train_order_sha256(plan.cfg.data, **order)
        self.data = data_identity(plan.cfg.data, self.train_order)
        if jax.process_index() == 0:
            set_aside_record(plan.workdir, display.say)
        self.checkpoints = Checkpoints(plan.workdir, self.train, display.say)
        restored = self.checkpoints.restore(plan.abstract, plan.cfg, self.data)
        self.state = self.first_state(restored, params)
        self.step = self.first = self.lap_step = int(self.state.step)
        self.meter = Meter(**restored.meta["meter"]) if restored else Meter()
        self.batches = make_train_iterator(
            plan.cfg.data,
            **order,
            process_index=plan.rows.part,
            process_count=plan.rows.parts,
        )
        if restored:
            self.batches.set_state(restored.data)
        self.metrics: MetricsFile | None = None  # of process 0 alone, like the trackers
        self.trackers: list[Tracker] = []
        if jax.process_index() == 0:
            length = restored.meta["metrics_bytes"] if restored else 0
            self.metrics = open_workdir(plan, length, display)
            self.trackers = open_trackers(plan.cfg, plan.workdir, self.step)
        self.held_out: HeldOut | TaskScores | None = None  # read at the first evaluation
        self.pending: tuple[int, dict[str, Any]] | None = None  # metrics not yet fetched
        self.stop_signal = 0  # the same in every process, after the same step
        self.seconds_before = self.meter.seconds

    def first_state(self, restored: Restored | None, params: PyTree | None) -> TrainState:
        if restored is None:
            given = () if params is None else (params,)
            shardings = jax.tree.map(sharding_of, self.plan.abstract)
            return create_state(self.plan.init, shardings, *given)
        step, last = int(restored.state.step), self.train.steps
        require(step <= last, "train.steps", last, f"the workdir is already at step {step}")
        self.display.say(f"going on from checkpoint {step} of {self.plan.workdir}")
        return restored.state

    # --- the loop ---

    def finish(self) -> Summary:
        """Take the steps that are left, and return the summary."""
        if self.step < self.train.steps:
            step_fn = compile_step(self.plan, self.display.say)
            self.display.start(self.step, self.train.steps)
            self.clock.lap()
            while self.step < self.train.steps:
                self.take_step(step_fn)
                self.end_step()
        if self.meter.valid.get("step") != self.step:  # train.steps was lowered to a checkpoint
            self.evaluate()
        return self.summarize()

    def take_step(self, step_fn: Callable[..., Any]) -> None:
        """Start the next step, and take in the metrics of the one before while it computes."""
        self.profile()
        batch = place_batch(self.plan.mesh, next(self.batches))
        self.state, metrics = step_fn(self.state, batch)
        self.settle()
        self.step += 1
        self.pending = self.step, {**metrics, "signal": self.signals.vote()}

    def end_step(self) -> None:
        """Evaluate, save and stop where this step asks for it."""
        self.stop_signal = self.stop_signal or self.signals.own()
        evaluate, save = self.due(self.train.eval_every), self.due(self.train.save_every)
        if evaluate or save or self.stop_signal:
            self.settle()
            with self.clock:
                if evaluate:
                    self.evaluate()
                if save or self.stop_signal:
                    self.save()
        self.checkpoints.poll()
        if self.stop_signal and self.step < self.train.steps:
            self.checkpoints.wait()
            raise Stopped(self.stop_signal, self.step)

    def due(self, every: int) -> bool:
        return self.step == self.train.steps or (every > 0 and self.step % every == 0)

    def settle(self) -> None:
        """Take in the metrics of the pending step: checks, counters, a line of the log."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.stop_signal = int(values.pop("signal"))
        check_step(step, values)
        self.meter.add(values)
        self.display.advance(step)
        if step % self.train.log_every == 0 or step == self.train.steps:
            self.log(step)
            check_window(self.plan.cfg, step, self.meter)

    # --- what it leaves behind ---

    def log(self, step: int) -> None:
        seconds = self.clock.lap()
        step_s = seconds / (step - self.lap_step)
        self.lap_step = step
        self.meter.train_seconds += seconds
        window = self.meter.flush()
        line: dict[str, Any] = {
            "step": step,
            "tokens": int(self.meter.totals["tokens"]),
            "loss": window["loss"],
            "ppl": perplexity(window.pop("loss")),
            "learning_rate": window.pop("learning_rate"),
            "grad_norm": window.pop("grad_norm"),
            "tokens_per_s": window.pop("tokens_a_step") / step_s,
            "step_s": step_s,
            "flops_per_s": self.plan.flops / step_s,
        }
        peak = machine.peak_flops(jax.devices()[0].device_kind)
        if peak is not None:
            line["mfu"] = line["flops_per_s"] / (peak * jax.device_count())
        self.write(line | window)
        self.display.update(line, self.train.steps)

    def write(self, line: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.write(line)
        for tracker in self.trackers:
            tracker.log(line, line["step"])

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
            "train_order_sha256": self.train_order,
        }

    def evaluate(self) -> None:
        """Score the held-out set and run the evaluators; a line of the log."""
        scores = self.open_held_out().score(self.state)
        self.display.say(f"step {self.step}  {describe(scores)}")
        for evaluator in self.evaluators:
            scores |= evaluator(self.plan.model, self.state.params, self.plan.cfg, self.step)
        self.meter.valid = {"step": self.step, **scores}
        self.write({**self.meter.valid, **self.identity()})

    def save(self) -> None:
        """Write a checkpoint, after the log lines that belong before it are on disk."""
        self.meter.seconds = self.seconds_before + self.clock.total()
        plan = self.plan
        meta = {
            **run_meta(plan.cfg, self.step, self.data),
            "meter": self.meter.state(),
            "metrics_bytes": self.metrics.sync() if self.metrics is not None else 0,
            "versions": machine.versions(),
            "git_commit": machine.git_commit(),
        }
        self.checkpoints.save(self.state, self.batches.get_state(), meta)

    def summarize(self) -> Summary:
        """Wait for the last checkpoint and write summary.json."""
        self.checkpoints.wait()
        meter = self.meter
        tokens = int(meter.totals["tokens"])
        summary = Summary(
            step=self.step,
            train_loss=meter.train_loss or math.nan,
            valid_loss=meter.valid["valid_loss"],
            valid_bits_per_byte=meter.valid.get("valid_bits_per_byte"),
            parameters=self.plan.parameters,
            tokens=tokens,
            seconds=self.seconds_before + self.clock.total(),
            tokens_per_s=tokens / meter.train_seconds,
            peak_memory_bytes=machine.peak_memory(),
            writes=meter.by_level("writes"),
            versions=machine.versions(),
            device=machine.device_name(),
            git_commit=machine.git_commit(),
            **self.identity(),
            scores={name: x for name, x in meter.valid.items() if name not in NOT_SCORES},
        )
        if jax.process_index() == 0:
            write_json(self.plan.workdir / "summary.json", summary._asdict())
            beside = ""
            if not self.plan.cfg.data.is_synthetic:
                trigram = trigram_baseline(self.plan.cfg.data)
                beside = f" (a byte trigram model of the same text: {trigram:.4f})"
            self.display.say(
                f"done: step {self.step}, {describe(meter.valid)}{beside}, {summary.seconds:.0f} s"
            )
        return summary

    def profile(self) -> None:
        """Trace ``train.profile_steps`` steps of this start."""
        begin, steps = self.first + PROFILE_AFTER, self.train.profile_steps
        if steps and self.step == begin:
            jax.profiler.start_trace(str(self.plan.workdir / "profile"))
        if steps and self.step == begin + steps:
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()

    def close(self) -> None:
        """Close everything, also what comes after something that fails to close."""
        with ExitStack() as stack:
            stack.callback(self.checkpoints.close)
            if self.metrics is not None:
                stack.callback(self.metrics.close)
            for tracker in self.trackers:
                stack.callback(tracker.close)
            stack.callback(self.display.stop)


# --- parts ---------------------------------------------------------------------------------------


def compile_step(plan: Plan, say: Callable[[str], None]) -> Callable[..., Any]:
    """Compile the train step ahead of time: another shape is then an error, not a recompilation."""
    say("compiling the training step")
    clock = Clock()
    compiled = plan.lower_train().compile()
    took = f"compiled in {clock.total():.1f} s"
    needs, limit = compiled.memory_analysis(), machine.memory_limit()
    if needs is None:
        say(took)
        return compiled
    peak, held = memory.peak_bytes(needs), memory.state_bytes(needs)
    memory.check(plan.cfg, peak)
    of = f" of {machine.human_bytes(limit)}" if limit else ""
    say(
        f"{took}; a step needs {machine.human_bytes(peak)}{of} a device, "
        f"{machine.human_bytes(held)} of it state and batch"
    )
    return compiled


def open_workdir(plan: Plan, metrics_bytes: int, display: Display) -> MetricsFile:
    """Write the resolved configuration and the tokenizer; cut metrics.jsonl to the checkpoint."""
    write_json(plan.workdir / "config.json", to_dict(plan.cfg))
    tokenizer = plan.data.tokenizer_path
    if tokenizer is not None:
        # A checkpoint can then be used where the data, or their cache, are not.
        shutil.copyfile(tokenizer, plan.workdir / tokenizer.name)
    return MetricsFile(plan.workdir / "metrics.jsonl", metrics_bytes, display.say)
