"""What a suite is made of: models, cases and budgets."""

from __future__ import annotations

from typing import NamedTuple

from eval.proof.published import Published


class Model(NamedTuple):
    """A model of a suite."""

    argument: str  # fields of the config file's argument
    overrides: tuple[str, ...] = ()  # FIELD=VALUE of the resolved configuration
    note: str = ""  # what is not in the name


class Case(NamedTuple):
    """What is trained on and scored: one column of the table.

    Steps, rows and rates that are given here are those of every model of the case.
    """

    name: str
    config: str  # config file
    argument: str  # its argument, up to the fields of the model
    overrides: tuple[str, ...] = ()  # they win over those of the model
    after: str = ""  # case whose cell of the same model, rate and seed this one goes on from
    steps: int = 0  # 0 takes the budget's, like 0 rows and () rates
    batch: int = 0
    rates: tuple[float, ...] = ()


class Budget(NamedTuple):
    """The same for every model of a suite."""

    cases: tuple[Case, ...]
    models: tuple[str, ...]
    steps: int
    batch: int  # rows per step
    rates: tuple[float, ...]  # peak learning rates, of which the best on the first test counts
    seeds: tuple[int, ...]
    tasks: tuple[tuple[str, tuple[str, ...]], ...] = ()  # of eval/tasks, run after each cell

    def of(self, case: Case) -> Budget:
        """Return the budget of one case."""
        return self._replace(
            cases=(case,),
            steps=case.steps or self.steps,
            batch=case.batch or self.batch,
            rates=case.rates or self.rates,
        )

    @property
    def runs(self) -> int:
        rates = sum(len(self.of(case).rates) for case in self.cases)
        return rates * len(self.models) * len(self.seeds)


class Suite(NamedTuple):
    title: str
    models: dict[str, Model]
    budgets: dict[str, Budget]  # quick | default | medium | full
    published: Published | None
    measure: str  # accuracy | position | repeat
    reference: str = "hope"  # its parameters are what the others are brought to
