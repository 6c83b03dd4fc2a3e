"""Stories with a question, after the first five bAbI tasks (Weston et al. 2015, arXiv 1502.05698).

Those are the tasks of BABILong (arXiv 2406.10149): one, two and three supporting facts, relations
of two and of three arguments. A story is simulated from a seed, so there is no end of them; the
original stories, of all twenty tasks, are read from a file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from eval.core.datasets import DataRoot
from nested_jax.errors import require

FILE = "long_context/babi/en_test.jsonl.gz"
COLUMNS = {
    "task": int,
    "context": list[str],
    "line_no": list[int],
    "question": str,
    "answer": str,
    "supporting": list[int],
}
PEOPLE = ("Mary", "John", "Daniel", "Sandra")
GIVERS = ("Mary", "Fred", "Bill", "Jeff")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
OBJECTS = ("apple", "football", "milk")
MOVES = ("moved to", "went to", "journeyed to", "travelled to", "went back to")
TAKES = ("took", "grabbed", "picked up", "got")
DROPS = ("dropped", "put down", "discarded", "left")
GIVES = ("gave", "handed", "passed")
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


class Story(NamedTuple):
    facts: list[str]
    question: str
    answer: str
    choices: tuple[str, ...]  # what could be answered, the answer among it
    supporting: list[int]  # the facts that the answer follows from


class World:
    """People who walk about, take things and drop them; writes down what happens as it happens."""

    def __init__(self, rng: np.random.Generator, people: Sequence[str]) -> None:
        self.rng, self.people = rng, people
        self.facts: list[str] = []
        self.moved: dict[str, tuple[str, int]] = {}  # person: place, fact
        self.holder: dict[str, tuple[str, int]] = {}  # object: person, fact
        self.places: dict[str, list[tuple[str, list[int]]]] = defaultdict(list)  # of each object

    def draw(self, options: Sequence[str]) -> str:
        return str(self.rng.choice(list(options)))

    def say(self, text: str) -> int:
        self.facts.append(text)
        return len(self.facts) - 1

    def move(self) -> None:
        person = self.draw(self.people)
        here = self.moved.get(person, ("", 0))[0]
        place = self.draw([p for p in PLACES if p != here])
        fact = self.say(f"{person} {self.draw(MOVES)} the {place}.")
        self.moved[person] = (place, fact)
        for thing, (owner, taken) in self.holder.items():
            if owner == person:
                self.places[thing].append((place, [taken, fact]))

    def handle(self) -> None:
        """Let somebody whose place is known take something, or drop what they hold."""
        held = list(self.holder)
        free = [thing for thing in OBJECTS if thing not in held]
        if held and (not free or self.rng.random() < 0.4):
            thing = self.draw(held)
            self.say(f"{self.holder.pop(thing)[0]} {self.draw(DROPS)} the {thing}.")
            return
        thing = self.draw(free)
        # What lies somewhere can be taken by those who are there.
        seen = self.places[thing]
        able = [p for p, (place, _) in self.moved.items() if not seen or seen[-1][0] == place]
        if not able:
            return self.move()
        person = self.draw(able)
        place, moved = self.moved[person]
        fact = self.say(f"{person} {self.draw(TAKES)} the {thing} there.")
        self.holder[thing] = (person, fact)
        if not seen:
            seen.append((place, [moved, fact]))


def one_fact(rng: np.random.Generator) -> Story:
    """Where is Mary? Her last move says it."""
    world = World(rng, PEOPLE)
    for _ in range(int(rng.integers(2, 11))):
        world.move()
    person = world.draw(list(world.moved))
    place, fact = world.moved[person]
    return Story(world.facts, f"Where is {person}?", place, PLACES, [fact])


def wander(rng: np.random.Generator, least: int, most: int) -> World:
    world = World(rng, PEOPLE)
    world.move()
    for _ in range(int(rng.integers(least, most + 1))):
        (world.handle if rng.random() < 0.4 else world.move)()
    return world


def two_facts(rng: np.random.Generator) -> Story:
    """Where is the milk? With whom who has it, or where it was dropped."""
    while True:
        world = wander(rng, 4, 14)
        known = [thing for thing, seen in world.places.items() if seen]
        if known:
            thing = world.draw(known)
            place, facts = world.places[thing][-1]
            return Story(world.facts, f"Where is the {thing}?", place, PLACES, sorted(facts))


def three_facts(rng: np.random.Generator) -> Story:
    """Where was the milk before the garden? Only places that it was in once are asked for."""
    while True:
        world = wander(rng, 10, 24)
        known = []
        for thing, seen in world.places.items():
            names = [place for place, _ in seen]
            known += [(thing, i) for i in range(1, len(seen)) if names.count(names[i]) == 1]
        if known:
            thing, i = known[int(rng.integers(len(known)))]
            (before, first), (after, then) = world.places[thing][i - 1 : i + 1]
            question = f"Where was the {thing} before the {after}?"
            return Story(world.facts, question, before, PLACES, sorted({*first, *then}))


def two_arguments(rng: np.random.Generator) -> Story:
    """Two places on different sides of a third: what is north of it, what is it north of?"""
    middle, *others = (str(place) for place in rng.choice(PLACES, 3, replace=False))
    sides = [str(rng.choice(["north", "south"])), str(rng.choice(["east", "west"]))]
    relations = [(other, side, middle) for other, side in zip(others, sides, strict=True)]

    def turned(relation: tuple[str, str, str]) -> tuple[str, str, str]:
        one, side, two = relation
        return relation if rng.random() < 0.5 else (two, OPPOSITE[side], one)

    order = [int(i) for i in rng.permutation(2)]
    facts = ["The {} is {} of the {}.".format(*turned(relations[i])) for i in order]
    asked = int(rng.integers(2))
    one, side, two = turned(relations[asked])
    if rng.random() < 0.5:
        question, answer = f"What is {side} of the {two}?", one
    else:
        question, answer = f"What is the {one} {side} of?", two
    return Story(facts, question, answer, PLACES, [order.index(asked)])


def three_arguments(rng: np.random.Generator) -> Story:
    """Who gave the milk to Fred? The last time that it happened counts."""
    world = World(rng, GIVERS)
    given: list[tuple[str, str, str, int]] = []
    owner: dict[str, str] = {}
    for turn in range(int(rng.integers(6, 15))):
        free = [thing for thing in OBJECTS if thing not in owner]
        if turn % 3 == 0:
            world.move()
        elif free and (not owner or rng.random() < 0.3):
            thing = world.draw(free)
            owner[thing] = world.draw(GIVERS)
            world.say(f"{owner[thing]} {world.draw(TAKES)} the {thing} there.")
        else:
            thing = world.draw(list(owner))
            giver = owner[thing]
            taker = owner[thing] = world.draw([p for p in GIVERS if p != giver])
            fact = world.say(f"{giver} {world.draw(GIVES)} the {thing} to {taker}.")
            given.append((giver, thing, taker, fact))
    giver, thing, taker, fact = given[int(rng.integers(len(given)))]
    forms: list[tuple[str, tuple[int, ...], int, tuple[str, ...]]] = [
        (f"What did {giver} give to {taker}?", (0, 2), 1, OBJECTS),
        (f"Who gave the {thing} to {taker}?", (1, 2), 0, GIVERS),
        (f"Who did {giver} give the {thing} to?", (0, 1), 2, GIVERS),
        (f"Who gave the {thing}?", (1,), 0, GIVERS),
        (f"Who received the {thing}?", (1,), 2, GIVERS),
    ]
    question, fixed, wanted, choices = forms[int(rng.integers(len(forms)))]
    asked = (giver, thing, taker, fact)
    last = [g for g in given if all(g[i] == asked[i] for i in fixed)][-1]
    return Story(world.facts, question, str(last[wanted]), choices, [last[3]])


GENERATED: dict[str, Callable[[np.random.Generator], Story]] = {
    "qa1": one_fact,
    "qa2": two_facts,
    "qa3": three_facts,
    "qa4": two_arguments,
    "qa5": three_arguments,
}
FILED = tuple(f"qa{i}" for i in range(1, 21))


def filed_stories(root: DataRoot) -> dict[str, list[Story]]:
    """Return the original stories of every task; all answers of a task are its choices.

    Raises:
      ValueError: a row that is no story, by file and line.
    """
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for where, row in root.rows(FILE, **COLUMNS):
        name, lines = f"qa{row['task']}", row["line_no"]
        require(name in FILED, f"{where}: task", row["task"], f"wants 1 to {len(FILED)}")
        alike = len(lines) == len(row["context"])
        require(alike, f"{where}: line_no", lines, f"wants {len(row['context'])}, as in context")
        there = set(row["supporting"]) <= set(lines)
        require(there, f"{where}: supporting", row["supporting"], "wants some of line_no")
        rows[name].append(row)
    found: dict[str, list[Story]] = {}
    for name, members in rows.items():
        choices = tuple(sorted({row["answer"] for row in members}))
        found[name] = [
            Story(
                row["context"],
                row["question"],
                row["answer"],
                choices,
                sorted(row["line_no"].index(line) for line in row["supporting"]),
            )
            for row in members
        ]
    return found
