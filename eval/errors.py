"""What can go wrong with an evaluation that is not a defect."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class NotWrittenError(Exception):
    """Memory was to be written, and nothing was."""


def raised_here(error: BaseException) -> bool:
    """Return whether this repository's code, and not a library below it, raised the error."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return False
    file = Path(frame.tb_frame.f_code.co_filename).resolve()
    return any(folder in file.parents for folder in (ROOT / "eval", ROOT / "nested_jax"))
