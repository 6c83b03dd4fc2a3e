"""The outer loop: check everything, restore or start, compile, step, evaluate, save.

What a restart needs to go on bit for bit is one checkpoint: state, position in the data, counters,
and the length of metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from nested_jax import machine
from nested_jax.config import Config
from nested_jax.layers.attention import attention_text
from nested_jax.sharding import place_batch
from nested_jax.storage import as_path
from nested_jax.train import memory
from nested_jax.train.plan import Plan, make_plan
from nested_jax.train.resolve import resolve
from nested_jax.train.signals import Signals, Stopped
from nested_jax.train.start import Start, open_start
from nested_jax.train.warm_start import first_params
from nested_jax.train.watch.heartbeat import Heartbeat
from nested_jax.train.watch.profile import Profile
from nested_jax.train.watch.progress import Clock, Display
from nested_jax.train.watch.record import Evaluator, Summary
from nested_jax.train.workdir import CHECKPOINTS, hold_workdir, saved_steps


def train(
    cfg: Config,
    workdir: str | Path,
    evaluators: Sequence[Evaluator] = (),
    resume_step: int | None = None,
) -> Summary:
    """Train to ``train.steps``, going on from the newest checkpoint of `workdir` if it has one.

    Args:
      cfg: the experiment.
      workdir: folder of config.json, metrics.jsonl, checkpoints/STEP and summary.json; or
        ``gs://bucket/path``.
      evaluators: called at every evaluation, beside the held-out loss.
      resume_step: of the checkpoint to go on from; None is the newest that can be read.
    Raises:
      ValueError: the run cannot work, see `make_plan`, its step does not fit the memory, or it is
        not the one of the workdir's checkpoints; nothing was written.
      HeldError: another process uses the workdir.
      CheckpointError: a checkpoint could not be written or read; those before stay good.
      Diverged, NotWrittenError: the run makes no sense any more; its last checkpoint stays.
      Stopped: SIGTERM or SIGINT came; everything is saved.
    """
    display = Display(quiet=jax.process_index() > 0)
    workdir = as_path(workdir)
    cfg = resolve(cfg, workdir, display.say)
    plan = make_plan(cfg, workdir, display.say)
    params = first_params(plan)
    with jax.set_mesh(plan.mesh):
        clock, compiled = Clock(), None
        if not saved_steps(plan.workdir / CHECKPOINTS):  # else what is there is compared first
            compiled = compile_step(plan, display.say)
        with (
            hold_workdir(plan.workdir),
            Signals(plan.mesh, cfg.train.save_seconds) as signals,
            open_start(plan, display, evaluators, params, resume_step) as start,
            Heartbeat(plan.workdir, cfg.train.stall_factor) as heartbeat,
        ):
            start.record.clock = clock  # it has counted the compilation
            return run(plan, start, signals, heartbeat, compiled)


def run(
    plan: Plan, start: Start, signals: Signals, heartbeat: Heartbeat, compiled: Any = None
) -> Summary:
    """Take the steps that are left, and return the summary.

    Args:
      compiled: what `compile_step` gave; None compiles the step, if there are steps to take.
    """
    state, step, batches, checkpoints, record = start
    steps, say = plan.cfg.train.steps, record.display.say
    due = lambda every: step == steps or (every > 0 and step % every == 0)  # noqa: E731
    if step < steps:
        step_fn, needs = compiled or compile_step(plan, say)
        record.begin(step, needs)
    with Profile(plan.cfg, plan.workdir, step, say) as profile:
        while step < steps:
            profile.at(step, state)
            heartbeat.at(step, "data")
            batch = place_batch(plan.mesh, next(batches))
            heartbeat.at(step, "step")
            state, metrics = step_fn(state, batch)
            record.settle()  # the step before, while this one computes
            step += 1
            record.keep(step, {**metrics, "signal": signals.vote()})
            stop = record.stop_signal or signals.own()
            evaluate = due(plan.cfg.train.eval_every)
            save = due(plan.cfg.train.save_every) or record.save_due
            if evaluate or save or stop:
                record.settle()
                stop = record.stop_signal or stop
                if evaluate:
                    heartbeat.at(step, "evaluate")
                    record.evaluate(step, state)
                if save or stop:
                    heartbeat.at(step, "save")
                    with record.clock:
                        checkpoints.save(state, batches.get_state(), record.meta(step))
                    signals.saved()
                    record.save_due = False
            checkpoints.poll()
            if stop and step < steps:
                checkpoints.wait()
                raise Stopped(stop, step)
        profile.at(step, state)
    if record.meter.window_steps:  # it was stopped here, between two lines
        record.log(step)
    if not record.scored(step):  # train.steps was lowered to a checkpoint
        record.evaluate(step, state)
    checkpoints.trim()
    return record.summarize(step)


def compile_step(
    plan: Plan, say: Callable[[str], None]
) -> tuple[Callable[..., Any], dict[str, int]]:
    """Compile the train step ahead of time: another shape is then an error, not a recompilation.

    Returns:
      The step, and the bytes per device that it needs, by what they are of.
    """
    say(f"compiling the training step; {attention_text(plan.model.cfg)}")
    clock = Clock()
    compiled = plan.lower_train().compile()
    took = f"compiled in {clock.total():.1f} s"
    needs, limit = compiled.memory_analysis(), machine.memory_limit()
    if needs is None:
        say(took)
        return compiled, {}
    peak, held = memory.peak_bytes(needs), memory.state_bytes(needs)
    memory.check(plan.cfg, peak)
    of = f" of {machine.human_bytes(limit)}" if limit else ""
    say(
        f"{took}; a step needs {machine.human_bytes(peak)}{of} per device, "
        f"{machine.human_bytes(held)} of it state and batch"
    )
    return compiled, {"step_bytes": peak, "state_bytes": held}
