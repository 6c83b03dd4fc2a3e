"""Evaluate checkpoints: ``python -m eval TASK --checkpoint runs/NAME [--out FILE]``.

Every TASK explains its flags with --help. Exit status: 0 done, 1 memory was to be written and was
not, 2 bad input.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from eval.core.errors import NotWrittenError, raised_here
from nested_jax.machine import quiet_libraries


class Command(NamedTuple):
    """A task: the module whose ``main(argv) -> int`` runs it, imported when it is asked for."""

    module: str
    what: str


COMMANDS = {
    "zeroshot": Command(
        "eval.tasks.zeroshot", "multiple choice and LAMBADA: acc, acc_norm, chance"
    ),
    "perplexity": Command(
        "eval.tasks.perplexity", "held-out perplexity and bits per byte by segment"
    ),
    "books": Command("eval.tasks.books", "whole books: loss by position"),
    "niah": Command("eval.tasks.niah", "needles in a haystack: S-NIAH, multi-key, -value, -query"),
    "passkey": Command("eval.tasks.passkey", "a passkey at a known depth of a long text"),
    "babi": Command("eval.tasks.babi", "bAbI stories inside a long text (BABILong style)"),
    "recall": Command(
        "eval.tasks.recall", "synthetic recall at 1, 2, 4 and 8 times the training length"
    ),
    "continual": Command("eval.tasks.continual", "loss matrix over segments, forgetting, transfer"),
    "classification": Command("eval.tasks.classification", "class-incremental intents"),
    "compare": Command(
        "eval.results.compare", "checkpoints on the same items, paired significance"
    ),
    "suite": Command("eval.results.suite", "many tasks in one go, resumable"),
    "harness": Command("eval.harness.adapter", "the same checkpoint in lm-evaluation-harness"),
    "release": Command(
        "eval.results.release", "config, checkpoint, metrics, report, hashes: one folder"
    ),
    "fetch": Command("eval.tasks.fetch", "zero-shot files from the Hugging Face Hub"),
    "summary": Command("eval.results.summary", "Markdown of result files"),
    "proof": Command("eval.proof.command", "synthetic proofs that memories remember"),
    "curves": Command("eval.results.curves", "learning curves from metrics.jsonl"),
}


def main(arguments: Sequence[str]) -> int:
    """Run one task; return its exit status."""
    usage = "usage: python -m eval TASK [flags]\n\n" + "\n".join(
        f"  {name:15} {command.what}" for name, command in COMMANDS.items()
    )
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\n{usage}")
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"error: task {name!r}: wants one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    quiet_libraries()
    return run(COMMANDS[name].module, rest)


def run(module: str, arguments: list[str]) -> int:
    """Call ``main(argv)`` of a task's module; say what was wrong with the input, without a trace.

    An error that was not raised by this code is a defect, and keeps its traceback.
    """
    try:
        return importlib.import_module(module).main(arguments)
    except NotWrittenError as error:
        return failed(error, 1)
    except OSError as error:
        return failed(error, 2)
    except ValueError as error:
        if not raised_here(error):
            raise
        return failed(error, 2)


def failed(error: Exception, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
