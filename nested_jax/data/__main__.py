"""Prepare data: ``python -m nested_jax.data COMMAND --help``.

    sample, full   recipes: filter, train a tokenizer, shard, mix and check, in one go
    filter         raw text -> JSON lines of what is kept, and what each rule dropped
    tokenizer      train a tokenizer on one source or on a manifest
    shard          text -> token shards
    mixture        a manifest and its shards -> mixture.json
    validate       check shards and mixtures in full, and what sources share
    stats          counts of shards, of a mixture or of the embedded text
    vocabulary     GPT-2's published vocabulary, with symbols of your own: how to get it, or get it
    check          the hash of a tokenizer
    coverage       how words fall into tokens, and a guard against a baseline
    inject         rewrite chosen spans as symbols, and back
    conversations  of the Hub or of files -> JSON lines for fine-tuning
    engine         filter and shard on a Ray cluster, to any fsspec path
    copy           copy shards between folders and fsspec paths, verified

Exit status: 0 done, 2 bad input (or a check that failed).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from nested_jax.config import DataConfig
from nested_jax.data import mixture
from nested_jax.data.cache import cache_root
from nested_jax.data.manifest import Manifest, load_manifest, parse
from nested_jax.data.pipeline import open_data
from nested_jax.data.prepare import audit, corpus_tokenizer, flags, recipes, shard_corpus
from nested_jax.data.prepare.conversations import write_conversations
from nested_jax.data.prepare.engine import EngineOptions, copy_store, run_engine
from nested_jax.data.prepare.filtering import filter_source
from nested_jax.data.prepare.hf_source import download
from nested_jax.data.prepare.inject import rewrite_file
from nested_jax.data.shards import TOKENIZER, TokenStore
from nested_jax.data.tokenizers import gpt2_files
from nested_jax.data.tokenizers.byte_bpe import ByteBPE
from nested_jax.data.tokenizers.tokenizer import load_tokenizer
from nested_jax.files import write_bytes, write_json

MANIFESTS = Path(__file__).resolve().parents[2] / "configs" / "data"


def say(message: str) -> None:
    print(message, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m nested_jax.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add_flags, run) in COMMANDS.items():
        command = commands.add_parser(name, description=run.__doc__)
        add_flags(command)
        command.set_defaults(run=run)
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


# --- commands ------------------------------------------------------------------------------------


def run_filter(args: argparse.Namespace) -> int:
    """Filter sources into JSON lines."""
    sources = flags.sources_of(args)
    output = Path(args.output_path)
    for spec in sources:
        target = output / f"{spec.name}.jsonl" if args.manifest else output
        filter_source(spec, target, flags.filter_options(args), say)
    return 0


def run_tokenizer(args: argparse.Namespace) -> int:
    """Train a tokenizer."""
    folder = Path(args.output_dir)
    corpus_tokenizer.train_on_sources(
        flags.sources_of(args), folder, flags.tokenizer_options(args), say
    )
    if args.log_file:
        log = json.loads((folder / "tokenizer.json").read_text())
        write_json(Path(args.log_file), log)
    return 0


def run_shard(args: argparse.Namespace) -> int:
    """Write token shards of one source, or of every source of a manifest."""
    path, output = Path(args.tokenizer_path), Path(args.output_dir)
    path = path / TOKENIZER if path.is_dir() else path
    stats, unread = [], []
    for spec in flags.sources_of(args):
        folder = mixture.shard_folder(spec, output) if args.manifest else output
        if args.download:
            spec = download(spec, Path(args.download) / spec.name, say)
        options = flags.shard_options(args)
        store = shard_corpus.shard_source(spec, path, folder, options, say, force=args.force)
        stats.append(shard_corpus.shard_stats(store, spec, args.seq_len))
        unread.append((spec.name, store.source["unread"]))
    say(json.dumps(stats, indent=1))
    if args.log_file:
        log = {"manifest": args.manifest, "stats": stats}
        write_json(Path(args.log_file), log if args.manifest else stats[0])
    say_unread(unread)
    return 0


def say_unread(found: Iterable[tuple[str, str]]) -> None:
    """Print what could not be read of each source, as the last lines."""
    for name, unread in found:
        if unread:
            say(f"{name}: {unread}")


def run_mixture(args: argparse.Namespace) -> int:
    """Write the JSON of a mixture from shards that are there."""
    manifest = load_manifest(args.manifest)
    folders = {s.name: mixture.shard_folder(s, Path(args.shards)) for s in manifest.sources}
    made = mixture.write_mixture(manifest, folders, Path(args.output))
    say(f"{args.output}: {len(made['sources'])} sources; train with --config.data.source=")
    return 0


def opened(source: str) -> TokenStore:
    return open_data(DataConfig(source=source), say)


def emit(report: dict[str, Any], output: str) -> None:
    if output:
        write_json(Path(output), report)
    say(json.dumps(report, indent=1))


def run_validate(args: argparse.Namespace) -> int:
    """Check shards in full: files, hashes, documents, and text that sources share."""
    report = audit.validate(opened(args.manifest), args.overlap_threshold)
    emit({"manifest": args.manifest, **report}, args.output)
    return 0


def run_stats(args: argparse.Namespace) -> int:
    """Print the counts of a folder of shards, of a mixture, or of 'stdlib'."""
    emit(audit.stats(opened(args.source)), args.output)
    return 0


def run_vocabulary(args: argparse.Namespace) -> int:
    """Make the tokenizer of GPT-2's published vocabulary; without --out, say how to get it."""
    if not args.out:
        say(gpt2_files.HOW)
        return 0
    cached = cache_root() / "vocabularies"
    source = Path(args.source) if args.source else cached
    if args.fetch and not args.source:
        source = gpt2_files.fetch(cached, say)
    symbols = corpus_tokenizer.named_symbols(args.symbols)
    model = gpt2_files.gpt2_model(gpt2_files.read_ranks(source), symbols, args.size)
    tokenizer = ByteBPE(model)  # before anything is written
    target = Path(args.out) / TOKENIZER
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, model)
    say(f"{target}: {tokenizer.vocab_size} symbols, sha256 {tokenizer.hash}")
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Print and verify the hash of a tokenizer."""
    tokenizer = load_tokenizer(args.tokenizer_path)
    if args.metadata_json:
        known = {"tokenizer_path": args.tokenizer_path, "sha256": tokenizer.hash}
        write_json(Path(args.metadata_json), known)
    if not args.quiet:
        say(f"{tokenizer.hash}  {args.tokenizer_path}")
    if args.expected_sha256 and args.expected_sha256 != tokenizer.hash:
        raise ValueError(
            f"{args.tokenizer_path}: sha256 {tokenizer.hash}, expected {args.expected_sha256}"
        )
    return 0


def run_coverage(args: argparse.Namespace) -> int:
    """Report how words fall into tokens, and compare with a baseline."""
    tokenizer = load_tokenizer(args.tokenizer_path)
    report = corpus_tokenizer.coverage(tokenizer, Path(args.sample_file), args.max_lines)
    if args.baseline:
        report["baseline"] = args.baseline
        report["violations"] = corpus_tokenizer.coverage_violations(
            report,
            Path(args.baseline),
            avg_tokens_tolerance=args.avg_tokens_tolerance,
            single_token_drop_tolerance=args.single_token_drop_tolerance,
            two_token_drop_tolerance=args.two_token_drop_tolerance,
        )
    emit(report, args.output)
    return 2 if report.get("violations") else 0


def run_inject(args: argparse.Namespace) -> int:
    """Rewrite the texts of a JSON lines file, or restore them."""
    counts = rewrite_file(
        Path(args.input),
        Path(args.output),
        flags.injection_of(args),
        column=args.text_column,
        restoring=args.restore,
    )
    emit({"input": args.input, "output": args.output, **counts}, "")
    return 0


def run_conversations(args: argparse.Namespace) -> int:
    """Write conversations as JSON lines for fine-tuning; --limit takes the first ones."""
    (spec,) = flags.sources_of(args)
    counts = write_conversations(spec, Path(args.output), say)
    emit({"dataset": spec.dataset, "output": args.output, **counts}, "")
    return 0


def run_engine_command(args: argparse.Namespace) -> int:
    """Filter and shard on Ray, one task per file, writing to any fsspec path."""
    options = EngineOptions(
        args.output_url,
        Path(args.tokenizer_path),
        args.address,
        flags.filter_options(args),
        flags.shard_options(args),
    )
    for spec in flags.sources_of(args):
        found = run_engine(spec, options, say)
        emit(found, "")
        say_unread([(spec.name, found["unread"])])
    return 0


def run_copy(args: argparse.Namespace) -> int:
    """Copy a folder of shards from or to any fsspec path, and verify the copy."""
    copy_store(args.source, args.target, say)
    return 0


def run_sample(args: argparse.Namespace) -> int:
    """Prepare a small mixture from what is on the machine."""
    spec = args.manifest or f"{MANIFESTS / 'sample.py'}:{args.root}"
    return run_recipe_command(args, load_manifest(spec), 2048)  # of pilot.py:smoke


def run_full(args: argparse.Namespace) -> int:
    """Prepare the full mixture from public corpora."""
    spec = args.manifest or str(MANIFESTS / "full.py")
    return run_recipe_command(args, load_manifest(spec), 32_000)


def run_recipe_command(args: argparse.Namespace, manifest: Manifest, vocab_size: int) -> int:
    out = Path(args.out) if args.out else cache_root() / "mixtures" / manifest.name
    defaults = recipes.RecipeOptions(
        out, vocab_size, filtering=flags.filter_options(args), sharding=flags.shard_options(args)
    )
    given: dict[str, Any] = {
        "vocab_size": args.vocab_size,
        "force_filter": args.force_filter,
        "retrain_tokenizer": args.retrain_tokenizer,
        "tokenizer_model": args.tokenizer_model,
    }
    options = dataclasses.replace(
        recipes.options_from_environment(defaults),
        symbols=tuple(args.symbols),
        overlap_threshold=args.overlap_threshold,
        seq_len=args.seq_len,
        **{name: value for name, value in given.items() if value},
    )
    limits = {}
    for text in args.limit:
        name, _, number = text.rpartition("=")
        limits[name] = parse("--limit", number, int)
    prepared = recipes.run_recipe(manifest, options, say, limits)
    say(
        f"done; train on it with\n  python launch.py --config configs/pilot.py:smoke "
        f"--config.data.source={prepared.mixture} "
        f"--config.model.vocab_size={load_tokenizer(prepared.tokenizer).vocab_size}"
    )
    say_unread(prepared.unread.items())
    return 0


Command = Callable[[argparse.Namespace], int]
COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Command]] = {
    "sample": (flags.recipe_flags, run_sample),
    "full": (flags.recipe_flags, run_full),
    "filter": (flags.filter_command_flags, run_filter),
    "tokenizer": (flags.tokenizer_flags, run_tokenizer),
    "shard": (flags.shard_command_flags, run_shard),
    "mixture": (flags.mixture_flags, run_mixture),
    "validate": (flags.validate_flags, run_validate),
    "stats": (flags.stats_flags, run_stats),
    "vocabulary": (flags.vocabulary_flags, run_vocabulary),
    "check": (flags.check_flags, run_check),
    "coverage": (flags.coverage_flags, run_coverage),
    "inject": (flags.inject_flags, run_inject),
    "conversations": (flags.conversation_flags, run_conversations),
    "engine": (flags.engine_flags, run_engine_command),
    "copy": (flags.copy_flags, run_copy),
}

if __name__ == "__main__":
    sys.exit(main())
