"""What recipes share: commands as steps that are done once, and errors in one line."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from nested_jax.errors import ROOT, raised_here, require


def guarded(run: Callable[[], int]) -> int:
    """Return the exit status of a recipe; what is wrong with its input is said in one line."""
    try:
        return run()
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) and not raised_here(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        return 130


def step(command: list[str], what: str) -> None:
    """Run a command of ours, the arguments of python.

    Raises:
      ValueError: it failed; the end of what it said.
    """
    print(f"{what}: python {shlex.join(command)}", file=sys.stderr, flush=True)
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    failed = f"exit status {ended.returncode}: {ended.stderr.strip()[-600:]}"
    require(ended.returncode == 0, what, shlex.join(command), failed)


def finish(words: list[str], made: Path) -> None:
    """Run a command of eval unless what it makes is there."""
    if not made.exists():
        step(["-m", "eval", *words], words[0])
