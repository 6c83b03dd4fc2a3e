"""The one form of error for bad input."""

from __future__ import annotations

from typing import Any


def require(ok: bool, name: str, value: object, want: str) -> None:
    """Raise the one form of error for a bad field: its name, its value and what would be right."""
    if not ok:
        raise ValueError(f"{name}={value!r}: {want}")


def at_least(config: Any, block: str, bound: int, *names: str) -> None:
    """Raise for a field of `config` that is below `bound`."""
    for name in names:
        value = getattr(config, name)
        require(value >= bound, f"{block}.{name}", value, f"wants {bound} or more")
