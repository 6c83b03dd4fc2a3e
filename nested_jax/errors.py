"""The one form of error for bad input, and the errors that more than one command knows."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent  # of this repository, or of what is installed
OURS = tuple(ROOT / name for name in ("nested_jax", "eval", "recipes", "configs", "launch.py"))


class NotWrittenError(Exception):
    """A memory that was to be written was not."""


class HeldError(OSError):
    """A folder or file that another process is using."""


def require(ok: bool, name: str, value: object, want: str) -> None:
    """Raise the one form of error for a bad field: its name, its value and what would be right."""
    if not ok:
        raise ValueError(f"{name}={value!r}: {want}")


def raised_here(error: BaseException) -> bool:
    """Return whether this repository's code, and not a library below it, raised the error.

    A `ValueError` of ours is a message for the user. One that a library raised is a defect, or the
    library's limit: its traceback is what helps.
    """
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return False
    file = Path(frame.tb_frame.f_code.co_filename).resolve()
    return any(place == file or place in file.parents for place in OURS)


def import_extra(module: str, extra: str, why: str = "") -> Any:
    """Import a module that one of the optional dependencies brings.

    Args:
      why: what it is needed for, as in "to read FILE".
    Raises:
      ValueError: it is not installed; how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{module} is not installed and is needed{why and f' {why}'} ({error}); "
            f"run `pip install 'nested-jax[{extra}]'`"
        ) from error
