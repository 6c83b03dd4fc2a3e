"""Every file can be imported on this Python, with these libraries, without a warning."""

from __future__ import annotations

import importlib

from quick_compile import ROOT
from repo.source import modules


def test_every_file_is_imported() -> None:
    names = [name for name in modules(ROOT) if not name.endswith("__main__")]
    assert len(names) > 100
    for name in names:
        importlib.import_module(name)
