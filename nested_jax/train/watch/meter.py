"""What the host counts of a run: totals, means between two log lines, and time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# Of these the value of the last step is logged; counts add up, the rest are means over tokens.
LAST = ("learning_rate", "bad_updates", "bad_updates_in_a_row")


def is_count(name: str) -> bool:
    """Whether a metric adds up over microbatches and steps (the others are means over tokens)."""
    return name == "tokens" or name.endswith(("/writes", "/blocked"))


def rate(tokens: float, seconds: float) -> float:
    """Return tokens per second of training steps; NaN of no time, which JSON has as null."""
    return tokens / seconds if seconds > 0 else math.nan


@dataclass
class Meter:
    """What the host counts, over the run and since the last logged step. Travels in checkpoints."""

    totals: dict[str, float] = field(default_factory=dict)  # counts over the run
    window: dict[str, float] = field(default_factory=dict)  # counts, and means times tokens
    window_steps: int = 0
    window_seconds: float = 0.0  # in training steps
    train_loss: float | None = None  # of the last window
    valid: dict[str, float] = field(default_factory=dict)  # newest evaluation, with its step
    seconds: float = 0.0  # of wall clock, over all starts
    train_seconds: float = 0.0  # of them in training steps, as `tokens_per_s` counts them

    def add(self, metrics: Mapping[str, float]) -> None:
        """Take in the metrics of one step."""
        self.window_steps += 1
        for name, value in metrics.items():
            if is_count(name):
                self.totals[name] = self.totals.get(name, 0.0) + value
                self.window[name] = self.window.get(name, 0.0) + value
            elif name in LAST:
                self.window[name] = value
            else:
                weighted = value * metrics["tokens"]
                self.window[name] = self.window.get(name, 0.0) + weighted

    def lap(self, seconds: float) -> None:
        """Take in the time that the steps since the last call have taken."""
        self.window_seconds += seconds
        self.train_seconds += seconds

    def flush(self) -> dict[str, float]:
        """Return the metrics since the last call, means taken, and start over."""
        count = max(self.window["tokens"], 1.0)
        line = {
            name: value if is_count(name) or name in LAST else value / count
            for name, value in self.window.items()
        }
        line["tokens_per_s"] = rate(line.pop("tokens"), self.window_seconds)
        line["step_s"] = self.window_seconds / self.window_steps
        self.window, self.window_steps, self.window_seconds = {}, 0, 0.0
        self.train_loss = line["loss"]
        return line

    @property
    def tokens_per_s(self) -> float:
        """Of all training steps, over all starts: a mean of the log lines', each for its time."""
        return rate(self.totals.get("tokens", 0.0), self.train_seconds)

    def by_level(self, what: str) -> dict[str, int]:
        """Return the run's total of ``teach/LEVEL/what`` for each level."""
        parts = {name.split("/")[1]: v for name, v in self.totals.items() if name.endswith(what)}
        return {level: int(value) for level, value in sorted(parts.items())}

    def state(self) -> dict[str, Any]:
        return asdict(self)
