"""Train: ``python launch.py --config configs/pilot.py:smoke [--workdir runs/NAME]``.

    --config FILE.py[:ARG]       the experiment
    --config.FIELD=VALUE         override a field, as in --config.optim.learning_rate=3e-4
    --workdir DIR                a folder, or gs://BUCKET/PATH; default runs/FILE or runs/FILE-ARG;
                                 one with checkpoints is resumed
    --resume-step N              go on from checkpoint N instead of the newest one
    --coordinator HOST:PORT --num-processes N --process-id I     one process of several; Slurm and
                                 JAX_COORDINATOR_ADDRESS, _NUM_PROCESSES, _PROCESS_ID are found

Exit status: 0 done, 1 a level that was to be written was not, 2 bad input, a workdir that another
process uses, or a checkpoint that cannot be written, 3 diverged, 143 or 130 stopped by SIGTERM or
SIGINT after saving.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

import jax

from eval.tasks.evaluators import make_evaluators, sentences
from nested_jax.config import load_config, parse_overrides
from nested_jax.errors import NotWrittenError, raised_here, require
from nested_jax.machine import quiet_libraries
from nested_jax.sharding import Processes, start_processes
from nested_jax.storage import as_path
from nested_jax.train.signals import Stopped
from nested_jax.train.stop_rules import Diverged
from nested_jax.train.trainer import train


def main(arguments: list[str]) -> int:
    """Run one training job; return its exit status."""
    quiet_libraries()
    try:
        flags, overrides = parse(arguments)
        cfg = load_config(flags.config, parse_overrides(overrides))
        workdir = as_path(flags.workdir or default_workdir(flags.config))
        start_processes(processes(flags))
        evaluators = make_evaluators(cfg)
        summary = train(cfg, workdir, evaluators, flags.resume_step)
        if jax.process_index() == 0:
            for line in sentences(summary.scores):
                print(line)
    except OSError as error:
        return failed("error", error, 2)
    except ValueError as error:
        if not raised_here(error):
            raise  # a defect, or a library's limit: the traceback is what helps
        return failed("error", error, 2)
    except NotWrittenError as error:
        return failed("error", error, 1)
    except Diverged as error:
        return failed("diverged", error, 3)
    except Stopped as stop:
        return failed("stopped", stop, 128 + stop.number)
    except KeyboardInterrupt:
        return failed("stopped", "by SIGINT before the first step; there is nothing to save", 130)
    return 0


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the flags, and the ``--config.FIELD=VALUE`` arguments in their order."""
    parser = argparse.ArgumentParser(
        prog="launch.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="FILE.py or FILE.py:ARG")
    parser.add_argument("--workdir", help="default: runs/, named after the config")
    parser.add_argument("--resume-step", type=int, help="default: the newest checkpoint")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    return parser.parse_known_args(arguments)


def processes(flags: argparse.Namespace) -> Processes | None:
    given = (flags.coordinator, flags.num_processes, flags.process_id)
    if all(value is None for value in given):
        return None
    require(
        None not in given, "--coordinator --num-processes --process-id", given, "want all three"
    )
    return Processes(*given)


def default_workdir(spec: str) -> Path:
    """Return runs/NAME for NAME.py, runs/NAME-ARG for NAME.py:ARG."""
    file, _, argument = spec.partition(":")
    name = "-".join(part for part in (Path(file).stem, argument) if part)
    return Path("runs") / re.sub(r"[^\w.=-]+", "_", name)


def failed(what: str, error: object, status: int) -> int:
    print(f"launch.py: {what}: {error}", file=sys.stderr)
    return status


def leave(status: int) -> None:
    """End this process.

    After an error at once: a save that has failed leaves threads of Orbax that would be waited for,
    for minutes, and in a run of several processes the others wait for this one.
    """
    if status == 2:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
