"""bAbI stories inside a long text: ``python -m eval babi --checkpoint runs/NAME``.

In the manner of BABILong (arXiv 2406.10149): the facts of a story stand in their order, at places
drawn at random, between the sentences of other texts; a question follows them. A prompt has
exactly the stated tokens. accuracy: the model writes the answer, exactly and first; rank1: the
answer is the likeliest of all that could be answered (rank1_chance is what guessing gives, majority
the share of the commonest answer). Intervals are Wilson's, 95 %. Stories are simulated from --seed
(qa1 to qa5), or the original ones (--stories file: qa1 to qa20).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from eval.core.cli import Findings, Task, data_root
from eval.core.flags import choose, flag
from eval.core.subject import Subject
from eval.tasks.needles import Haystack, NeedleItem, Query, insert
from eval.tasks.niah import LENGTH_FLAGS, ask_at_lengths, draw
from eval.tasks.stories import FILE, FILED, GENERATED, Story, filed_stories
from nested_jax.data.tokenizers.tokenizer import Tokenizer
from nested_jax.errors import require

INTRO = "Facts about people, things and places are hidden within the following text. Memorize them."
SOURCES = {"simulated": tuple(GENERATED), "file": FILED}


def evaluate(subject: Subject, flags: argparse.Namespace) -> Findings:
    names, root = choose(flags.tasks, SOURCES[flags.stories], "--tasks"), data_root(flags)
    filed = filed_stories(root) if flags.stories == "file" else {}
    for name in names if flags.stories == "file" else ():
        require(name in filed, "--tasks", name, f"{root.find(FILE)} has no story of it")
    source = "essay" if flags.haystack == "auto" else flags.haystack

    def make(name: str, length: int, samples: int) -> list[NeedleItem]:
        hay = Haystack(subject.tokenizer, source, root, length)
        rng = np.random.default_rng([flags.seed, FILED.index(name), length])
        stories = draw_stories(name, filed.get(name), rng)
        return make_items(name, subject.tokenizer, hay, stories, length, samples, rng)

    found = ask_at_lengths(subject, flags, names, make)
    for group, numbers in found.metrics.items():
        answers = Counter(item["answers"][0] for item in found.items if item["group"] == group)
        numbers["majority"] = max(answers.values()) / answers.total()
    return found


def draw_stories(
    name: str, filed: Sequence[Story] | None, rng: np.random.Generator
) -> Iterator[Story]:
    """Yield stories without end, or those of the file in an order drawn at random."""
    if filed is not None:
        yield from (filed[i] for i in rng.permutation(len(filed)))
        return
    while True:
        yield GENERATED[name](rng)


def make_items(
    name: str,
    tokenizer: Tokenizer,
    hay: Haystack,
    stories: Iterator[Story],
    length: int,
    samples: int,
    rng: np.random.Generator,
) -> list[NeedleItem]:
    """Return the first `samples` stories that fit into `length` tokens, hidden in the haystack.

    Raises:
      ValueError: there are not so many.
    """
    items: list[NeedleItem] = []
    tried = 0
    for story in stories:
        tried += 1
        item = hide(f"{name}/{length}/{len(items)}", tokenizer, hay, story, length, rng)
        if item is not None:
            items.append(item)
        if len(items) == samples or tried == 20 * samples + 100:
            break
    wanted = f"{name}: {len(items)} of {tried} stories fit; wants {samples}, or a greater length"
    require(len(items) == samples, "--context-lengths", length, wanted)
    return items


def hide(
    key: str,
    tokenizer: Tokenizer,
    hay: Haystack,
    story: Story,
    length: int,
    rng: np.random.Generator,
) -> NeedleItem | None:
    """Return a prompt of `length` tokens, or None where the story is too long for it."""
    intro = tuple(tokenizer.encode(INTRO))
    facts = [tuple(tokenizer.encode(f" {fact}")) for fact in story.facts]
    asked = tuple(tokenizer.encode(f" Question: {story.question} Answer:"))
    room = length - len(intro) - len(asked) - sum(map(len, facts))
    if room < 0:
        return None
    body = hay.cut(int(rng.integers(len(hay.sentences))), room)
    depths = dict(enumerate(sorted(float(x) for x in rng.random(len(facts)))))
    context, places = insert(intro, body, facts, depths, length)
    query = Query(asked, [story.answer], [c for c in story.choices if c != story.answer])
    return NeedleItem(key, context, [query], depths[story.supporting[-1]], places, length)


FLAGS = (
    *LENGTH_FLAGS,
    flag("--tasks", "all", "all, or some of qa1,...,qa5 (qa20)"),
    flag("--stories", "simulated", "simulated, or file", choices=tuple(SOURCES)),
)
HELP = "bAbI stories inside a long text (BABILong style)"
TASK = Task("babi", HELP, __doc__, FLAGS, evaluate, partial(draw, "babi"))
