"""Likelihoods of texts and continuations: batched, bucketed by length, prompts read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from eval.core.reader import Draw, Reader
from eval.core.requests import (
    PIECE,
    Group,
    Request,
    Score,
    Start,
    Written,
    bucket,
    pad,
    padded,
    pieces,
    room,
    stopped,
    windows,
)
from eval.core.schedule import choose_calls, shared_tokens
from nested_jax.data.tokenizers.tokenizer import Tokenizer
from nested_jax.errors import require

SPARE = 2048  # tokens of padding that are not worth another shape to compile
STRIDE = 8  # tokens decoded between two looks at the stop strings

Force = Callable[[np.ndarray], list[int]]  # tokens of a row -> what has to follow them


class Scorer:
    """Scores requests with a `Reader`; results come in the order of the requests.

    Args:
      reader: the model.
      batch_size: rows of a batch at most.
      batch_tokens: tokens of a batch at most, where a row does not hold more by itself.
    """

    def __init__(self, reader: Reader, batch_size: int = 32, batch_tokens: int = 16_384) -> None:
        require(batch_size >= 1, "--batch-size", batch_size, "wants at least 1 row")
        require(batch_tokens >= 1, "--batch-tokens", batch_tokens, "wants at least 1 token")
        self.reader, self.batch_size, self.batch_tokens = reader, batch_size, batch_tokens

    def rows(self, width: int, used: int | None = None) -> int:
        """Return the rows of a batch whose rows have `width` tokens.

        A batch with fewer rows `used` is halved until they just fit, unless all that is left is
        `SPARE` tokens or fewer.
        """
        fit = max(1, min(self.batch_size, self.batch_tokens // max(width, 1)))
        while used is not None and fit // 2 >= used and fit // 2 * width > SPARE:
            fit = -(-fit // 2)
        return -(-fit // self.reader.row_multiple) * self.reader.row_multiple

    def check(self, tokens: int) -> None:
        """Raise unless the model can hold a row of so many tokens."""
        limit = self.reader.limit
        require(
            limit is None or tokens <= limit,
            "context length",
            tokens,
            f"full attention of this checkpoint holds {limit} tokens (model.max_len)",
        )

    def start(self, start: Start | None, rows: Sequence[int], count: int, tokens: int) -> Any:
        """Return the states of a batch of `count` rows, that go on to read `tokens` tokens."""
        held = start.held if start is not None else 0
        capacity = room(held + tokens)
        limit = self.reader.limit
        if limit is not None:
            capacity = min(capacity, max(limit, held + tokens))
        if start is None:
            return self.reader.fresh(count, capacity)
        ids = np.zeros(count, np.int32)
        ids[: len(rows)] = rows
        return start(ids, capacity)

    # --- likelihoods ---

    def loglikelihood(
        self,
        requests: Sequence[Request],
        start: Start | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[Score]:
        """Return the score of each request.

        Args:
          requests: contexts with their continuations; equal contexts are read once.
          start: states to start from; None is fresh.
          rows: which row of `start` each request starts from; None is row 0. Fresh rows are alike.
        Raises:
          ValueError: a request longer than the model can hold, an empty context or continuation,
            a model whose loss is not finite.
        """
        held = start.held if start is not None else 0
        for context, continuation in requests:
            require(len(context) > 0, "context", context, "wants at least one token")
            require(len(continuation) > 0, "continuation", continuation, "wants at least one token")
            self.check(held + len(context) + len(continuation) - 1)
        groups: dict[tuple[int, tuple[int, ...]], Group] = {}
        for i, request in enumerate(requests):
            row = rows[i] if rows is not None and start is not None else 0
            key = (row, request.context)
            groups.setdefault(key, Group(row, request.context, [])).members.append(i)

        def longest(group: Group) -> int:
            return max(len(requests[i].continuation) for i in group.members)

        scores: dict[int, Score] = {}
        for batch in self.batches(sorted(groups.values(), key=longest, reverse=True)):
            scores |= self.score_groups(batch, requests, start)
        return [scores[i] for i in range(len(requests))]

    def batches(self, groups: list[Group]) -> Iterator[list[Group]]:
        """Yield groups of similar length together, as many as make a batch, the longest first.

        Groups whose contexts have one width keep their order.
        """
        groups = sorted(groups, key=lambda g: -bucket(len(g.context) - 1))
        at = 0
        while at < len(groups):
            batch = groups[at : at + self.rows(bucket(len(groups[at].context) - 1))]
            yield batch
            at += len(batch)

    def score_groups(
        self, groups: list[Group], requests: Sequence[Request], start: Start | None
    ) -> dict[int, Score]:
        """Read the contexts of the groups but their last tokens, then score all continuations."""
        width = bucket(max(len(g.context) - 1 for g in groups))
        longest = bucket(max(len(requests[i].continuation) for g in groups for i in g.members))
        count = self.rows(width, len(groups))
        texts = [g.context[:-1] for g in groups]
        alike = all(g.row == groups[0].row for g in groups)
        begun = shared_tokens(texts, count, self.reader.row_multiple) if alike else 0
        if begun:
            few = self.reader.row_multiple
            state = self.start(start, [groups[0].row] * few, few, width + longest)
            state = self.read(state, [texts[0][:begun]], few)
            state = self.reader.take(state, np.zeros(count, np.int32))
        else:
            state = self.start(start, [g.row for g in groups], count, width + longest)
        state = self.read(state, [text[begun:] for text in texts], count)
        scores = {}
        lengths = [{i: len(requests[i].continuation) for i in g.members} for g in groups]
        for part in choose_calls(lengths, count, lambda used: self.rows(width, used)):
            taken, at = state, [r for r, _ in part.pairs]
            if part.copies:
                ids = np.zeros(part.rows, np.int32)
                ids[: len(at)] = at
                taken, at = self.reader.take(state, ids), list(range(len(at)))
            inputs: list[tuple[int, ...]] = [()] * (max(at) + 1)
            targets = list(inputs)
            for row, (_, i) in zip(at, part.pairs, strict=True):
                context, targets[row] = requests[i]
                inputs[row] = (context[-1], *targets[row][:-1])
            nats, likeliest = self.score(taken, inputs, targets, part.rows)
            for row, (_, i) in zip(at, part.pairs, strict=True):
                nat = nats[row]
                scores[i] = Score(-float(nat.sum()), bool(likeliest[row].all()), len(nat))
        return scores

    def read(self, state: Any, texts: Sequence[Sequence[int]], count: int) -> Any:
        """Return the state after the texts."""
        for tokens_BT, lengths_B, _ in pieces(texts, count):
            state = self.reader.read(state, tokens_BT, lengths_B)
        return state

    def score(
        self,
        state: Any,
        inputs: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        count: int,
        step: Callable[..., tuple[Any, np.ndarray, np.ndarray]] | None = None,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return nats and likeliest of the targets, one array for each row.

        `step` takes the place of the reader's `score`; a step that learns goes there.
        """
        alone = step is None and max(map(len, inputs)) <= PIECE
        step = step or self.reader.score
        nats: list[list[np.ndarray]] = [[] for _ in inputs]
        likeliest: list[list[np.ndarray]] = [[] for _ in inputs]
        for tokens_BT, lengths_B, at in pieces(inputs, count):
            targets_BT, _ = pad([t[at : at + PIECE] for t in targets], *tokens_BT.shape)
            arrays = (tokens_BT, targets_BT, lengths_B)
            if alone:
                nats_BT, likeliest_BT = self.reader.score_last(state, *arrays)
            else:
                state, nats_BT, likeliest_BT = step(state, *arrays)
            for i, length in enumerate(lengths_B[: len(inputs)]):
                nats[i].append(nats_BT[i, :length])
                likeliest[i].append(likeliest_BT[i, :length])
        joined = [np.concatenate(parts) for parts in nats]
        if not all(np.isfinite(x).all() for x in joined):
            raise ValueError("checkpoint: its loss is not finite; the model has diverged")
        return joined, [np.concatenate(parts) for parts in likeliest]

    def rolling(
        self,
        texts: Sequence[Sequence[int]],
        prefix: int,
        step: Callable[..., tuple[Any, np.ndarray, np.ndarray]] | None = None,
        start: Start | None = None,
    ) -> list[np.ndarray]:
        """Return the nats of every token of each text, the first one after token `prefix`.

        A model without end reads a text as one stream; full attention in the windows of `windows`.
        """
        cut = [(i, w) for i, text in enumerate(texts) for w in windows(text, prefix, self.limit)]
        order = sorted(range(len(cut)), key=lambda j: -len(cut[j][1].context + cut[j][1].scored))
        found: dict[int, np.ndarray] = {}
        at = 0
        while at < len(order):
            longest = len(cut[order[at]][1].context + cut[order[at]][1].scored)
            batch = order[at : at + self.rows(min(bucket(longest), PIECE))]
            count = self.rows(min(bucket(longest), PIECE), len(batch))
            rows = [cut[j][1] for j in batch]
            streams = [w.context + w.scored for w in rows]
            width = padded(max(map(len, streams)))
            state = self.start(start, [0] * len(batch), count, width)
            inputs = [s[:-1] for s in streams]
            nats, _ = self.score(state, inputs, [s[1:] for s in streams], count, step)
            for j, window, nat in zip(batch, rows, nats, strict=True):
                found[j] = nat[len(window.context) - 1 :]
            at += len(batch)
        parts: list[list[np.ndarray]] = [[] for _ in texts]
        for j, (i, _) in enumerate(cut):
            parts[i].append(found[j])
        return [np.concatenate(p) for p in parts]

    @property
    def limit(self) -> int | None:
        return self.reader.limit

    # --- generation ---

    def generate_until(
        self,
        prompts: Sequence[Sequence[int]],
        tokenizer: Tokenizer,
        until: Sequence[str],
        max_tokens: int,
        **how: Any,
    ) -> list[str]:
        """Return what `generate` writes, as text."""
        return [w.text for w in self.generate(prompts, tokenizer, until, max_tokens, **how)]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tokenizer: Tokenizer,
        until: Sequence[str],
        max_tokens: int,
        *,
        draw: Draw | None = None,
        start: Start | None = None,
        rows: Sequence[int] | None = None,
        force: Force | None = None,
    ) -> list[Written]:
        """Return what the model writes after each prompt, up to a stop string or `max_tokens`.

        Writing also stops at the end of the document. Without `draw` the likeliest token is taken.
        `force` is asked after every token what has to follow the tokens of a row.
        """
        require(max_tokens >= 1, "max_tokens", max_tokens, "wants at least 1 token")
        held = start.held if start is not None else 0
        for prompt in prompts:
            require(len(prompt) > 0, "prompt", prompt, "wants at least one token")
            self.check(held + len(prompt) + max_tokens - 1)
        ids = rows if rows is not None else [0] * len(prompts)
        groups = [Group(ids[i], tuple(prompt), [i]) for i, prompt in enumerate(prompts)]
        found: dict[int, Written] = {}
        for batch in self.batches(groups):
            count = self.rows(bucket(len(batch[0].context) - 1), len(batch))
            width = padded(max(len(g.context) for g in batch))
            more = -(-max_tokens // STRIDE) * STRIDE
            state = self.start(start, [g.row for g in batch], count, width + more)
            state = self.read(state, [g.context[:-1] for g in batch], count)
            last_B = np.zeros(count, np.int32)
            last_B[: len(batch)] = [g.context[-1] for g in batch]
            stop = partial(stopped, tokenizer=tokenizer, until=until)
            written = self.write(state, last_B, len(batch), stop, max_tokens, draw, force)
            found |= {g.members[0]: each for g, each in zip(batch, written, strict=True)}
        return [found[i] for i in range(len(prompts))]

    def write(
        self,
        state: Any,
        last_B: np.ndarray,
        used: int,
        stop: Callable[[np.ndarray], Written],
        max_tokens: int,
        draw: Draw | None,
        force: Force | None,
    ) -> list[Written]:
        """Decode block by block until every one of the first `used` rows has stopped."""
        draw, stride = draw or Draw(), 1 if force else STRIDE
        tokens = np.zeros((used, 0), np.int32)
        forced: list[list[int]] = [[] for _ in range(used)]
        while True:
            state, block_BT = self.reader.decode(
                state, last_B, stride, replace(draw, first=draw.first + tokens.shape[1])
            )
            block_BT = np.array(block_BT)
            for row, follow in enumerate(forced):
                if follow:
                    block_BT[row, 0] = follow.pop(0)
            last_B = block_BT[:, -1]
            tokens = np.concatenate([tokens, block_BT[:used]], axis=1)
            if force:
                forced = [
                    follow or list(force(row)) for follow, row in zip(forced, tokens, strict=True)
                ]
            rows = [stop(row[:max_tokens]) for row in tokens]
            if tokens.shape[1] >= max_tokens or all(row.ended for row in rows):
                return rows
