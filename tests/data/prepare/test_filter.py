"""The filter: every rule drops what it names, and nothing depends on the number of workers."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_data import WORDS

from nested_jax.data.manifest import SourceSpec
from nested_jax.data.prepare import dedupe
from nested_jax.data.prepare.dedupe import ENTRY, find_duplicates, signature
from nested_jax.data.prepare.filtering import FilterOptions, filter_source, report_path
from nested_jax.data.prepare.filters import (
    RULES,
    Rules,
    drop_reason,
    ngram_hashes,
    word_drop_reason,
    words_of,
)
from nested_jax.data.prepare.overlap import eval_ngrams, overlaps

ENGLISH = (
    "The committee met on Tuesday to discuss the state of the harbour, which had been damaged in "
    "the storm. Several members asked for a new report before any money could be spent on repairs."
)


def quiet(_: str) -> None:
    pass


def prose(seed: int, words: int = 120) -> str:
    rng = random.Random(seed)
    return " ".join(f"{rng.choice(WORDS)}{rng.randrange(500)}x" for _ in range(words)) + "."


def reason(text: str, rules: Rules) -> str | None:
    return drop_reason(text, rules) or word_drop_reason(words_of(text), rules)


@pytest.mark.parametrize(
    ("text", "rules", "want"),
    [
        (ENGLISH, RULES["prose"], None),
        (" \n\t", RULES["none"], "empty"),
        ("short", replace(RULES["none"], min_chars=6), "too_short"),
        ("longer", replace(RULES["none"], max_chars=5), "too_long"),
        ("a line that repeats\n" * 9 + ENGLISH, RULES["prose"], "repetition"),
        ("a line that repeats\n" * 9 + ENGLISH, RULES["none"], None),
        (ENGLISH + " buy this" * 30, RULES["prose"], "repetition"),
        ("# # ... read # more", RULES["prose"], "symbols"),
        ("\n".join(f"- point {i} of it" for i in range(9)), RULES["prose"], "symbols"),
        (" ".join(str(i) for i in range(60)), RULES["prose"], "symbols"),
        ("same line\n" * 3 + ENGLISH, Rules(duplicate_lines=0.05), "repetition"),
        ("same line\n" * 3 + ENGLISH, Rules(duplicate_lines=0.2), None),
        ("# read ... # more and more", Rules(symbols=0.4), "symbols"),
        ("# read ... # more and more", Rules(symbols=0.5), None),
        ("one 2 3 4", Rules(min_alphabetic=0.3), "symbols"),
        ("one 2 3 4", Rules(min_alphabetic=0.25), None),
        ("x = [1, 2, 3]  # ...\n" * 2 + "y = {'a': 4}\n", RULES["code"], None),
    ],
)
def test_rules(text: str, rules: Rules, want: str | None) -> None:
    assert reason(text, rules) == want


def test_language() -> None:
    pytest.importorskip("py3langid")
    rules = replace(RULES["none"], lang="en", lang_threshold=0.8)
    assert reason(ENGLISH, rules) is None
    german = "Der Ausschuss traf sich am Dienstag, um über den Zustand des Hafens zu beraten."
    assert reason(german, rules) == "language"
    assert reason(german, replace(rules, lang="de")) is None


def test_ngram_hashes_equal_only_for_equal_runs() -> None:
    words = words_of("a b c a b c d").hashes
    grams = ngram_hashes(words, 3)
    runs = [("abcabcd")[i : i + 3] for i in range(5)]
    for i, j in itertools.combinations(range(5), 2):
        assert (grams[i] == grams[j]) == (runs[i] == runs[j])
    assert len(ngram_hashes(words, 8)) == 0


def mutate(text: str, share: float, seed: int) -> str:
    """Replace a run of words, so that about `1 - share` of the 5-grams stay."""
    words = text.split()
    count = int(len(words) * share)
    return " ".join([*words[: len(words) - count], *prose(seed, count).split()])


def shingles(text: str) -> set[tuple[int, ...]]:
    hashes = words_of(text).hashes.tolist()
    return set(zip(*(hashes[i:] for i in range(5)), strict=False))


def test_signatures_estimate_the_jaccard_similarity() -> None:
    errors = []
    for seed, share in enumerate(np.linspace(0, 1, 40)):
        a = prose(seed, 300)
        b = mutate(a, float(share), seed + 1000)
        exact = len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))
        one, two = signature(words_of(a)), signature(words_of(b))
        errors.append((one["minima"] == two["minima"]).mean() - exact)
    assert np.abs(errors).max() < 4 * 0.5 / np.sqrt(128)  # 4 standard errors
    assert abs(np.mean(errors)) < 0.02


def test_duplicates_equal_a_slow_twin() -> None:
    texts = [prose(i) for i in range(30)]
    texts += [
        mutate(texts[i], share, i + 77) for i, share in enumerate([0.0, 0.03, 0.06, 0.5, 0.9])
    ]
    texts += ["tiny", "tiny", "tiny two", ""]
    entries = np.array([signature(words_of(text)) for text in texts], ENTRY)
    found = find_duplicates(entries, similarity=0.8)
    for j, text in enumerate(texts):
        assert found.exact[j] == (text in texts[:j]), j
        alike = max(
            [(entries["minima"][i] == entries["minima"][j]).mean() for i in range(j)], default=0
        )
        assert found.near[j] == (alike >= 0.8 and not found.exact[j]), (j, alike)
    assert found.near.sum() == 3
    assert not find_duplicates(entries, similarity=0.0).near.any()


def test_minima_of_a_long_text() -> None:
    shingles = np.random.default_rng(0).integers(0, 2**64, 9001, np.uint64)
    want = (shingles[:, None] * dedupe._FACTORS + dedupe._OFFSETS) >> np.uint64(32)
    np.testing.assert_array_equal(dedupe.minima(shingles), want.min(axis=0))
    shifts = np.random.default_rng(1).integers(1, 2**63, 3, np.uint64)
    for i, j in itertools.combinations(range(5), 2):  # independent, no shifts of one another
        a, b = (dedupe._FACTORS[k] * shifts for k in (i, j))
        assert (a != b).all()


def test_candidates_of_a_band_are_held_to_their_whole_signatures() -> None:
    entries = np.zeros(2, ENTRY)
    entries["exact"] = [1, 2]
    entries["minima"] = np.random.default_rng(0).integers(0, 2**32, (2, 128), np.uint32)
    entries["minima"][1, 40:48] = entries["minima"][0, 40:48]  # band 5: 8 of 128 agree
    assert find_duplicates(entries, similarity=0.06).near.tolist() == [False, True]
    assert find_duplicates(entries, similarity=0.07).near.tolist() == [False, False]


def test_exact_duplicates_within_a_window() -> None:
    texts = ["a", "b", "c", "a", "a"]
    entries = np.array([signature(words_of(text)) for text in texts], ENTRY)
    assert find_duplicates(entries, 0.0).exact.tolist() == [False, False, False, True, True]
    assert find_duplicates(entries, 0.0, window=2).exact.tolist() == [False] * 4 + [True]


def test_evaluation_overlap(tmp_path: Path) -> None:
    question = " ".join(f"w{i}" for i in range(20))
    rows = [{"query": question, "choices": ["too short", prose(5, 13)], "gold": 1}]
    (tmp_path / "task.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    )
    ngrams = eval_ngrams([str(tmp_path)])
    assert (ngrams.strings, ngrams.short, len(ngrams.hashes)) == (3, 1, 8 + 1)

    def hit(text: str) -> bool:
        return overlaps(words_of(text).hashes, ngrams.hashes)

    assert hit("before, " + question.upper().replace(" ", ", ") + " after")
    assert hit(prose(5, 13))
    assert not hit(" ".join(question.split()[:12]) + " " + prose(9))
    assert not hit("")
    (tmp_path / "task.jsonl.gz").write_bytes(gzip.compress(b"{broken"))
    with pytest.raises(ValueError, match=r"task\.jsonl\.gz:1: is not JSON"):
        eval_ngrams([str(tmp_path)])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """60 documents: copies, near copies, an evaluation text, junk, and code to be kept verbatim."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = [prose(i) for i in range(50)]
    texts[10] = texts[3]
    texts[11] = mutate(texts[4], 0.03, 99)
    texts[12] = "def f():\n\treturn  1\n" * 2 + prose(1000)
    texts[13] = "x"
    texts[14] = prose(777)
    texts[15] = "same line again\n" * 30
    for split, part in (("train", texts), ("valid", [prose(2000), texts[20]])):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in part)
        (folder / f"{split}.jsonl").write_text(rows)
    (tmp_path / "task.jsonl").write_text(json.dumps({"q": prose(777)}) + "\n")
    return folder


def run(corpus: Path, output: Path, workers: int = 1, **fields: object) -> dict[str, object]:
    spec = SourceSpec(name="c", dataset=str(corpus), min_chars=5, **fields)
    options = FilterOptions(workers=workers, eval_files=(str(corpus.parent / "task.jsonl"),))
    filter_source(spec, output, options, quiet)
    return json.loads(report_path(output).read_text())


def test_filter_counts_and_output(corpus: Path, tmp_path: Path) -> None:
    report = run(corpus, tmp_path / "out" / "c.jsonl")
    assert report["dropped"] == {
        "too_short": 1,
        "evaluation_overlap": 1,
        "repetition": 1,
        "exact_duplicate": 2,
        "near_duplicate": 1,
    }
    assert (report["processed"], report["kept"]) == (52, 46)
    rows = [json.loads(line) for line in (tmp_path / "out/c.jsonl").read_text().splitlines()]
    assert [row["split"] for row in rows] == ["valid"] * 2 + ["train"] * 44
    kept = [row["text"] for row in rows]
    assert any(text.startswith("def f():\n\treturn  1\n") for text in kept)
    assert prose(20) in kept[:2]  # the copy in train went, not the held-out one
    assert prose(20) not in kept[2:]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "c.jsonl",
        "c.jsonl.report.json",
    ]


def test_limit_is_of_kept_training_documents(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nested_jax.data.prepare.filtering.BLOCK_CHARS", 3000)
    report = run(corpus, tmp_path / "c.jsonl", limit=12)
    assert report["processed"] < 30  # of 52: reading stops where the limit is reached
    assert report["kept_by_split"] == {"valid": 1, "train": 10}  # of 12, two are copies


def test_workers_do_not_change_the_output(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nested_jax.data.prepare.filtering.BLOCK_CHARS", 3000)
    for workers in (1, 2):
        run(corpus, tmp_path / f"{workers}.jsonl", workers, limit=20)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()


def test_a_filter_that_fails_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    (corpus / "train-2.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00 damaged")
    with pytest.raises(ValueError, match="damaged gzip"):
        run(corpus, tmp_path / "out" / "c.jsonl")
    assert list((tmp_path / "out").iterdir()) == []


def test_unknown_language(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("py3langid")
    with pytest.raises(ValueError, match="lang='english': wants an ISO"):
        run(corpus, tmp_path / "c.jsonl", lang="english")
