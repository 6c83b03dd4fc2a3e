"""A tokenizer from several corpora, and the report that says how well it covers a text."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nested_jax.data.cache import Report
from nested_jax.data.manifest import SourceSpec
from nested_jax.data.prepare.inject import SYMBOLS
from nested_jax.data.prepare.text_sources import fingerprint, plan_hash, records
from nested_jax.data.records import Problems, checked_row, read_object
from nested_jax.data.shards import TOKENIZER
from nested_jax.data.streams import text_lines
from nested_jax.data.tokenizers.tokenizer import Tokenizer, train_tokenizer
from nested_jax.errors import require
from nested_jax.files import PARTIAL, hold, replace_file, write_bytes, write_json

SYMBOL_SETS = {"mul_tokens": SYMBOLS["pairs"], "facts": SYMBOLS["facts"]}
HISTOGRAM = 20  # piece lengths that the coverage report lists


@dataclass(frozen=True)
class TokenizerOptions:
    """How a tokenizer is trained."""

    vocab_size: int = 32_000
    model_type: Literal["bpe", "unigram", "gpt2"] = "bpe"  # gpt2: byte-level BPE
    character_coverage: float = 0.9995  # share of characters with a piece; the rest are bytes
    hard_vocab_limit: bool = True  # False: a text too small for the vocabulary gives a smaller one
    max_bytes: int = 256 << 20  # of text in all, in equal shares; it is held in memory
    symbols: tuple[str, ...] = ()  # user-defined symbols, or names of SYMBOL_SETS

    def __post_init__(self) -> None:
        share, symbols = self.character_coverage, self.symbols
        require(0.98 <= share <= 1, "character_coverage", share, "wants a share in [0.98, 1]")
        require(self.max_bytes >= 1, "max_bytes", self.max_bytes, "wants 1 or more")
        require(len(set(symbols)) == len(symbols), "symbols", symbols, "wants different ones")


def train_on_sources(
    sources: Sequence[SourceSpec], folder: Path, options: TokenizerOptions, report: Report
) -> Tokenizer:
    """Train on the beginning of every source; write ``tokenizer.model`` and ``tokenizer.json``.

    Held-out documents that a source knows are not read.

    Raises:
      HeldError: another process trains one there.
      ValueError: what `records` and `train_tokenizer` raise.
    """
    counts: Counter[str] = Counter()
    problems = {spec.name: Problems(spec) for spec in sources}
    share = options.max_bytes // len(sources)

    def texts() -> Iterator[str]:
        for spec in sources:
            report(f"[tokenizer] reading {spec.name}")
            for text in sample(spec, share, problems[spec.name], report):
                counts[spec.name] += 1
                yield text
            if not counts[spec.name]:
                raise ValueError(f"{spec.dataset}: no text to train on{problems[spec.name].lost()}")

    symbols = named_symbols(options.symbols)
    file = folder / TOKENIZER
    folder.mkdir(parents=True, exist_ok=True)
    with hold(file.with_name(f"{TOKENIZER}.lock"), str(file)):
        tokenizer = train_tokenizer(
            texts(),
            options.vocab_size,
            symbols=symbols,
            character_coverage=options.character_coverage,
            model_type=options.model_type,
            hard_vocab_limit=options.hard_vocab_limit,
            max_bytes=options.max_bytes,
        )
        draft = file.with_name(f"{TOKENIZER}{PARTIAL}")
        write_bytes(draft, tokenizer.model)
        replace_file(draft, file, report)
        log = {
            "plan": tokenizer_plan(sources, options),
            "model": str(file),
            "sha256": tokenizer.hash,
            "vocab_size": tokenizer.vocab_size,
            "datasets": [
                {"name": spec.name, "dataset": spec.dataset, "samples": counts[spec.name]}
                for spec in sources
            ],
        }
        write_json(folder / "tokenizer.json", log)
    what = f"{tokenizer.vocab_size} symbols, {tokenizer.hash[:12]}, in {folder}"
    unread = (f"{name}: {met.summary()}" for name, met in problems.items() if met.summary())
    report("; ".join([f"[tokenizer] {what}", *unread]))
    return tokenizer


def named_symbols(names: Sequence[str]) -> tuple[str, ...]:
    """Return symbols, with those of a set of `SYMBOL_SETS` in the place of its name."""
    return tuple(s for name in names for s in SYMBOL_SETS.get(name, (name,)))


def tokenizer_plan(sources: Sequence[SourceSpec], options: TokenizerOptions) -> str:
    """Return a hash of all that decides a tokenizer."""
    return plan_hash(asdict(options), [fingerprint(spec) for spec in sources])


def sample(spec: SourceSpec, max_bytes: int, problems: Problems, report: Report) -> Iterator[str]:
    """Yield training documents of a source, up to its `sample_limit` and to `max_bytes`."""
    left, count = max_bytes, 0
    with closing(records(spec, problems, report)) as source:
        for record in source:
            if record.split in ("valid", "test"):
                continue
            if left <= 0 or (spec.sample_limit and count >= spec.sample_limit):
                return
            count += 1
            left -= len(record.text.encode())
            yield record.text


def coverage(tokenizer: Tokenizer, sample_file: Path, max_lines: int) -> dict[str, Any]:
    """Return how the words of a text file fall into tokens, as fractions and averages.

    A word is encoded with the space before it, as it stands in running text.

    Raises:
      ValueError: a file without a word, or that is not UTF-8.
    """
    require(max_lines >= 0, "max_lines", max_lines, "wants 0 (all) or more")
    if not sample_file.is_file():
        raise ValueError(f"sample_file={str(sample_file)!r}: no such file")
    lines, tokens, characters = 0, [], 0
    lengths: Counter[int] = Counter()
    for line in itertools.islice(text_lines(sample_file), max_lines or None):
        lines += 1
        words = line.split()
        characters += sum(map(len, words))
        for ids in tokenizer.encode_batch([f" {word}" for word in words]):
            tokens.append(len(ids))
            lengths.update(len(tokenizer.piece(i)) for i in ids)
    if not tokens:
        raise ValueError(f"sample_file={str(sample_file)!r}: has no words")
    total = len(tokens)
    return {
        "tokenizer": tokenizer.hash,
        "sample_file": str(sample_file),
        "lines_processed": lines,
        "total_words": total,
        "total_tokens": sum(tokens),
        "avg_tokens_per_word": sum(tokens) / total,
        "pct_single_token_words": sum(n == 1 for n in tokens) / total,
        "pct_two_or_less_tokens_words": sum(n <= 2 for n in tokens) / total,
        "avg_chars_per_word": characters / total,
        "piece_length_histogram": dict(sorted(lengths.most_common(HISTOGRAM))),
    }


def coverage_violations(
    found: Mapping[str, Any],
    baseline_file: Path,
    *,
    avg_tokens_tolerance: float,
    single_token_drop_tolerance: float,
    two_token_drop_tolerance: float,
) -> list[str]:
    """Return one line for every measure that is worse than the baseline's by more than allowed."""
    baseline = read_object(baseline_file)
    limits = (  # name, sign of "worse", tolerance
        ("avg_tokens_per_word", 1, avg_tokens_tolerance),
        ("pct_single_token_words", -1, single_token_drop_tolerance),
        ("pct_two_or_less_tokens_words", -1, two_token_drop_tolerance),
    )
    for name, _, tolerance in limits:
        checked_row(baseline, str(baseline_file), **{name: float})
        require(0 <= tolerance < math.inf, f"tolerance of {name}", tolerance, "wants 0 or more")
    return [
        f"{name}: {found[name]:.4f}, baseline {baseline[name]:.4f}, tolerance {tolerance:g}"
        for name, sign, tolerance in limits
        if sign * (found[name] - baseline[name]) > tolerance
    ]
