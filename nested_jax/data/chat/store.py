"""Files of conversations as token shards with masks, built once in the cache.

Names of files tell splits (``train.jsonl``, ``valid.jsonl.gz``). Where none is named after the
held-out split, a conversation of the others is held out by the hash of its content; what is named
test is never trained on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nested_jax.config.run import ChatConfig
from nested_jax.data.cache import Report, build_once
from nested_jax.data.chat.templates import TEMPLATES, Part, messages_of
from nested_jax.data.prepare.inject import Injected, Injection, check_symbols, inject
from nested_jax.data.prepare.shard_block import document_of
from nested_jax.data.records import json_rows
from nested_jax.data.shards import (
    FORMAT,
    INDEX,
    NO_EXTRA,
    Document,
    Shard,
    TokenStore,
    open_store,
    write_index,
    write_shard,
)
from nested_jax.data.splits import SPLITS, split_of_content, split_of_path
from nested_jax.data.streams import file_format
from nested_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from nested_jax.errors import require
from nested_jax.files import file_sha256

SEGMENT = "chat"
ANNOTATION = re.compile(r"<<[^>]*>>")  # GSM8K's calculations, beside the text
GROUP = 1024  # conversations that are encoded at a time
BLOCK = 64 * GROUP  # conversations that are held at a time, and are a shard per split


class Example(NamedTuple):
    """A conversation as text, and what its answers stood for before domain tokens came in."""

    split: str
    parts: list[Part]
    injected: dict[int, Injected]  # answers with domain tokens, by the number of their part


def chat_files(path: Path) -> list[Path]:
    """Return the JSON lines that `path` is or holds, in order; none of a folder of shards."""
    if (path / INDEX).is_file():
        return []
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sorted(p for p in files if file_format(p) in (".jsonl", ".ndjson"))


def chat_store(cache: Path, path: Path, cfg: ChatConfig, report: Report) -> TokenStore:
    """Return the shards of conversations, building them in `cache` if need be.

    Raises:
      ValueError: a line that fits no template, with its place; no tokenizer, or one without the
        domain tokens; no conversation for a split.
    """
    want = "wants the run or the file whose tokenizer reads the examples, that of train.init_from"
    require(bool(cfg.tokenizer), "data.chat.tokenizer", cfg.tokenizer, want)
    tokenizer = load_tokenizer(cfg.tokenizer)
    if injection_of(cfg).rewrites:
        check_symbols(tokenizer, injection_of(cfg))
    files = chat_files(path)
    about = [FORMAT, asdict(replace(cfg, tokenizer="")), tokenizer.hash]
    about += [(file.name, file_sha256(file)) for file in files]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]

    def build(folder: Path) -> None:
        write_examples(folder, path, files, cfg, tokenizer, report)

    target = cache / f"chat-{key}"
    return open_store(build_once(target, build, report, lambda p: (p / INDEX).is_file()))


def injection_of(cfg: ChatConfig) -> Injection:
    return Injection(cfg.condition, scheme="facts", rule=cfg.rule)


def write_examples(
    folder: Path,
    path: Path,
    files: Sequence[Path],
    cfg: ChatConfig,
    tokenizer: Tokenizer,
    report: Report,
) -> None:
    """Write the shards of all examples, one per split, and their index."""
    counts: Counter[str] = Counter()
    shards: list[Shard] = []
    stream = examples(path, files, cfg, counts)
    for number in itertools.count():
        block = list(itertools.islice(stream, BLOCK))
        for split in SPLITS if block else ():
            if found := [example for example in block if example.split == split]:
                texts = documents(found, cfg, tokenizer)
                shards.append(write_shard(folder, SEGMENT, split, number, texts, tokenizer))
        if len(block) < BLOCK:
            break
    sizes = Counter(
        {split: sum(s.documents for s in shards if s.split == split) for split in SPLITS}
    )
    for split in ("train", "valid"):
        want = f"has no conversation for the {split} split, of {counts['examples']} in all"
        require(sizes[split] > 0, "data.source", str(path), want)
    injected = {"injection": {**asdict(injection_of(cfg)), **counts}}
    source = {"name": SEGMENT, "source": str(path), "chat": asdict(cfg)}
    write_index(
        folder, shards, tokenizer, source | (injected if cfg.condition != "baseline" else {})
    )
    said = ", ".join(f"{count:,} {split}" for split, count in sizes.items())
    report(f"{counts['examples']:,} examples of {path} ({said})")


def examples(
    path: Path, files: Sequence[Path], cfg: ChatConfig, counts: Counter[str]
) -> Iterator[Example]:
    """Yield the conversations of the files, of each the first ``limit``, and count them."""
    root = path if path.is_dir() else path.parent
    named = {file: split_of_path(file.relative_to(root)) for file in files}
    template, injection = TEMPLATES[cfg.template], injection_of(cfg)
    for file in files:
        for where, row in itertools.islice(json_rows(file), cfg.limit or None):
            parts, injected = template.parts(messages_of(row, where)), {}
            split = named[file]
            if split is None or (split == "train" and "valid" not in named.values()):
                by_content = split_of_content(json.dumps([part.text for part in parts]))
                split = by_content if split is None or by_content == "valid" else split
            for number, part in enumerate(parts):
                if part.answer:
                    text = (
                        ANNOTATION.sub("", part.text) if cfg.annotations == "strip" else part.text
                    )
                    injected[number] = inject(text, injection)
                    counts.update(injected[number].counts)
                    parts[number] = Part(injected[number].text, True)
            counts["examples"] += 1
            yield Example(split, parts, injected)


def documents(
    found: Sequence[Example], cfg: ChatConfig, tokenizer: Tokenizer
) -> Iterator[Document]:
    """Yield the examples as tokens, with the masks of what is learned."""
    injection = injection_of(cfg)
    facts = [tokenizer.id_of(symbol) for symbol in injection.symbols if injection.rewrites]
    known = (facts, tokenizer.piece_byte_lengths)
    for start in range(0, len(found), GROUP):
        group = found[start : start + GROUP]
        encoded = iter(tokenizer.encode_batch([p.text for e in group for p in e.parts]))
        for example in group:
            parts = [
                document_of(ids, example.injected.get(number, Injected("", Counter())), known)
                for number, ids in enumerate(itertools.islice(encoded, len(example.parts)))
            ]
            yield joined(parts, example.parts, cfg.eos, tokenizer.eos_id)


def joined(encoded: Iterable[Document], parts: Sequence[Part], eos: str, eos_id: int) -> Document:
    """Return the parts as one document: answers are learned, and the EOS that ends one.

    EOS is masked by its place, never by its id: it is learned where an answer ends, also at the end
    of the document, where the shard adds it.
    """
    ids: list[int] = []
    mask: list[int] = []
    extras = [NO_EXTRA]
    for number, (part, document) in enumerate(zip(parts, encoded, strict=True)):
        if document.extra is not None:
            extras.append(document.extra + np.array([len(ids), 0]))
        ids += [int(token) for token in document.ids]
        mask += [int(part.answer)] * len(document.ids)
        if part.answer and eos == "every_turn" and number + 1 < len(parts):
            ids.append(eos_id)
            mask.append(1)
    mask.append(int(parts[-1].answer))
    return Document(ids, np.concatenate(extras), np.array(mask, np.uint8))


def describe(store: TokenStore, seq_len: int) -> str:
    """Return in words how many training examples there are, and how many a row cuts."""
    files = [store.root / shard.offsets_file for shard in store.select("train")]
    sizes = np.concatenate([np.diff(np.fromfile(file, np.int64)) for file in files])
    cut = int((sizes > seq_len).sum())
    said = f"; {cut:,} are longer than data.seq_len={seq_len} and lose their end" if cut else ""
    return f"{len(sizes):,} training examples, {sizes.sum():,} tokens{said}"
