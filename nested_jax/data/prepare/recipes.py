"""The recipes `sample` and `full`: filter, train the tokenizer, shard, mix and check, in one go.

A stage whose result is there for the same settings is not run again. Settings come from flags and,
below them, from the environment: those of a source as in `manifest.from_environment`, KEY_OUTPUT
for its filtered file and NL_SHARD_DIR_KEY for its shards, and the names in `RecipeOptions`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from nested_jax.data.cache import Report
from nested_jax.data.manifest import Manifest, SourceSpec, load_manifest, parse
from nested_jax.data.mixture import open_mixture, shard_folder, write_mixture
from nested_jax.data.prepare.audit import validate
from nested_jax.data.prepare.corpus_tokenizer import (
    TokenizerOptions,
    tokenizer_plan,
    train_on_sources,
)
from nested_jax.data.prepare.filtering import FilterOptions, filter_plan, filter_source, report_path
from nested_jax.data.prepare.shard_block import ShardOptions
from nested_jax.data.prepare.shard_corpus import shard_source, shard_stats
from nested_jax.data.records import read_object
from nested_jax.data.shards import INDEX, TOKENIZER, open_store
from nested_jax.data.text.stdlib_text import collect, stdlib_root
from nested_jax.data.tokenizers.tokenizer import load_tokenizer
from nested_jax.files import hold_folder, write_json


@dataclass(frozen=True)
class RecipeOptions:
    """Settings of a recipe; each can be set by the variable named beside it."""

    out: Path  # everything is written below it
    vocab_size: int = 2048  # VOCAB_SIZE
    force_filter: bool = False  # FORCE_FILTER: filter again what is filtered
    retrain_tokenizer: bool = False  # RETRAIN_TOKENIZER
    tokenizer_model: str = ""  # TOKENIZER_MODEL: use this one, train none
    tokenizer_output_dir: str = ""  # TOKENIZER_OUTPUT_DIR; "" is OUT/tokenizer
    tokenizer_manifest: str = (
        ""  # TOKENIZER_MANIFEST: train on its sources; "" is the filtered ones
    )
    tokenizer_log: str = ""  # TOKENIZER_LOG; "" is beside the tokenizer
    mixture_config: str = ""  # MIXTURE_CONFIG: manifest with the weights; "" is the recipe's own
    shard_log: str = ""  # SHARD_LOG; "" is OUT/shards.json
    overlap_threshold: float = 0.05  # share of common text that the report warns of
    seq_len: int = 2048  # of the rows that the shard log counts
    filtering: FilterOptions = field(default_factory=FilterOptions)
    sharding: ShardOptions = field(default_factory=ShardOptions)
    symbols: tuple[str, ...] = ()  # user-defined symbols of the tokenizer


ENV_OPTIONS = (
    "vocab_size",
    "force_filter",
    "retrain_tokenizer",
    "tokenizer_model",
    "tokenizer_output_dir",
    "tokenizer_manifest",
    "tokenizer_log",
    "mixture_config",
    "shard_log",
)


class Prepared(NamedTuple):
    """What a recipe has made."""

    mixture: Path
    tokenizer: Path
    report: dict[str, Any]
    unread: dict[str, str]  # by source: what the filter could not read, "" for nothing


def options_from_environment(options: RecipeOptions) -> RecipeOptions:
    """Return the options with those that the environment sets; 0 and 1 stand for no and yes."""
    kinds = {f.name: type(getattr(options, f.name)) for f in fields(options)}
    changes: dict[str, Any] = {}
    for name in ENV_OPTIONS:
        text = os.environ.get(name.upper())
        if text:
            kind = kinds[name]
            changes[name] = (
                bool(parse(name.upper(), text, int))
                if kind is bool
                else parse(name.upper(), text, kind)
            )
    return replace(options, **changes)


def run_recipe(
    manifest: Manifest, options: RecipeOptions, report: Report, limits: Mapping[str, int]
) -> Prepared:
    """Prepare the mixture of a manifest below ``options.out``.

    Args:
      limits: documents per source, by its name or key; "" is all others.
    Raises:
      HeldError: another process prepares data there.
      ValueError: what the stages raise.
    """
    sources = with_limits(present(manifest.sources, report), limits)
    mixed = with_weights(sources, options.mixture_config)
    if options.tokenizer_model:
        load_tokenizer(options.tokenizer_model)
    with hold_folder(options.out):
        ready = {spec.name: spec for spec in sources if has_own_shards(spec)}
        unread: dict[str, str] = {}
        filtered = [
            ready.get(spec.name) or filter_stage(spec, options, unread, report) for spec in sources
        ]
        tokenizer_path = tokenizer_stage(filtered, options, report)
        folders = shard_stage(filtered, ready, tokenizer_path, options, report)
        mixture = options.out / "mixture.json"
        write_mixture(Manifest(manifest.name, tuple(mixed)), folders, mixture)
        report("[validate] every shard, and what the sources share")
        found = validate(open_mixture(mixture), options.overlap_threshold)
        write_json(options.out / "validation.json", found)
        for entry in found["content_overlap"]:
            if "warning" in entry:
                report(f"WARNING: {' and '.join(entry['pair'])}: {entry['warning']}")
    return Prepared(mixture, tokenizer_path, found, unread)


def present(sources: Sequence[SourceSpec], report: Report) -> list[SourceSpec]:
    """Leave out segments that the embedded text lacks: a stock Python may have no tests."""
    if not any(spec.dataset.startswith("stdlib:") for spec in sources):
        return list(sources)
    known = {document.segment for document in collect(stdlib_root()).documents}
    kept = []
    for spec in sources:
        segment = spec.dataset.removeprefix("stdlib:")
        if spec.dataset.startswith("stdlib:") and segment not in known:
            report(f"{spec.name}: this Python's library has no segment {segment!r}; left out")
        else:
            kept.append(spec)
    return kept


def with_limits(sources: Sequence[SourceSpec], limits: Mapping[str, int]) -> list[SourceSpec]:
    """Apply limits by name or key.

    Raises:
      ValueError: a limit for a source that is not there.
    """
    names = {name for spec in sources for name in (spec.name, spec.env_key)}
    for name in limits:
        if name and name not in names:
            raise ValueError(
                f"--limit {name}=...: no such source; known: {', '.join(sorted(names))}"
            )
    return [
        replace(
            spec,
            limit=limits.get(spec.name, limits.get(spec.env_key, limits.get("", spec.limit))),
        )
        for spec in sources
    ]


def with_weights(sources: Sequence[SourceSpec], manifest: str) -> list[SourceSpec]:
    """Return the sources with the weights that another manifest gives them by name."""
    given = {spec.name: spec.weight for spec in load_manifest(manifest).sources} if manifest else {}
    return [replace(spec, weight=given.get(spec.name, spec.weight)) for spec in sources]


def has_own_shards(spec: SourceSpec) -> bool:
    """Return whether NL_SHARD_DIR_KEY names shards that are ready."""
    folder = os.environ.get(f"NL_SHARD_DIR_{spec.env_key}")
    return bool(folder) and (Path(str(folder)) / INDEX).is_file()


def filter_stage(
    spec: SourceSpec, options: RecipeOptions, unread: dict[str, str], report: Report
) -> SourceSpec:
    """Filter a source, unless that is done, and return the source that reads the result."""
    default = options.out / "filtered" / f"{spec.name}.jsonl"
    output = Path(os.environ.get(f"{spec.env_key}_OUTPUT") or default)
    if not options.force_filter and output.is_file() and report_path(output).is_file():
        done = read_report(report_path(output))
        if done["plan"] == filter_plan(spec, options.filtering):
            report(f"[filter] {spec.name}: {output} is up to date")
            unread[spec.name] = done["unread"]
            return filtered_source(spec, output)
        report(f"[filter] {spec.name}: settings or source changed, filtering again")
        output.unlink()  # of this recipe, and in place of it; elsewhere an old file is set aside
    unread[spec.name] = filter_source(spec, output, options.filtering, report).unread
    return filtered_source(spec, output)


def read_report(path: Path) -> dict[str, Any]:
    """Return what an earlier filter reported; no plan where it is damaged or of an old version."""
    try:
        return read_object(path, plan=str, unread=str)
    except ValueError:
        return {"plan": None, "unread": ""}


def filtered_source(spec: SourceSpec, output: Path) -> SourceSpec:
    return replace(
        spec, dataset=str(output), text_column="text", limit=0, subset="", split="", data_files=""
    )


def tokenizer_stage(sources: Sequence[SourceSpec], options: RecipeOptions, report: Report) -> Path:
    """Return the tokenizer: the one that is given, the one that is there, or a new one."""
    if options.tokenizer_model and not options.retrain_tokenizer:
        return Path(options.tokenizer_model)
    folder = Path(options.tokenizer_output_dir or options.out / "tokenizer")
    path = folder / TOKENIZER
    if options.tokenizer_manifest:
        sources = load_manifest(options.tokenizer_manifest).sources
    settings = TokenizerOptions(vocab_size=options.vocab_size, symbols=options.symbols)
    if path.is_file() and not options.retrain_tokenizer:
        if trained_as(folder) == tokenizer_plan(sources, settings):
            report(f"[tokenizer] keeping {path} (--retrain-tokenizer trains it again)")
            return path
        report(f"[tokenizer] {path} is of other text or settings, training again")
    train_on_sources(sources, folder, settings, report)
    if options.tokenizer_log:
        write_json(Path(options.tokenizer_log), json.loads((folder / "tokenizer.json").read_text()))
    return path


def trained_as(folder: Path) -> str:
    """Return the plan of the tokenizer that is there; "" where it is not known."""
    try:
        return read_object(folder / "tokenizer.json", plan=str)["plan"]
    except ValueError:
        return ""


def shard_stage(
    sources: Sequence[SourceSpec],
    ready: Mapping[str, SourceSpec],
    tokenizer_path: Path,
    options: RecipeOptions,
    report: Report,
) -> dict[str, Path]:
    """Shard every source that is not ready, write the log, and return the folders."""
    folders, log = {}, []
    for spec in sources:
        folder = folders[spec.name] = shard_folder(spec, options.out / "shards")
        if spec.name in ready:
            report(f"[shard] {spec.name}: taking the shards of {folder}")
            store = open_store(folder)
        else:
            store = shard_source(spec, tokenizer_path, folder, options.sharding, report, force=True)
        log.append(shard_stats(store, spec, options.seq_len))
    target = Path(options.shard_log or options.out / "shards.json")
    write_json(target, {"manifest": str(options.out), "stats": log})
    return folders
