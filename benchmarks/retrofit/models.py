"""The models that are compared: a Transformer, and what may be done with it next."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.core.same_text import TRAIN_ORDER, VALID_TEXT, Named, require_same
from nested_jax.train.workdir import SUMMARY

ROOT = Path(__file__).resolve().parent.parent.parent
BASE = "configs/transformer.py:smoke,window=128,batch=2,seq=512"
OTHER_ROWS = 1000  # added to the seed: nothing is trained on twice in the base's order
# What is trained on with, and at which rate: few numbers move faster than all.
FURTHER = {"longer": ("base", "all", 1e-3), "rates": ("reader", "only_vectors", 1e-2)}
FURTHER["everything"] = ("reader", "all", 1e-3)
SAME = (VALID_TEXT, TRAIN_ORDER)


@dataclass(eq=False)
class Models:
    """One trained Transformer and its descendants; each is made once, in a workdir of its own.

    ``base`` is trained for `steps`. ``reader`` is the base, retrofitted. For `further` steps on the
    same rows are trained: ``longer``, the base; ``rates``, the reader's rates, norms and gates, and
    ``everything``, all of the reader, both through the writes. ``longer_reader`` is the Transformer
    that was trained longer, retrofitted.
    """

    folder: Path
    steps: int
    seed: int
    further: int

    @property
    def name(self) -> str:
        return f"{self.steps} steps"

    def path(self, name: str) -> Path:
        return self.folder / f"{self.steps}-{self.seed}-{name}"

    @cached_property
    def base(self) -> Path:
        return self._train("base", f"{BASE},steps={self.steps},seed={self.seed}")

    @cached_property
    def reader(self) -> Path:
        return self._retrofit("reader", self.base)

    @cached_property
    def longer_reader(self) -> Path:
        return self._retrofit("longer_reader", self.longer)

    @cached_property
    def longer(self) -> Path:
        return self._go_on("longer")

    @cached_property
    def rates(self) -> Path:
        return self._go_on("rates")

    @cached_property
    def everything(self) -> Path:
        return self._go_on("everything")

    def training(self) -> dict[str, Any]:
        """Return how the three that were trained on ended.

        Raises:
          ValueError: they were not trained on the same rows, or not scored on the same text.
        """
        ended = {name: summary(getattr(self, name)) for name in FURTHER}
        check_same(ended)
        return {name: {k: one[k] for k in ("valid_loss", *SAME)} for name, one in ended.items()}

    def _go_on(self, name: str) -> Path:
        source, policy, rate = FURTHER[name]
        begin: Path = getattr(self, source)
        return self._train(
            name,
            str(begin / "config.json"),
            f"--config.train.init_from={begin}",
            f"--config.seed={self.seed + OTHER_ROWS}",
            f"--config.train.steps={self.further}",
            f"--config.optim.param_policy={policy}",
            f"--config.optim.learning_rate={rate}",
        )

    def _train(self, name: str, config: str, *overrides: str) -> Path:
        path = self.path(name)
        if not (path / SUMMARY).exists():
            call("launch.py", "--config", config, "--workdir", str(path), *overrides)
        return path

    def _retrofit(self, name: str, source: Path) -> Path:
        path = self.path(name)
        if not path.exists():
            flags = ("--checkpoint", str(source), "--workdir", str(path))
            call("-m", "nested_jax.hub", "retrofit", *flags)
        return path


def summary(workdir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workdir / SUMMARY).read_text())
    return found


def check_same(ended: dict[str, dict[str, Any]]) -> None:
    """Raise `ValueError` where runs that are compared differ in what they read."""
    for name in SAME:
        require_same("trained on", [Named(run, one) for run, one in ended.items()], name)


def call(*arguments: str) -> None:
    """Run a command of this project; its output goes to where ours goes.

    Raises:
      SystemExit: it failed.
    """
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit status {done.returncode}")
