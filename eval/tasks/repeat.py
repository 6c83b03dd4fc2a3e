"""What a model remembers of a text: ``python -m eval repeat --checkpoint runs/NAME [--memorize]``.

A passage is read, then other text of exactly the distance, then the passage again. gain: bits per
token that the second reading costs less than in a control, where other text of the same length
stands in the place of the first; with its 95 % bootstrap interval over passages, and by tokens of
the passage. With --memorize the inner loop writes while it reads; a token is scored before the
write that it causes. beyond: the distance is longer than the rows of training, or than what
attention reaches through all layers.

--segments takes names and places of text (docs/evaluation.md, Your text). run is the held-out text
of the run as one; random is passages of drawn tokens between such text.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eval.core import plots
from eval.core.cli import Findings, Task, data_root, with_memorized
from eval.core.flags import flag, parse_lengths
from eval.core.items import ASKED, item_hash
from eval.core.memorize.write import Blank, Memorizer, memorizer_of
from eval.core.requests import PIECE, bucket, pad, padded
from eval.core.stats import bootstrap, mean_stderr
from eval.core.subject import Subject
from eval.core.texts import ALL, READING_FLAGS, Segment, of_store, open_segments
from eval.tasks.perplexity import stream_report, tokenized
from nested_jax.config import Config
from nested_jax.data.pipeline import open_data
from nested_jax.data.splits import SPLITS
from nested_jax.errors import require
from nested_jax.losses import bits_per

DISTANCES = (128, 512, 1024, 2048, 8192)  # by default, as far as model and text hold them
RUN, RANDOM = "run", "random"  # words of --segments with a meaning of their own
PARTS = (8, 32)  # tokens of the passage at which its parts end
POOL = 32  # times the tokens of one reading: the text that is drawn from


class Item(NamedTuple):
    """A passage, and other text: read in the place of its first reading, and up to the second."""

    id: str
    passage: tuple[int, ...]
    other: tuple[int, ...]

    def streams(self, separator: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return all that is read before the second reading, and the same of the control."""
        between = self.other[len(self.passage) :]
        return (separator, *self.passage, *between), (separator, *self.other)


# --- what is read --------------------------------------------------------------------------------


def run_segments(cfg: Config, split: str) -> list[Segment]:
    """Return the segments that a run was trained on, as far as they have documents of a split.

    Raises:
      ValueError: a run of synthetic tasks, data that are not there, or no document.
    """
    data = cfg.data
    require(not data.is_synthetic, "--segments", RUN, "wants a run of text; these are tasks")
    store = open_data(data)
    found = [
        name
        for name in data.segments or store.segments
        if any(shard.documents for shard in store.select(split, (name,)))
    ]
    require(bool(found), "--split", split, f"{store.root} has no document of it")
    return of_store(store, found, data.source)


def kinds_of(subject: Subject, flags: argparse.Namespace) -> dict[str, list[Segment]]:
    """Return the segments of every kind of text of --segments: those of the run are one kind."""
    kinds: dict[str, list[Segment]] = {}
    for word in [word.strip() for word in flags.segments.split(",")]:
        if word in (RUN, RANDOM):
            kinds[word] = run_segments(subject.cfg, flags.split)
            continue
        own = argparse.Namespace(**{**vars(flags), "segments": word})
        found = open_segments(own, data_root(flags), subject.cfg, (flags.split,))
        kinds |= {segment.name: [segment] for segment in found}
    return kinds


def texts_of(
    subject: Subject, segments: Sequence[Segment], split: str, most: int
) -> list[list[int]]:
    """Return the tokens of documents, as many of each segment; `most` are read at once."""
    room = -(-POOL * most // len(segments))
    parts = [tokenized(subject, segment.read(split), room, most) for segment in segments]
    return [tokens for part in parts for _, tokens in part]


def make_items(
    subject: Subject, kind: str, texts: Sequence[list[int]], length: int, distance: int, count: int,
    seed: int,
) -> list[Item]:  # fmt: skip
    """Return passages of `length` tokens, each inside a document; the same for one tokenizer.

    Raises:
      ValueError: no document holds a passage, or there is too little text for the distance.
    """
    separator, lengths = subject.tokenizer.eos_id, np.array([len(text) for text in texts])
    joined = [token for text in texts for token in (*text, separator)]
    places = np.maximum(0, lengths - length + 1)  # where a passage of each document may begin
    want = f"wants documents of {kind} text with so many tokens; the longest has {lengths.max()}"
    require(places.sum() > 0, "--passage", length, want)
    want = f"wants {distance + 2 * length} tokens of {kind} text; there are {len(joined)}"
    require(len(joined) >= distance + 2 * length, "--distances", distance, want)
    known = np.flatnonzero(subject.tokenizer.piece_byte_lengths > 0)
    items = []
    for number in range(count):
        rng = np.random.default_rng([seed, length, distance, number])
        place = int(rng.integers(places.sum()))
        document = int(np.searchsorted(np.cumsum(places), place, "right"))
        at = place - int(places[:document].sum()) + int(lengths[:document].sum()) + document
        passage = joined[at : at + length]
        if kind == RANDOM:
            passage = rng.choice(known, length).tolist()
        rest = joined[at + length :] + joined[:at]
        first = int(rng.integers(len(rest) - length - distance + 1))
        other = rest[first : first + length + distance]
        items.append(Item(f"{kind}/{number}", tuple(passage), tuple(other)))
    return items


# --- the two readings ----------------------------------------------------------------------------


def second_readings(
    subject: Subject, items: Sequence[Item], distances: Sequence[int], memorizer: Memorizer | None
) -> np.ndarray:
    """Return nats of every second reading and of its control, [items, distances, 2, tokens].

    What is read up to one distance is read once for all longer ones. Calls have one width.

    Args:
      distances: rising; the items have other text for the longest one.
    """
    scorer, length = subject.scorer, len(items[0].passage)
    separator = subject.tokenizer.eos_id
    rows = [(item.passage, stream) for item in items for stream in item.streams(separator)]
    width = min(bucket(length), PIECE)
    found = []
    for first in range(0, len(rows), scorer.rows(width)):
        part = rows[first : first + scorer.rows(width)]
        count = scorer.rows(width, len(part))
        start = Blank(subject.model_reader) if memorizer else None
        tokens = padded(length + distances[-1]) + padded(length) + width
        state, done, nats = scorer.start(start, [0] * len(part), count, tokens), 0, []
        for distance in distances:
            upto = length + distance
            texts = [stream[done : upto + 1] for _, stream in part]
            state, done = read_on(subject, state, texts, count, width, memorizer), upto
            inputs = [(stream[upto], *passage[:-1]) for passage, stream in part]
            step = memorizer.learn if memorizer else None
            targets = [passage for passage, _ in part]
            nats.append(np.stack(scorer.score(state, inputs, targets, count, step)[0]))
        found.append(np.stack(nats, axis=1))
    return np.concatenate(found).reshape(len(items), 2, len(distances), length).swapaxes(1, 2)


def read_on(
    subject: Subject, state: Any, texts: Sequence[Sequence[int]], count: int, width: int,
    memorizer: Memorizer | None,
) -> Any:  # fmt: skip
    """Return the state after all but the last token of each text, which is the last target."""
    inputs, targets = [text[:-1] for text in texts], [text[1:] for text in texts]
    for at in range(0, len(inputs[0]), width):
        tokens_BT, lengths_B = pad([t[at : at + width] for t in inputs], count, width)
        if memorizer is None:
            state = subject.reader.read(state, tokens_BT, lengths_B)
        else:
            targets_BT, _ = pad([t[at : at + width] for t in targets], count, width)
            state, _, _ = memorizer.learn(state, tokens_BT, targets_BT, lengths_B)
    return state


# --- what is found -------------------------------------------------------------------------------


def summarize(subject: Subject, items: Sequence[Item], nats_N2T: np.ndarray) -> dict[str, Any]:
    """Return the numbers of one distance, with the passages as the unit of the interval."""
    sizes = [int(subject.tokenizer.piece_byte_lengths[list(i.passage)].sum()) for i in items]
    second_NT, control_NT = np.swapaxes(nats_N2T, 0, 1).astype(np.float64) / np.log(2)
    gain_NT = control_NT - second_NT
    each = gain_NT.mean(axis=1).tolist()
    ends = [*(end for end in PARTS if end < gain_NT.shape[1]), gain_NT.shape[1]]
    parts = zip([0, *ends], ends, strict=False)
    return {
        "gain": float(gain_NT.mean()),
        "gain_interval": bootstrap(each),
        "gain_stderr": mean_stderr(each)[1],
        "bits_per_token": float(second_NT.mean()),
        "control_bits_per_token": float(control_NT.mean()),
        "bits_per_byte": float(second_NT.sum() / sum(sizes)),
        "control_bits_per_byte": float(control_NT.sum() / sum(sizes)),
        **{f"gain {low}-{high}": float(gain_NT[:, low:high].mean()) for low, high in parts},
        "n": len(items),
        "bytes": sum(sizes),
        "by_token": gain_NT.mean(axis=0).tolist(),
    }


def measure(
    subject: Subject, items: Sequence[Item], distances: Sequence[int], memorizer: Memorizer | None
) -> tuple[dict[int, dict[str, Any]], np.ndarray, np.ndarray | None]:
    """Return the numbers of each distance, and the nats of `second_readings`, also memorized."""
    base = second_readings(subject, items, distances, None)
    after = base if memorizer else None
    if memorizer and memorizer.available:
        after = second_readings(subject, items, distances, memorizer)
    found = {}
    for i, distance in enumerate(distances):
        learned = None if after is None else summarize(subject, items, after[:, i])
        found[distance] = with_memorized(summarize(subject, items, base[:, i]), learned)
    return found, base, after


def beyond(cfg: Config, length: int, distance: int) -> str:
    """Return what a distance is longer than: the rows of training, what attention reaches."""
    model, marks = cfg.model, []
    if cfg.train.carry == "none" and distance + 2 * length > cfg.data.seq_len:
        marks.append("training rows")
    reach = model.layers * model.window if model.attends else 0
    if model.kind.attention == "segment":
        reach = model.memory_segment
    if (reach or model.kind.attention == "none") and distance >= reach:
        marks.append("attention")
    return ", ".join(marks)


def to_read(
    subject: Subject, segments: Sequence[Segment], flags: argparse.Namespace
) -> tuple[list[int], list[list[int]]]:
    """Return rising distances, by default those that model and text hold, and the documents."""
    room, limit = 2 * flags.passage, subject.reader.limit
    if flags.distances:
        distances = sorted(parse_lengths(flags.distances, "--distances"))
        subject.scorer.check(distances[-1] + room)
        return distances, texts_of(subject, segments, flags.split, distances[-1] + room)
    texts = texts_of(subject, segments, flags.split, DISTANCES[-1] + room)
    most = min(limit or 1 << 62, sum(map(len, texts))) - room
    return [d for d in DISTANCES if d <= most] or [DISTANCES[0]], texts


def evaluate(subject: Subject, flags: argparse.Namespace) -> Findings:
    length, count = flags.passage, flags.max_samples or flags.passages
    kinds, memorizer = kinds_of(subject, flags), memorizer_of(subject, flags)
    metrics: dict[str, dict[str, Any]] = {}
    kept: list[dict[str, Any]] = []
    for kind, segments in kinds.items():
        distances, texts = to_read(subject, segments, flags)
        items = make_items(subject, kind, texts, length, distances[-1], count, flags.seed)
        found, base, after = measure(subject, items, distances, memorizer)
        for i, (distance, group) in enumerate(found.items()):
            name = f"{kind}@{distance}"
            metrics[name] = {**group, "beyond": beyond(subject.cfg, length, distance)}
            for number, item in enumerate(items):
                row = {"id": f"{name}/{number}", "group": name, **readings(base[number, i])}
                row[ASKED] = item_hash(item.passage, item.other[: length + distance])
                if after is not None:
                    row["memorized"] = readings(after[number, i])
                kept.append(row)
    return Findings(metrics, kept, stream_report(memorizer))


def readings(nats_2T: np.ndarray) -> dict[str, float]:
    """Return what is kept of a passage: nats per token of its second reading, the gain in bits."""
    second, control = nats_2T.mean(axis=1, dtype=np.float64).tolist()
    return {"loss": second, "gain": bits_per(control - second, 1)}


def draw(folder: Path, found: Findings) -> list[Path]:
    """Draw the gain by distance, and by token of the passage at the shortest one."""
    fig, axes = plots.figure(2, width=5.2)
    kinds: dict[str, dict[int, dict[str, Any]]] = {}
    for name, group in found.metrics.items():
        kind, _, distance = name.partition("@")
        kinds.setdefault(kind, {})[int(distance)] = group
    for color, (kind, groups) in enumerate(kinds.items()):
        runs = {kind: list(groups.values())}
        if found.memorize is not None:
            runs[f"{kind}, written"] = [group["memorized"] for group in groups.values()]
        for number, (label, run) in enumerate(runs.items()):
            how = {"color": f"C{color}", "linestyle": "--" if number == 0 else "-", "label": label}
            gains = np.array([group["gain"] for group in run])
            low, high = np.array([group["gain_interval"] for group in run]).T
            errors = np.maximum(0, [gains - low, high - gains])
            axes[0].errorbar(list(groups), gains, errors, marker="o", capsize=3, **how)
            axes[1].plot(run[0]["by_token"], **how)
    axes[0].set_xscale("log", base=2)
    axes[0].set(title="Gain by distance", xlabel="tokens between", ylabel="bits per token")
    axes[1].set(title=f"At {min(map(min, kinds.values()))} tokens", xlabel="token of the passage")
    for ax in axes:
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    return [plots.save(fig, folder / "repeat.png")]


FITS = "tokens between the readings (default: 128 to 8192, as far as model and text hold them)"
FLAGS = (
    flag("--distances", "", FITS),
    flag("--passage", 128, "tokens of a passage", least=2),
    flag("--passages", 16, "passages of each text", least=1),
    flag("--segments", f"{RUN},{RANDOM}", "run, random, and names and places of text"),
    flag("--split", "valid", "of the texts", choices=(*SPLITS, ALL)),
    *READING_FLAGS,
)
HELP = "a passage again: what reading it once has left, by distance"
TASK = Task("repeat", HELP, __doc__, FLAGS, evaluate, draw)
