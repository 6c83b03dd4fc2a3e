"""The filter: a source in, JSON lines of what is kept out, and a count of what each rule dropped.

Two passes. The first reads the source once, applies the rules of each document in worker processes
and spools what passes beside a fixed-size signature; the second drops duplicates, which only the
whole corpus can tell, and writes the rest. A document takes 24 bytes of memory, whatever its size.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nested_jax.data.cache import Report
from nested_jax.data.manifest import SourceSpec, spec_dict
from nested_jax.data.prepare.dedupe import ENTRY, find_duplicates, signature
from nested_jax.data.prepare.filters import (
    RULES,
    Rules,
    check_language,
    drop_reason,
    word_drop_reason,
    words_of,
)
from nested_jax.data.prepare.overlap import eval_ngrams, overlaps
from nested_jax.data.prepare.parallel import blocks, ordered_map
from nested_jax.data.prepare.text_sources import (
    fingerprint,
    local_files,
    plan_hash,
    records,
    stats_of,
)
from nested_jax.data.records import Limit, Problems, Record, not_of_source
from nested_jax.data.streams import find_files
from nested_jax.errors import require
from nested_jax.files import hold, replace_file, whole_file, write_json

BLOCK_CHARS = 2 << 20  # of documents that one worker gets at a time


@dataclass(frozen=True)
class FilterOptions:
    """What is done beside a source's own rules."""

    similarity: float = 0.8  # Jaccard similarity of near duplicates; 0 keeps them
    dedup_window: int = 0  # documents back that an exact repetition counts; 0 is the whole corpus
    eval_files: tuple[str, ...] = ()  # task files whose 13-grams are removed
    workers: int = 1  # processes

    def __post_init__(self) -> None:
        require(0 <= self.similarity <= 1, "similarity", self.similarity, "wants [0, 1]")
        require(self.dedup_window >= 0, "dedup_window", self.dedup_window, "wants 0 or more")
        require(self.workers >= 1, "workers", self.workers, "wants 1 process or more")


class Judged(NamedTuple):
    """A block after the rules: what passed, and the names of what did not."""

    kept: list[Record]
    signatures: np.ndarray  # [kept] ENTRY
    dropped: Counter[str]


@dataclass
class FilterReport:
    """Counts of one filtered source, as its JSON report holds them."""

    name: str
    dataset: str
    output: str
    processed: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    kept_by_split: Counter[str] = field(default_factory=Counter)
    characters: int = 0
    problems: dict[str, Any] = field(default_factory=dict)
    unread: str = ""  # the problems in words
    evaluation: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Return the counts in one line, with what could not be read."""
        drops = ", ".join(f"{count} {name}" for name, count in sorted(self.dropped.items()))
        counts = f"processed={self.processed} kept={self.kept} (dropped: {drops or 'nothing'})"
        return f"{counts}; {self.unread}" if self.unread else counts


def rules_of(spec: SourceSpec) -> Rules:
    return replace(
        RULES[spec.rules],
        min_chars=spec.min_chars,
        max_chars=spec.max_chars,
        lang=spec.lang,
        lang_threshold=spec.lang_threshold,
    )


def judge(block: Sequence[Record], rules: Rules, ngrams: np.ndarray) -> Judged:
    """Apply the rules of single documents to a block. Pure; runs in workers and in engines."""
    kept, signatures, dropped = [], [], Counter[str]()
    for record in block:
        reason = drop_reason(record.text, rules)
        if reason is None:
            words = words_of(record.text)
            reason = word_drop_reason(words, rules)
            if reason is None and overlaps(words.hashes, ngrams):
                reason = "evaluation_overlap"
            if reason is None:
                kept.append(record)
                signatures.append(signature(words))
        if reason is not None:
            dropped[reason] += 1
    return Judged(kept, np.array(signatures, ENTRY), dropped)


def filter_source(
    spec: SourceSpec, output: Path, options: FilterOptions, report: Report
) -> FilterReport:
    """Filter one source into ``output`` (JSON lines: text, split) and ``output.report.json``.

    The output appears whole or not at all, and other contents that were there are set aside. The
    same input and options give the same bytes, whatever the number of workers.

    Raises:
      HeldError: another process writes this output.
      ValueError: what `records` raises; an unknown language; a task file that is not JSON lines;
        nothing is kept.
    """
    check_language(spec.lang)
    not_of_source(output, local_files(spec))
    evaluation = eval_ngrams(options.eval_files)
    result = FilterReport(spec.name, spec.dataset, str(output))
    if options.eval_files:
        result.evaluation = {**evaluation._asdict(), "hashes": len(evaluation.hashes)}
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        hold(output.with_name(f"{output.name}.lock"), str(output)),
        tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as name,
    ):
        folder = Path(name)
        judge_block = partial(judge, ngrams=evaluation.hashes)
        spool(spec, folder, judge_block, options, result, report)
        write_kept(folder, options, result)
        replace_file(folder / "kept", output, report)
        body = {
            **vars(result),
            "plan": filter_plan(spec, options),
            "source": spec_dict(spec),
            "options": asdict(options),
        }
        write_json(report_path(output), body)
    report(f"[filter] {spec.name}: {result.line()}")
    return result


def filter_plan(spec: SourceSpec, options: FilterOptions) -> str:
    """Return a hash of all that decides the output of `filter_source`."""
    tasks = sorted({file for path in options.eval_files for file in find_files(path)})
    settings = {**asdict(options), "workers": None}
    return plan_hash(fingerprint(spec), settings, stats_of(tasks))


def report_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.report.json")


def spool(
    spec: SourceSpec,
    folder: Path,
    judge_block: Any,
    options: FilterOptions,
    result: FilterReport,
    report: Report,
) -> None:
    """Write what passes the rules to ``folder/texts``, its signatures to ``folder/signatures``."""
    problems = Problems(spec)
    limit = Limit(spec.limit)
    source = blocks(records(spec, problems, report), BLOCK_CHARS)
    work = partial(judge_block, rules=rules_of(spec))
    with (
        open(folder / "texts", "wb") as texts,
        open(folder / "signatures", "wb") as signatures,
        closing(ordered_map(work, source, options.workers)) as judged_blocks,
    ):
        for judged in judged_blocks:
            result.dropped.update(judged.dropped)
            result.processed += len(judged.kept) + judged.dropped.total()
            for record, entry in zip(judged.kept, judged.signatures, strict=True):
                if limit.admits(record):
                    texts.write(json_line(record))
                    signatures.write(entry.tobytes())
                else:
                    result.dropped["over_limit"] += 1
            if limit.full:
                break
    result.problems, result.unread = problems.as_dict(), problems.summary()


def json_line(record: Record) -> bytes:
    row = {"text": record.text} if record.split is None else record._asdict()
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def write_kept(folder: Path, options: FilterOptions, result: FilterReport) -> None:
    """Copy the spooled documents that are no duplicates to ``folder/kept``."""
    size = (folder / "signatures").stat().st_size
    entries = np.memmap(folder / "signatures", ENTRY, "r") if size else np.empty(0, ENTRY)
    duplicates = find_duplicates(entries, options.similarity, options.dedup_window)
    result.dropped["exact_duplicate"] += int(duplicates.exact.sum())
    result.dropped["near_duplicate"] += int(duplicates.near.sum())
    drop = duplicates.exact | duplicates.near
    with open(folder / "texts", "rb") as texts, whole_file(folder / "kept") as kept:
        for number, line in enumerate(texts):
            if not drop[number]:
                count_kept(line, result)
                kept.write(line)
        require(result.kept > 0, "dataset", result.dataset, f"nothing is kept: {result.line()}")


def count_kept(line: bytes, result: FilterReport) -> None:
    row = json.loads(line)
    result.kept += 1
    result.kept_by_split[row.get("split") or "by content"] += 1
    result.characters += len(row["text"])
