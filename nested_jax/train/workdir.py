"""What a workdir is: the folder of one run, which one start at a time may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax

from nested_jax.errors import HeldError
from nested_jax.files import LOCK, describe, hold_folder, owner_of
from nested_jax.sharding import agree


def check_free(workdir: Path) -> None:
    """Raise `HeldError` at once if another run uses the workdir; nothing is written."""
    if jax.process_count() > 1:
        return  # process 0 of this run may hold it by now
    owner = owner_of(workdir)
    if owner is not None:
        raise HeldError(f"{workdir} is in use by {describe(owner, workdir / LOCK)}")


@contextmanager
def hold_workdir(workdir: Path) -> Iterator[None]:
    """Make the workdir and hold its lock: process 0 for all processes of a run.

    Raises:
      HeldError: another run uses it; raised in every process.
      ValueError: it cannot be made.
    """
    with ExitStack() as stack:
        refused: Exception | None = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(hold_folder(workdir))
            except HeldError as error:
                refused = error
            except OSError as error:
                refused = ValueError(f"workdir={str(workdir)!r}: cannot be made: {error.strerror}")
        if not agree(refused is None):
            raise refused or HeldError(f"{workdir}: process 0 of this run could not take it")
        yield
