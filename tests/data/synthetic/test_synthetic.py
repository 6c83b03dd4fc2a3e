"""Synthetic tasks against hand-made examples, and solvers that read nothing but the tokens."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from nested_jax.data.synthetic.formal import BINS, END, LANGUAGES, Formal, set_accuracy
from nested_jax.data.synthetic.mad import Compression, InContextRecall, Memorization
from nested_jax.data.synthetic.recall import MQAR
from nested_jax.data.synthetic.rows import DEFAULTS, MAD_TASKS, TASKS, SyntheticSource, task_of
from nested_jax.data.synthetic.task import macro_accuracy, score_predictions

SPECS = [
    "mqar,vocab=64,tokens=32,pairs=5",
    "mqar,vocab=64,tokens=32,pairs=5,fill=zero",
    "induction,tokens=11",
    "copy,count=5,gap=3",
    "needle,tokens=41,keys=3,value_tokens=2",
    "needle,tokens=41,keys=3,value_tokens=2,haystack=repeated,period=4",
    "needle,tokens=15,keys=3,value_tokens=2",
    "in_context_recall,tokens=40",
    "noisy_recall,tokens=40,noise=0.5",
    "fuzzy_recall,tokens=60",
    "selective_copy,tokens=40,count=6",
    "compression,tokens=9",
    "memorization,vocab=32,tokens=10",
    *(f"formal,language={name},max_length=20" for name in LANGUAGES),
]


# --- every task --------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_rows_are_a_pure_function_of_seed_split_and_index(spec):
    task = task_of(spec)
    rows = {
        (seed, split, i): task.example(seed, i, split)
        for seed in (0, 1)
        for split in ("train", "test")
        for i in range(3)
    }
    for (seed, split, i), row in rows.items():
        again = task_of(spec).example(seed, i, split)
        for a, b in zip(row, again, strict=True):
            np.testing.assert_array_equal(a, b)
    drawn = {row.tokens_T.tobytes() for row in rows.values()}
    few = {"aa": 10, "abab": 5, "anbn": 10, "anbncn": 6}.get(spec[16:].split(",")[0], 99)
    assert len(drawn) == 12 or (few < 99 and 1 < len(drawn) <= few)


@pytest.mark.parametrize("spec", SPECS)
def test_ids_lengths_and_types(spec):
    task = task_of(spec)
    for split in ("train", "test"):
        for i in range(20):
            row = task.example(3, i, split)
            assert row.tokens_T.shape == row.targets_T.shape == row.weights_T.shape
            assert len(row.tokens_T) == task.length
            dtypes = row.tokens_T.dtype, row.targets_T.dtype, row.weights_T.dtype
            assert dtypes == (np.int32, np.int32, np.float32)
            assert row.weights_T.any()
            assert set(np.unique(row.weights_T)) <= {0.0, 1.0}
            for ids in (row.tokens_T, row.targets_T):
                assert ids.min() >= 0
                assert ids.max() < task.vocab_size


@pytest.mark.parametrize("spec", SPECS)
def test_right_answers_score_one_and_wrong_ones_nothing(spec):
    task = task_of(spec)
    rows = [task.example(0, i, "test") for i in range(8)]
    right = np.stack([row.targets_T for row in rows])
    assert task.score(right, rows) == (1.0, 1.0, 1.0, 1.0)
    assert task.score(right + 1, rows)[:3] == (0.0, 0.0, 0.0)
    assert 0 < task.chance < 0.6
    assert task.metric in type(task.score(right, rows))._fields


def test_every_task_is_known_by_name_and_mad_has_six():
    assert len(MAD_TASKS) == 6
    assert all(task_of(name).length > 0 for name in TASKS)
    assert set(DEFAULTS) <= set(TASKS)


# --- solvers that see the tokens only ------------------------------------------------------------


def solve_mqar(task, tokens):
    known = dict(zip(tokens[0 : 2 * task.pairs : 2], tokens[1 : 2 * task.pairs : 2], strict=True))
    return [known.get(t, 0) for t in tokens]


def solve_induction(task, tokens):
    first = tokens.index(task.vocab - 1)
    return [0] * (len(tokens) - 1) + [tokens[first + 1]]


def solve_copy(task, tokens):
    start = task.count + task.gap
    return [0] * start + tokens[: task.count]


def solve_needle(task, tokens):
    mark, ask = task.vocab - 2, task.vocab - 1
    question = tokens.index(ask)
    key = tokens[question + 1]
    starts = [i for i, t in enumerate(tokens) if t == mark and tokens[i + 1] == key]
    assert len(starts) == 1
    value = tokens[starts[0] + 2 : starts[0] + 2 + task.value_tokens]
    return [0] * (question + 1) + value


def solve_recall(task, tokens):
    """A key is a lower-half id that a value (or the question) follows; noise is skipped."""
    signal = task.vocab - task.noise_vocab
    known, out = {}, []
    for place, token in enumerate(tokens):
        is_key = place % 2 == 0 and token < signal // 2
        out.append(known.get(token, 0) if is_key else 0)
        if is_key and place + 1 < len(tokens):
            known[token] = tokens[place + 1]
    return out


def solve_fuzzy(task, tokens):
    """Read maximal runs: keys are ids below the middle, values the others, padding is the last."""
    middle, pad = (task.vocab - 1) // 2, task.vocab - 1
    pairs, place = {}, 0
    out = [0] * len(tokens)
    while place < len(tokens):
        if tokens[place] == pad:
            place += 1
            continue
        stop = place
        while stop < len(tokens) and tokens[stop] < middle:
            stop += 1
        key, end = tuple(tokens[place:stop]), stop
        while end < len(tokens) and middle <= tokens[end] < pad:
            end += 1
        value = pairs.setdefault(key, tokens[stop:end])
        for i, symbol in enumerate(value):
            if stop - 1 + i < len(tokens):
                out[stop - 1 + i] = symbol
        place = end
    return out


def solve_selective(task, tokens):
    blank, copy = task.vocab - 2, task.vocab - 1
    end = tokens.index(copy)
    kept = [t for t in tokens[:end] if t != blank]
    return [0] * (end + 1) + kept


def solve_compression(task, tokens):
    return tokens


def solve_memorization(task, tokens):
    """The mapping is not in the row: learn it from other rows, as a model does."""
    seen = {}
    for i in range(200):
        row = task.example(9, i, "train")
        for place in range(1, len(row.tokens_T), 2):
            seen[int(row.tokens_T[place - 1])] = int(row.targets_T[place])
    return [seen[tokens[i - 1]] if i % 2 else 0 for i in range(len(tokens))]


SOLVERS = {
    "mqar": solve_mqar,
    "induction": solve_induction,
    "copy": solve_copy,
    "needle": solve_needle,
    "in_context_recall": solve_recall,
    "noisy_recall": solve_recall,
    "fuzzy_recall": solve_fuzzy,
    "selective_copy": solve_selective,
    "compression": solve_compression,
    "memorization": solve_memorization,
}


@pytest.mark.parametrize("spec", [s for s in SPECS if not s.startswith("formal")])
def test_the_answers_follow_from_the_tokens(spec):
    task, solve = task_of(spec), SOLVERS[spec.split(",")[0]]
    rows = [task.example(5, i, "test") for i in range(40)]
    solved = np.stack([solve(task, row.tokens_T.tolist()) for row in rows])
    assert task.score(solved, rows).sequence == 1.0


@pytest.mark.parametrize("name", ["in_context_recall", "noisy_recall", "fuzzy_recall"])
def test_training_rows_of_recall_ask_for_every_next_token(name):
    row = task_of(f"{name},tokens=60").example(0, 0, "train")
    asked = row.weights_T[:-1] > 0
    np.testing.assert_array_equal(row.targets_T[:-1][asked], row.tokens_T[1:][asked])
    pad = 15 if name == "fuzzy_recall" else None
    np.testing.assert_array_equal(row.weights_T > 0, row.targets_T != pad)


def test_every_recall_answer_was_seen_before_and_every_repeat_is_asked():
    for name in ("in_context_recall", "noisy_recall"):
        task = task_of(f"{name},tokens=40")
        for i in range(30):
            row = task.example(1, i, "test")
            keys = [
                (p, t)
                for p, t in enumerate(row.tokens_T.tolist())
                if p % 2 == 0 and t < (task.vocab - task.noise_vocab) // 2
            ]
            repeats = [p for n, (p, t) in enumerate(keys) if t in [k for _, k in keys[:n]]]
            assert np.flatnonzero(row.weights_T).tolist() == repeats
            assert repeats[-1] == len(row.tokens_T) - 1


# --- distributions and hand-made rows ------------------------------------------------------------


def test_mqar_row_by_hand():
    """Context, then each key once at an even slot after it; the answers are never shown."""
    task = MQAR(vocab=20, tokens=16, pairs=3, fill="zero")
    for i in range(50):
        row = task.example(0, i)
        keys, values = row.tokens_T[0:6:2], row.tokens_T[1:6:2]
        assert len(set(keys)) == len(set(values)) == 3
        assert keys.min() >= 1
        assert keys.max() < 10 <= values.min()
        rest = row.tokens_T[6:]
        assert sorted(rest[rest > 0]) == sorted(keys)
        assert not rest[1::2].any()
        assert row.weights_T.sum() == 3


def test_mqar_queries_bunch_near_the_context_as_zoology_draws_them():
    task = MQAR(vocab=64, tokens=24, pairs=1, fill="zero")
    slots = [int(np.flatnonzero(task.example(0, i).weights_T)[0] - 2) // 2 for i in range(4000)]
    odds = np.arange(1, 12.0) ** -0.99
    np.testing.assert_allclose(
        np.bincount(slots, minlength=11) / 4000, odds / odds.sum(), atol=0.03
    )


def test_noise_has_its_odds():
    task = InContextRecall(vocab=32, noise_vocab=16, noise=0.4, tokens=200)
    tokens = np.stack([task.example(0, i, "test").tokens_T for i in range(100)])
    noisy = tokens[:, 0:-1:2] >= 16
    # 99 slots, one of which is never noise
    assert noisy.mean() == pytest.approx(0.4 * 98 / 99, abs=0.015)
    np.testing.assert_array_equal(tokens[:, 1:-1:2] >= 16, noisy)


def test_a_row_of_noise_still_holds_a_pair():
    task = InContextRecall(vocab=8, noise_vocab=4, noise=0.95, tokens=6)
    assert all(task.example(0, i, "test").weights_T.any() for i in range(200))


def test_test_keys_of_fuzzy_recall_have_three_different_tokens():
    task = task_of("fuzzy_recall,tokens=60")
    lengths = {"train": set(), "test": set()}
    for split, found in lengths.items():
        for i in range(30):
            tokens = "".join("k" if t < 7 else "." for t in task.example(2, i, split).tokens_T)
            found |= {len(run) for run in re.findall(r"(?<=\.)k+(?=\.)", tokens)}
    assert lengths == {"train": {1, 2, 3}, "test": {3}}


def test_needle_rows_by_hand():
    """Hay, needles in one piece, and a question that shows all but the last token of its value."""
    task = task_of("needle,vocab=34,tokens=27,keys=3,value_tokens=2")
    kinds = "".join("k" * 8 + "v" * 8 + "h" * 16 + "MA")
    for i in range(100):
        row = task.example(0, i)
        pattern = "".join(kinds[t] for t in row.tokens_T)
        assert re.fullmatch("(h|Mkvv){15}Akv", pattern), pattern
        assert pattern.count("M") == 3
        first = pattern.index("A") + 1
        shown = row.tokens_T.tolist()
        place = next(j for j, t in enumerate(shown) if t == shown[first])
        assert row.targets_T[first:].tolist() == shown[place + 1 : place + 3]
        assert shown[first + 1] == shown[place + 1]
        assert np.flatnonzero(row.weights_T).tolist() == [first, first + 1]


def test_several_needles_have_independent_depths():
    task = task_of("needle,tokens=10,keys=2,value_tokens=1")
    found = set()
    for i in range(500):
        tokens = task.example(0, i).tokens_T[:8].tolist()
        marks = [j for j, t in enumerate(tokens) if t == task.vocab - 2]
        found.add(tuple(j - 3 * n for n, j in enumerate(marks)))  # hay in front of each
    assert found == {(a, b) for a in range(3) for b in range(a, 3)}


def test_needles_lie_at_every_depth():
    task = task_of("needle,tokens=60")
    depths = [task.example(0, i).tokens_T.tolist().index(task.vocab - 2) for i in range(2000)]
    counts = np.bincount(depths, minlength=50)
    assert len(counts) == 50  # 60 tokens: 5 of the question, 6 of the needle, 49 of hay
    assert counts.min() > 10
    assert counts.max() < 90


def test_a_repeated_haystack_repeats():
    task = task_of("needle,tokens=60,haystack=repeated,period=7")
    tokens = task.example(0, 0).tokens_T.tolist()
    start = tokens.index(task.vocab - 2)
    hay = tokens[:start] + tokens[start + task.needle : 55]
    assert hay == (hay[:7] * 9)[: len(hay)]


def test_selective_copy_never_ends_in_a_blank_before_the_copy_token():
    task = task_of("selective_copy,tokens=30,count=4")
    for i in range(50):
        tokens = task.example(0, i).tokens_T.tolist()
        assert tokens[25] == task.vocab - 1
        assert tokens[24] < task.vocab - 2
        assert tokens[26:] == [task.vocab - 2] * 4


def test_compression_asks_for_its_input_and_ends_where_it_is_decoded():
    task = Compression(vocab=8, tokens=6)
    assert task.read == "last"
    for i in range(30):
        row = task.example(0, i)
        assert row.tokens_T[-1] == 7
        assert (row.tokens_T[:-1] < 7).all()
        np.testing.assert_array_equal(row.targets_T, row.tokens_T)
    with pytest.raises(ValueError, match=r"data.seq_len=8: wants the 6 tokens of Compression"):
        SyntheticSource(task, 0, 8, 4)


def test_the_memorized_mapping_is_one_to_one_and_the_same_everywhere():
    mapping = Memorization(vocab=32).mapping
    assert len(mapping) == 15
    assert len(set(mapping)) == 15
    assert mapping.min() >= 15
    assert mapping.max() < 31
    np.testing.assert_array_equal(mapping, Memorization(vocab=32, tokens=8).mapping)


# --- formal languages ----------------------------------------------------------------------------


def test_chance_of_a_bin_is_the_mean_over_its_lengths():
    parity = task_of("formal,language=parity,max_length=3")
    assert parity.chance == pytest.approx((1 / 4 + 1 / 8) / 2)
    abab = task_of("formal,language=abab,min_length=4,max_length=8")
    assert abab.chance == pytest.approx((3**-4 + 3**-8) / 2)


MEMBERS = {
    "parity": lambda w: w.count("1") % 2 == 0,
    "aa": lambda w: len(w) % 2 == 0,
    "abab": lambda w: re.fullmatch("(abab)*", w) is not None,
    "anbn": lambda w: w == "a" * (len(w) // 2) + "b" * (len(w) // 2) and len(w) % 2 == 0,
    "anbncn": lambda w: w == "".join(x * (len(w) // 3) for x in "abc") and len(w) % 3 == 0,
    "shuffle2": lambda w: all(balanced([x for x in w if x in pair], pair) for pair in ("()", "[]")),
}
MEMBERS["shuffle2_nested"] = MEMBERS["shuffle2"]  # fewer strings are drawn, their sets are the same


def balanced(word, pair):
    depths = list(itertools.accumulate(1 if x == pair[0] else -1 for x in word))
    return not depths or (min(depths) >= 0 and depths[-1] == 0)


@pytest.mark.parametrize(("name", "longest"), [
    ("parity", 7), ("aa", 10), ("abab", 12), ("anbn", 10), ("anbncn", 12), ("shuffle2", 8),
])  # fmt: skip
def test_sets_by_brute_force(name, longest):
    """Every word of the alphabet is tried: a symbol may follow a prefix if some member goes on so.

    Members that are needed to show it are at most 4 symbols longer than the prefix.
    """
    language = LANGUAGES[name]
    members = [
        word
        for length in range(1, longest + 1)
        for letters in itertools.product(language.alphabet, repeat=length)
        if MEMBERS[name](word := "".join(letters))
    ]
    follow: dict[str, set[str]] = {}
    for word in members:
        for i in range(len(word)):
            follow.setdefault(word[: i + 1], set()).add((word + END)[i + 1])
    short = [word for word in members if len(word) <= longest - 4]
    assert len(short) >= 2
    for word in short:
        for i, allowed in enumerate(language.allowed(word)):
            assert allowed in language.sets
            assert set(allowed) == follow[word[: i + 1]], (word, i)


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.parametrize("window", BINS)
def test_drawn_strings_are_members_of_their_bin_and_all_lengths_occur(name, window):
    task = Formal(name, *window)
    symbols = "_" + task.definition.alphabet
    lengths = set()
    for i in range(400):
        row = task.example(0, i)
        string = "".join(symbols[t] for t in row.tokens_T if t)
        assert MEMBERS[name](string)
        assert row.weights_T.sum() == len(string)
        assert row.tokens_T[len(string) :].sum() == 0
        lengths.add(len(string))
    assert lengths == set(task.lengths)
    assert min(lengths) >= window[0]
    assert max(lengths) <= window[1]


@pytest.mark.parametrize(
    ("name", "string", "sets"),
    [
        ("parity", "0110", ["01$", "01", "01$", "01$"]),
        ("aa", "aaaa", ["a", "a$", "a", "a$"]),
        ("abab", "abababab", ["b", "a", "b", "a$"] * 2),
        ("anbn", "aabb", ["ab", "ab", "b", "$"]),
        ("anbncn", "aabbcc", ["ab", "ab", "b", "c", "c", "$"]),
        ("shuffle2", "([)]", ["([)", "([)]", "([]", "([$"]),
    ],
)
def test_rows_by_hand(name, string, sets):
    task = Formal(name, 2, 8)
    row = task.encode(string)
    alphabet = task.definition.alphabet
    assert row.tokens_T[: len(string)].tolist() == [1 + alphabet.index(x) for x in string]
    ids = [task.first_set + task.definition.sets.index(x) for x in sets]
    assert row.targets_T[: len(string)].tolist() == ids
    want = [[x in allowed for x in alphabet + END] for allowed in sets]
    np.testing.assert_array_equal(row.sets_TS[: len(string)], want)
    assert not row.sets_TS[len(string) :].any()
    assert row.weights_T.tolist() == [1.0] * len(string) + [0.0] * (8 - len(string))


@pytest.mark.parametrize(("name", "cross"), [("shuffle2", True), ("shuffle2_nested", False)])
def test_shuffled_brackets_cross_or_do_not_and_both_kinds_occur(name, cross):
    task = Formal(name, 30, 30)
    strings = ["".join("_()[]"[t] for t in task.example(0, i).tokens_T) for i in range(50)]
    reduced = []
    for string in strings:
        while (shorter := string.replace("()", "").replace("[]", "")) != string:
            string = shorter
        reduced.append(string)
    crossed = sum(bool(left) for left in reduced)
    assert crossed > 40 if cross else crossed == 0
    assert all(set(string) == set("()[]") for string in strings)
    depths = [max(itertools.accumulate(1 if x in "([" else -1 for x in s)) for s in strings]
    assert len(set(depths)) > 5  # of both kinds together


def test_a_sequence_is_right_only_if_every_position_is():
    task = Formal("parity", 4, 8)
    rows = [task.encode("0110"), task.encode("101101")]
    right = np.stack([row.targets_T for row in rows])
    slip = right.copy()
    slip[1, 5] = task.first_set
    assert slip[1, 5] != right[1, 5]
    scores = task.score(slip, rows)
    assert scores.sequence == 0.5
    assert scores.token == pytest.approx(9 / 10)
    assert scores.example == pytest.approx((1 + 5 / 6) / 2)
    padding = right.copy()
    padding[:, 6:] = 3  # nothing is asked there
    assert task.score(padding, rows).sequence == 1.0


def test_set_accuracy_thresholds_every_symbol():
    task = Formal("anbn", 4, 8)
    rows = [task.encode("aabb"), task.encode("ab")]
    scores = np.where(np.stack([row.sets_TS for row in rows]), 0.6, 0.4)
    assert set_accuracy(scores, rows) == 1.0
    assert set_accuracy(scores, rows, threshold=0.7) == 0.0
    scores[1, 1, 0] = 0.6  # an "a" after "ab"
    assert set_accuracy(scores, rows) == 0.5
    scores[:, 4:] = 1.0  # padding
    assert set_accuracy(scores, rows) == 0.5


# --- scores --------------------------------------------------------------------------------------


def test_scores_by_hand():
    targets = np.array([[1, 2, 3, 0], [4, 4, 0, 0]])
    weights = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.float32)
    predictions = np.array([[1, 2, 9, 7], [4, 4, 5, 6]])
    scores = score_predictions(predictions, targets, weights)
    assert scores.token == pytest.approx(4 / 5)
    assert scores.example == pytest.approx((2 / 3 + 1) / 2)
    assert scores.sequence == pytest.approx(1 / 2)
    # Symbols 1, 2, 3, 4, 9: recalled 1, 1, 0, 1, and 9 was predicted and never right.
    assert scores.macro == pytest.approx(3 / 5)


def test_macro_accuracy_weighs_symbols_and_not_positions():
    targets, predictions = np.array([0] * 9 + [1]), np.zeros(10, int)
    assert macro_accuracy(predictions, targets) == 0.5


def test_scores_refuse_what_they_cannot_read():
    with pytest.raises(ValueError, match="want one shape"):
        score_predictions(np.zeros((2, 3)), np.zeros((2, 4)), np.zeros((2, 4)))
    weights = np.array([[1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="row 1 asks nothing"):
        score_predictions(np.zeros((2, 2)), np.zeros((2, 2)), weights)


# --- names and sources ---------------------------------------------------------------------------


def test_task_of_reads_names_and_fields():
    assert task_of("mqar,tokens=128, pairs=8,fill=zero") == MQAR(8192, 128, 8, "zero")
    assert task_of("noisy_recall,noise=0.4") == InContextRecall(32, 128, 16, 0.4)
    assert task_of("formal,language=abab,min_length=51,max_length=100") == Formal("abab", *BINS[1])


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("mqr", "task='mqr': wants one of mqar"),
        ("mqar,token=64", "mqar.token=64: unknown field; did you mean mqar.tokens"),
        ("mqar,tokens=big", "mqar.tokens='big': got str, wants int"),
        ("mqar,tokens", "wants FIELD=VALUE"),
        ("mqar,tokens=63", "tokens=63: wants an even"),
        ("mqar,pairs=17", "pairs=17: wants at least 1, and 4 tokens each"),
        ("mqar,vocab=60", "vocab=60: wants more than"),
        ("mqar,fill=ones", "fill='ones'"),
        ("induction,vocab=2", "vocab=2"),
        ("copy,count=0", "count=0"),
        ("needle,tokens=10", "tokens=10: wants 11 or more"),
        ("needle,keys=64", "keys=64: wants 1 to 63"),
        ("needle,haystack=essay", "haystack='essay'"),
        ("in_context_recall,noise=0.2", "noise_vocab=0: wants 1 or more"),
        ("in_context_recall,noise_vocab=14", "leaves fewer than 4 ids"),
        ("fuzzy_recall,motif=8", "motif=8"),
        ("fuzzy_recall,tokens=17", "tokens=17: wants 18"),
        ("selective_copy,count=128", "count=128"),
        ("compression,tokens=3", "tokens=3: wants 4 or more"),
        ("memorization,tokens=31", "tokens=31"),
        ("formal,language=dyck", "language='dyck': wants one of parity"),
        ("formal,language=abab,max_length=3", "no string of the language"),
    ],
)
def test_bad_settings_are_named(spec, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        task_of(spec)


def test_a_source_gives_the_four_arrays_of_a_batch():
    task = task_of("formal,language=aa,max_length=10")
    source = SyntheticSource(task, seed=3, seq_len=16, rows=7, split="test")
    assert len(source) == 7
    row, example = source[4], task.example(3, 4, "test")
    used = int(example.weights_T.sum())
    for name, values in (
        ("tokens_BT", example.tokens_T),
        ("targets_BT", example.targets_T),
        ("weights_BT", example.weights_T),
        ("segments_BT", np.ones(10)),
    ):
        assert row[name].shape == (16,)
        np.testing.assert_array_equal(row[name][:used], values[:used])
        assert not row[name][used:].any()
    assert row["weights_BT"].dtype == np.float32
    assert {row[k].dtype for k in row if k != "weights_BT"} == {np.dtype(np.int32)}


def test_fill_writes_one_row_of_a_batch():
    source = SyntheticSource(task_of("copy,count=3"), seed=0, seq_len=8, rows=4)
    batch = source.empty(2)
    source.fill(batch, 1, 2)
    assert not any(array[0].any() for array in batch.values())
    for name, array in batch.items():
        np.testing.assert_array_equal(array[1], source[2][name])


def test_a_source_refuses_rows_that_do_not_fit_and_indices_that_do_not_exist():
    task = task_of("copy,count=3")
    with pytest.raises(ValueError, match=r"data.seq_len=5: wants 6 or more"):
        SyntheticSource(task, seed=0, seq_len=5, rows=4)
    with pytest.raises(ValueError, match="rows=0"):
        SyntheticSource(task, seed=0, seq_len=6, rows=0)
    with pytest.raises(ValueError, match="row=4"):
        SyntheticSource(task, seed=0, seq_len=6, rows=4)[4]
