"""Read documents once, and keep what was learned: ``python -m nested_jax.read --checkpoint RUN
--files FOLDER --state memory.npz``.

    --checkpoint RUN      a model with memories; `python -m nested_jax.hub retrofit` gives it some
    --files NAME ...      files, folders, globs, or stdlib:SEGMENT, read in this order
    --state FILE          what was learned is written here; `generate` and `python -m eval` take it
    --from FILE           begin with what an earlier --state has; it may be the same file
    --each                a reader of its own for every document, all in one file
    --documents N         read no more than so many (0: all)

Exit status: 0 done, 1 nothing was written, 2 bad input.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nested_jax.config import Config, ModelConfig, TeachConfig
from nested_jax.errors import NotWrittenError, require
from nested_jax.hub.texts import documents
from nested_jax.machine import quiet_libraries
from nested_jax.models.lm import LanguageModel, build_model, uses_slots
from nested_jax.models.memories import begin, learned, load_memory, pick, save_memory
from nested_jax.models.state import State
from nested_jax.ops.chunking import where_rows
from nested_jax.teach import flush, teach
from nested_jax.train.opened import Opened, open_checkpoint
from nested_jax.train.stop_rules import DIVERGENCE_MARGIN
from nested_jax.train.watch.progress import Clock
from nested_jax.types import PyTree

PIECE = 1024  # tokens of a row in one call, rounded to whole chunks
ROWS = 16  # readers that read at once
EVERY = 2.0  # seconds between two lines of progress

Report = Callable[[str], None]


class Learned(NamedTuple):
    """What readers have made of their texts."""

    memory: State
    nats: list[np.ndarray]  # of every token but the first, each before the write that it causes
    writes: np.ndarray  # of each level and reader


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nested_jax.read",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, type=Path)
    parser.add_argument("--files", required=True, nargs="+")
    parser.add_argument("--state", required=True, type=Path)
    parser.add_argument("--from", dest="begin", type=Path)
    parser.add_argument("--each", action="store_true")
    parser.add_argument("--documents", type=int, default=0)
    flags = parser.parse_args(arguments)
    quiet_libraries()
    try:
        run(flags, say)
    except NotWrittenError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def run(flags: argparse.Namespace, report: Report) -> None:
    """Read, and write the memory.

    Raises:
      ValueError: a model without memories, nothing to read, a text shorter than a chunk, a loss
        that is not finite; nothing is kept then.
      NotWrittenError: nothing was written.
    """
    require(flags.documents >= 0, "--documents", flags.documents, "wants 0 (all) or more")
    taken = flags.state.exists() and flags.begin != flags.state
    require(not taken, "--state", str(flags.state), "exists; wants a new file, or --from it")
    require(flags.state.parent.is_dir(), "--state", str(flags.state), "wants a folder that exists")
    opened = open_checkpoint(flags.checkpoint)
    model, cfg = build_model(opened.cfg.model), opened.cfg
    want = "has no CMS levels; `python -m nested_jax.hub retrofit` gives it some"
    require(model.cfg.fast_layers > 0, "--checkpoint", str(flags.checkpoint), want)
    names, streams = read_files(opened, flags)
    memory = None
    if flags.begin is not None:
        memory, about = load_memory(flags.begin, model, opened.params, opened.named, "--from")
        memory = pick(memory, about, None, "--from")
    done, total = [], sum(len(x) - 1 for x in streams)
    progress = Progress(report, total)
    for i in range(0, len(streams), ROWS):
        part = streams[i : i + ROWS]
        done.append(read(model, opened.params, cfg, part, memory, progress))
        progress.before += sum(len(x) - 1 for x in part)
    writes = np.concatenate([x.writes for x in done], axis=1)
    if not writes.any():
        raise NotWrittenError(
            f"--files: nothing was written; no chunk reached teach.surprise_threshold="
            f"{cfg.teach.surprise_threshold}"
        )
    whole = jax.tree.map(lambda *x: jnp.concatenate(x), *[x.memory for x in done])
    about = {**opened.named, "from": f"{opened.workdir}, step {opened.step}", "readers": names}
    save_memory(flags.state, whole, {**about, "tokens": total})
    nats = np.concatenate([x for part in done for x in part.nats])
    report(
        f"{flags.state}: {len(names)} reader(s) of {total:,} tokens, "
        f"{nats.mean() / math.log(2):.4f} bits per token while reading, writes of each level "
        f"{writes.sum(axis=1).tolist()}"
    )


def read_files(opened: Opened, flags: argparse.Namespace) -> tuple[list[str], list[np.ndarray]]:
    """Return the names of the readers, and what each of them reads."""
    tokenizer = opened.text_tokenizer
    found = (
        (f"{name}#{i}", text)
        for name in flags.files
        for i, text in enumerate(documents(name, "--files"))
    )
    texts = [
        (name, np.asarray([tokenizer.eos_id, *tokenizer.encode(text)], np.int32))
        for name, text in itertools.islice(found, flags.documents or None)
    ]
    require(len(texts) > 0, "--files", flags.files, "has no document")
    if not flags.each:
        texts = [("all", np.concatenate([tokens for _, tokens in texts]))]
    for name, tokens in texts:
        check_length(tokens, opened.cfg.teach, f"{name} of --files")
    return [name for name, _ in texts], [tokens for _, tokens in texts]


def check_length(tokens: np.ndarray, teaching: TeachConfig, name: str) -> None:
    want = f"wants at least a chunk of teach.chunk={teaching.chunk}, and the token after it"
    require(len(tokens) > teaching.chunk, name, f"{len(tokens)} tokens", want)


def read(
    model: LanguageModel,
    params: PyTree,
    cfg: Config,
    texts: Sequence[np.ndarray],
    memory: State | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Learned:
    """Read texts, one reader for each, and return what they have learned.

    Every reader has a memory of its own. Where full attention holds no more, its context is
    cleared, and what was learned stays.

    Args:
      memory: that the readers begin with, of one row or one for each; None is fresh.
      progress: given the tokens read so far and their nats.
    Raises:
      ValueError: a loss that is not finite: the rates are too high for this text.
    """
    teaching = written(cfg.teach)
    step = jax.jit(partial(teach, model, cfg=teaching), donate_argnums=1)
    close = jax.jit(partial(flush, model, cfg=teaching))
    size, room = piece_size(model.cfg, teaching)
    init = jax.jit(lambda p: model.init_state(p, len(texts), room))
    state = init(params)
    if memory is not None:
        state = begin(model, state, memory)
    parts: list[list[np.ndarray]] = [[] for _ in texts]
    used, seen, total = 0, 0, 0.0
    for tokens_BT, targets_BT, lengths_B in pieces(texts, size):
        if uses_slots(model.cfg) and used + size > room:
            ended = jnp.asarray(lengths_B == 0)
            state = where_rows(ended, close(params, state), state)
            state, used = begin(model, init(params), state), 0
        state, taught = step(params, state, tokens_BT, targets_BT, lengths_B=lengths_B)
        nats_BT, used = np.asarray(taught.loss_BT), used + size
        for part, row, length in zip(parts, nats_BT, lengths_B, strict=True):
            part.append(row[:length])
            check_loss(model, row[:length], seen)
            total += float(row[:length].sum())
        seen += int(lengths_B.sum())
        if progress is not None:
            progress(seen, total)
    state = close(params, state)
    writes = np.stack([np.asarray(level.writes_B) for level in state.fast])
    return Learned(learned(model, params, state), [np.concatenate(p) for p in parts], writes)


def piece_size(cfg: ModelConfig, teaching: TeachConfig) -> tuple[int, int]:
    """Return the tokens of a piece, whole chunks, and those that full attention has room for.

    Raises:
      ValueError: less room than a chunk.
    """
    size = max(PIECE // teaching.chunk, 1) * teaching.chunk
    if not uses_slots(cfg):
        return size, 1
    room = cfg.max_len
    want = f"wants at least a chunk of teach.chunk={teaching.chunk} tokens"
    require(room >= teaching.chunk, "model.max_len", room, want)
    return min(size, room // teaching.chunk * teaching.chunk), room


def check_loss(model: LanguageModel, nats: np.ndarray, seen: int) -> None:
    """Raise where writing has broken the model: nothing is kept then."""
    if not len(nats):
        return
    mean, uniform = float(nats.mean()), math.log(model.cfg.vocab_size)
    want = (
        f"diverges: {mean:.2f} nats per token after {seen} tokens, a uniform guess has "
        f"{uniform:.2f}; wants lower rates, or model.cms.trust; nothing was kept"
    )
    few = 1.0 + 32.0 / len(nats)  # a few tokens may be far from likely
    fine = mean <= few * uniform + DIVERGENCE_MARGIN
    require(fine, "model.cms.inner_lr", model.cfg.cms.inner_lr, want)


def written(teaching: TeachConfig) -> TeachConfig:
    """Return the inner loop of a model that is not trained."""
    mode = "exact" if teaching.mode == "off" else teaching.mode
    return replace(teaching, mode=mode, meta_gradient="stop", remat="none")


def pieces(
    texts: Sequence[np.ndarray], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield tokens and targets [B, size], and how many of each row exist."""
    for at in range(0, max(map(len, texts)) - 1, size):
        arrays = np.zeros((2, len(texts), size), np.int32)
        lengths_B = np.zeros(len(texts), np.int32)
        for i, text in enumerate(texts):
            part = text[at : at + size + 1]
            lengths_B[i] = max(len(part) - 1, 0)
            for j in (0, 1):
                arrays[j, i, : lengths_B[i]] = part[j : j + lengths_B[i]]
        yield arrays[0], arrays[1], lengths_B


class Progress:
    """Reports how far reading has come, every few seconds."""

    def __init__(self, report: Report, total: int) -> None:
        self.report, self.total, self.clock = report, total, Clock()
        self.before, self.said = 0, 0.0

    def __call__(self, seen: int, nats: float) -> None:
        now, read = self.clock.total(), self.before + seen
        if now - self.said < EVERY and read < self.total:
            return
        self.said = now
        left = timedelta(seconds=round((self.total - read) * now / max(read, 1)))
        self.report(
            f"read {read:,} of {self.total:,} tokens  {nats / seen / math.log(2):.4f} bits per "
            f"token  {read / now:,.0f} tokens/s  ETA {left}"
        )


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
