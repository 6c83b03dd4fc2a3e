"""The flags of test-time memorization."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from eval.core.flags import flag
from nested_jax.errors import require

ANSWER = "write the answer too: leakage, and marked as such"
CARRY = "carry the memories from item to item, in the order of the items"
THRESHOLD = "chunks of less surprise are not written (default: as trained)"
MEMORY_FLAGS = (
    flag("--memorize", False, "also score after writing memories"),
    flag("--memorize-steps", 1, "times a text is written", least=1),
    flag("--memorize-use-correct-answer", False, ANSWER),
    flag("--memorize-no-reset", False, CARRY),
    flag("--memorize-paths", "all", "all, or some of titan,cms_fast,..."),
    flag("--memorize-layers", "all", "all, last, or indices as in 0,-1"),
    flag("--memorize-surprise-threshold", None, THRESHOLD, type=float),
)


@dataclass(frozen=True)
class MemorizeOptions:
    """What the flags ask for."""

    on: bool = False
    steps: int = 1
    use_correct_answer: bool = False
    reset: bool = True
    paths: str = "all"
    layers: str = "all"
    surprise_threshold: float | None = None


def memorize_options(flags: argparse.Namespace) -> MemorizeOptions:
    """Return what the flags ask for.

    Raises:
      ValueError: a number out of its range, or memorize flags without --memorize.
    """
    for each in MEMORY_FLAGS:
        each.check(flags)
    options = MemorizeOptions(
        flags.memorize,
        flags.memorize_steps,
        flags.memorize_use_correct_answer,
        not flags.memorize_no_reset,
        flags.memorize_paths,
        flags.memorize_layers,
        flags.memorize_surprise_threshold,
    )
    plain = options.on or options == MemorizeOptions()
    require(plain, "--memorize", False, "other --memorize flags are given; give it too")
    return options
