"""SIGTERM and SIGINT: noticed by one process, obeyed by all of them after the same step."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nested_jax.sharding import AXES, replicated
from nested_jax.types import Array

SAVE = 128  # above all signals
CAUGHT = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A signal ended the run, after saving."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}; saved")
        self.number = number


class Signals:
    """Catches `CAUGHT` inside ``with``; a second signal acts as it does by default.

    Processes get a signal at different moments, or only one of them gets it. So every process gives
    its vote in every step, and all read the same result together with the metrics of that step.
    """

    def __init__(self, mesh: Mesh, save_seconds: float = 0.0) -> None:
        self.number = 0  # of the signal that came, 0 for none
        self.save_seconds, self._saved = save_seconds, time.monotonic()
        self._before: dict[int, Any] = {}
        self._place = NamedSharding(mesh, PartitionSpec(AXES))
        self._devices = mesh.size
        self._largest = jax.jit(jnp.max, out_shardings=replicated(mesh))

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python allows it only there
            self._before = {number: signal.signal(number, self._catch) for number in CAUGHT}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, _: FrameType | None) -> None:
        self.number = number
        for caught in self._before:
            signal.signal(caught, signal.SIG_DFL)

    def saved(self) -> None:
        """Begin to wait `save_seconds` anew."""
        self._saved = time.monotonic()

    def _save_is_due(self) -> bool:
        waited = time.monotonic() - self._saved
        return jax.process_index() == 0 and 0 < self.save_seconds <= waited

    def own(self) -> int:
        """Return the signal at once where there is nobody to agree with, else 0."""
        return self.number if jax.process_count() == 1 else 0

    def vote(self) -> Array | np.ndarray:
        """Return an array with the signal that any process has seen; reading it waits for all.

        `SAVE` is added where process 0 wants a checkpoint: its clock alone decides.
        """
        own = np.full((1,), self.number + SAVE * self._save_is_due(), np.int32)
        if jax.process_count() == 1:
            return own[0]
        votes = jax.make_array_from_callback((self._devices,), self._place, lambda _: own)
        return self._largest(votes)
