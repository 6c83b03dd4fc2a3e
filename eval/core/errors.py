"""What can go wrong with an evaluation that is not a defect."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


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


def import_extra(name: str, extra: str) -> ModuleType:
    """Import a module that one of the optional dependencies brings.

    Raises:
      ValueError: it is not installed; how to get it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"module {name!r}: {error}; pip install 'nested-jax[{extra}]'") from error
