"""What a run shows of itself: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Display:
    """The output of one process. Silent where `quiet`: only process 0 of a run speaks.

    On a terminal `update` moves a bar; in a pipe or a file it writes one line.
    """

    def __init__(self, stream: IO[str] | None = None, quiet: bool = False) -> None:
        self.stream = stream or sys.stdout
        self.quiet = quiet
        self._bar: Progress | None = None
        self._task: Any = None

    def say(self, text: str) -> None:
        """Write a line, above the bar if there is one."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self.stream.write(text + "\n")
            self.stream.flush()

    def start(self, step: int, steps: int) -> None:
        """Show a bar if this is a terminal."""
        if self.quiet or not self.stream.isatty():
            return
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=Console(file=self.stream),
            expand=True,
        )
        self._task = self._bar.add_task("", total=steps, completed=step, note="")
        self._bar.start()

    def advance(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def update(self, line: Mapping[str, Any], steps: int) -> None:
        """Show a logged step: loss, speed and the time left at this speed."""
        left = timedelta(seconds=round((steps - line["step"]) * line["step_s"]))
        note = (
            f"loss {line['loss']:.4f}  {line['tokens_per_s']:,.0f} tokens/s  "
            f"{line['step_s'] * 1e3:,.0f} ms/step  ETA {left}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=line["step"], note=note)
        else:
            self.say(f"step {line['step']}/{steps}  {note}")

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Clock:
    """Wall clock of one start. ``with clock:`` keeps what happens inside out of the lap."""

    def __init__(self) -> None:
        self._begun = self._lap = time.perf_counter()
        self._entered = 0.0

    def total(self) -> float:
        """Return the seconds since the clock was made."""
        return time.perf_counter() - self._begun

    def lap(self) -> float:
        """Return the seconds since the last call, without those spent inside ``with``."""
        now = time.perf_counter()
        seconds, self._lap = now - self._lap, now
        return seconds

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._lap += time.perf_counter() - self._entered
