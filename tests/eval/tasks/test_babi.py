"""bAbI stories: answers follow from the facts, prompts have their length, chance is chance."""

from __future__ import annotations

import argparse
import re
from types import SimpleNamespace

import numpy as np
import pytest
from doubles import uniform
from test_tasks import oracle

from eval.__main__ import main
from eval.core.datasets import DataRoot
from eval.core.flags import choose
from eval.core.scoring import Scorer
from eval.tasks import babi, niah
from eval.tasks.needles import Haystack
from eval.tasks.stories import FILE, GENERATED, PLACES, Story, filed_stories
from nested_jax.data.tokenizers.tokenizer import train_tokenizer

GO = r"(\w+) (?:moved|went|journeyed|travelled|went back) to the (\w+)\."
TAKE = r"(\w+) (?:took|grabbed|picked up|got) the (\w+)(?: there)?\."
GIVE = r"(\w+) (?:gave|handed|passed) the (\w+) to (\w+)\."
SIDE = r"The (\w+) is (\w+) of the (\w+)\."
BACK = {"north": "south", "south": "north", "east": "west", "west": "east"}


def solve(facts: list[str], question: str) -> str:
    """Answer from the text alone, by replaying it: nothing is shared with the generator."""
    place, owner, given = {}, {}, []
    past: dict[str, list[str]] = {}
    sides = {}
    for fact in facts:
        if m := re.fullmatch(GO, fact):
            place[m[1]] = m[2]
            for thing in (t for t, who in owner.items() if who == m[1]):
                past.setdefault(thing, []).append(m[2])
        elif m := re.fullmatch(GIVE, fact):
            given.append(m.groups())
        elif m := re.fullmatch(TAKE, fact):
            owner[m[2]] = m[1]
            if not past.get(m[2]) and m[1] in place:
                past[m[2]] = [place[m[1]]]
        elif m := re.fullmatch(SIDE, fact):
            sides[m[3], m[2]], sides[m[1], BACK[m[2]]] = m[1], m[3]
        else:
            owner.pop(re.fullmatch(r"\w+ .* the (\w+)(?: there)?\.", fact)[1], None)
    if m := re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question):
        where = past[m[1]]
        return where[len(where) - 1 - where[::-1].index(m[2]) - 1]
    if m := re.fullmatch(r"Where is the (\w+)\?", question):
        return past[m[1]][-1]
    if m := re.fullmatch(r"Where is (\w+)\?", question):
        return place[m[1]]
    if m := re.fullmatch(r"What is (\w+) of the (\w+)\?", question):
        return sides[m[2], m[1]]
    if m := re.fullmatch(r"What is the (\w+) (\w+) of\?", question):
        return sides[m[1], BACK[m[2]]]
    forms = {
        r"What did (?P<a>\w+) give to (?P<c>\w+)\?": 1,
        r"Who gave the (?P<b>\w+) to (?P<c>\w+)\?": 0,
        r"Who did (?P<a>\w+) give the (?P<b>\w+) to\?": 2,
        r"Who gave the (?P<b>\w+)\?": 0,
        r"Who received the (?P<b>\w+)\?": 2,
    }
    for form, wanted in forms.items():
        if m := re.fullmatch(form, question):
            fixed = {"abc".index(k): v for k, v in m.groupdict().items()}
            return [g for g in given if all(g[i] == v for i, v in fixed.items())][-1][wanted]
    raise AssertionError(question)


@pytest.mark.parametrize("name", GENERATED)
def test_every_answer_follows_from_the_facts(name):
    rng = np.random.default_rng(7)
    answers = set()
    for _ in range(200):
        story = GENERATED[name](rng)
        assert solve(story.facts, story.question) == story.answer, story
        assert story.answer in story.choices
        assert all(0 <= i < len(story.facts) for i in story.supporting)
        answers.add(story.answer)
    assert len(answers) >= 6  # every place, or people and objects


@pytest.mark.parametrize("name", GENERATED)
def test_the_supporting_facts_are_enough(name):
    rng = np.random.default_rng(5)
    for _ in range(100):
        story = GENERATED[name](rng)
        facts = [story.facts[i] for i in story.supporting]
        assert solve(facts, story.question) == story.answer, story


@pytest.mark.parametrize("name", ["qa2", "qa3"])
def test_things_are_taken_where_they_lie(name):
    rng, found = np.random.default_rng(6), 0
    for _ in range(100):
        place, holds, lies = {}, {}, {}
        for fact in GENERATED[name](rng).facts:
            if m := re.fullmatch(GO, fact):
                assert place.get(m[1]) != m[2]
                place[m[1]] = m[2]
            elif m := re.fullmatch(TAKE, fact):
                assert m[2] not in holds
                assert lies.get(m[2], place[m[1]]) == place[m[1]], fact
                found += m[2] in lies
                holds[m[2]] = m[1]
            else:
                person, thing = re.fullmatch(r"(\w+) .* the (\w+)\.", fact).groups()
                assert holds.pop(thing) == person
                lies[thing] = place[person]
    assert found > 20


def test_the_answer_needs_its_supporting_facts():
    rng = np.random.default_rng(3)
    for _ in range(50):
        story = GENERATED["qa1"](rng)
        (last,) = story.supporting
        person = story.question.removeprefix("Where is ").rstrip("?")
        assert story.facts[last].startswith(person)
        assert not any(fact.startswith(person) for fact in story.facts[last + 1 :])


@pytest.fixture(scope="module")
def tokenizer():
    text = "Mary moved to the bathroom. Where is the football? The grass is green. " * 40
    return train_tokenizer([text + " ".join(PLACES)], 330)


def make(tokenizer, name, length, samples, seed=0, haystack="noise"):
    rng = np.random.default_rng([seed, length])
    hay = Haystack(tokenizer, haystack, DataRoot(), length)
    stories = babi.draw_stories(name, None, rng)
    return babi.make_items(name, tokenizer, hay, stories, length, samples, rng)


@pytest.mark.parametrize("name", GENERATED)
def test_prompts_have_their_length_and_their_facts_in_order(tokenizer, name):
    items = make(tokenizer, name, 900, 6)
    assert items == make(tokenizer, name, 900, 6)
    assert items != make(tokenizer, name, 900, 6, seed=1)
    rng = np.random.default_rng([0, 900])
    for item in items:
        (query,) = item.queries
        assert len(item.context) + len(query.tokens) == 900
        assert item.places == sorted(item.places)
        assert len(query.wrong) == len(set(query.wrong) - set(query.answers))
    story = GENERATED[name](rng)  # the first one, drawn again
    text = tokenizer.decode(items[0].context)
    ends = [text.index(fact) for fact in story.facts[:1]]
    for fact in story.facts[1:]:
        ends.append(text.index(fact, ends[-1] + 1))
    assert ends == sorted(ends)


def test_a_length_that_holds_no_story_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"--context-lengths=60: qa3: \d of \d+ stories fit"):
        make(tokenizer, "qa3", 60, 5)


def test_a_model_that_knows_the_answers_scores_100(tokenizer):
    items = make(tokenizer, "qa5", 400, 5)
    subject = SimpleNamespace(tokenizer=tokenizer, scorer=Scorer(oracle(tokenizer, items), 4))
    found = niah.summarize(niah.answer(subject, items, 0))
    assert (found["accuracy"], found["rank1"]) == (1.0, 1.0)


def test_a_model_that_knows_nothing_is_at_chance(tokenizer):
    items = make(tokenizer, "qa1", 300, 150)
    subject = SimpleNamespace(tokenizer=tokenizer, scorer=Scorer(uniform(330), 64))
    found = niah.summarize(niah.answer(subject, items, 4))
    low, high = found["rank1_interval"]
    assert found["rank1_chance"] == pytest.approx(1 / 6)
    assert low <= 1 / 6 <= high
    assert found["accuracy"] == 0


def test_ties_share_the_first_rank():
    tied = niah.judge("", ["a"], np.asarray([-1.0, -1.0, -1.0, -2.0]))
    assert (tied["rank"], tied["rank1_share"], tied["choices"]) == (1, pytest.approx(1 / 3), 4)
    assert niah.judge("", ["a"], np.asarray([-1.0, -0.5]))["rank1_share"] == 0


def test_lists_are_answered_in_their_order():
    judge = lambda text: niah.judge(text, ["s,w"], np.zeros(2))["correct"]  # noqa: E731
    assert [judge(t) for t in (" s, w.", " w,s", " s")] == [True, False, False]


def test_original_stories_from_a_file(tmp_path):
    file = tmp_path / FILE.removesuffix(".gz")
    file.parent.mkdir(parents=True)
    file.write_text(
        '{"task": 20, "context": ["A.", "B."], "line_no": [1, 3], "question": "Why?", '
        '"answer": "tired", "supporting": [3, 1]}\n'
    )
    assert filed_stories(DataRoot(tmp_path)) == {
        "qa20": [Story(["A.", "B."], "Why?", "tired", ("tired",), [0, 1])]
    }


def test_bad_flags(capsys, tmp_path):
    for source, name, last in (("simulated", "qa6", "qa5"), ("file", "qa21", "qa20")):
        wanted = rf"--tasks='{name}': wants all, or some of qa1, .*{last}"
        with pytest.raises(ValueError, match=wanted):
            choose(f"qa1,{name}", babi.SOURCES[source], "--tasks")
    words = ["babi", "--checkpoint", str(tmp_path)]
    assert main([*words, "--stories", "web"]) == 2
    assert "--stories: invalid choice: 'web' (choose from" in capsys.readouterr().err
    assert main([*words, "--max-samples", "-1"]) == 2
    assert "--max-samples=-1" in capsys.readouterr().err


def test_the_task_reports_each_length(tokenizer):
    flags = argparse.Namespace(
        tasks="qa1,qa4", stories="simulated", haystack="noise", data_root=None, seed=0,
        context_lengths="200,300", samples_per_length=3, max_samples=0, max_new_tokens=4,
        memorize=False, memorize_steps=1, memorize_use_correct_answer=False,
        memorize_no_reset=False, memorize_paths="all", memorize_layers="all",
        memorize_surprise_threshold=None,
    )  # fmt: skip
    subject = SimpleNamespace(tokenizer=tokenizer, scorer=Scorer(uniform(330), 8))
    found = babi.evaluate(subject, flags)
    assert list(found.metrics) == ["qa1@200", "qa1@300", "qa4@200", "qa4@300"]
    assert all(m["n"] == 3 and m["majority"] >= 1 / 3 for m in found.metrics.values())
    assert len(found.items) == 12
