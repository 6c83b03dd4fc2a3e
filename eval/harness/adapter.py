"""Checkpoints in lm-evaluation-harness: ``python -m eval harness --checkpoint runs/NAME``.

Runs the harness's own loop, prompts and metrics over our local files (--tasks: the zero-shot tasks,
and text segments for perplexity). Words after ``--`` are a command line of lm_eval, which then
knows the model `nested_jax` (model_args: checkpoint, batch_size, batch_tokens, mesh as in 2x1x1,
too_long=error|left):

    python -m eval harness -- run --model nested_jax --model_args checkpoint=runs/NAME --tasks piqa

In Python, `register` makes the model known to ``lm_eval.simple_evaluate``. Wants lm-eval
(``pip install 'nested-jax[eval]'``).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from eval.core.cli import Findings, Task, data_root
from eval.core.flags import flag, split_rest
from eval.core.reader import Draw
from eval.core.requests import Request, encode_pair
from eval.core.subject import Subject, load_subject, parse_mesh
from eval.harness.local_tasks import choose_local, import_harness, run_local
from nested_jax.errors import require
from nested_jax.models.decode import Sampling

MAX_TOKENS = 256  # that are written where a task does not say, as in the harness
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens")
KNOWN = ("until", "do_sample", "temperature", "top_k", "top_p", *LENGTH_NAMES)


class Instance(Protocol):
    """A request of the harness."""

    args: tuple[Any, ...]


class HarnessMethods:
    """The three methods of ``lm_eval.api.model.LM``, over the scorer of a subject.

    Args:
      subject: the model, its tokenizer and its scorer.
      too_long: what becomes of a request that the model cannot hold: `error`, or `left`, which cuts
        the beginning of its context as the harness's own models do.
    """

    def __init__(self, subject: Subject, too_long: str = "error") -> None:
        require(too_long in ("error", "left"), "too_long", too_long, "wants error or left")
        self.subject, self.too_long = subject, too_long

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Return (log-likelihood, whether it is the greedy choice) of each (context, continuation).

        Raises:
          ValueError: an empty continuation, or a request that is too long.
        """
        pairs = [encode_pair(self.subject.tokenizer, *r.args) for r in requests]
        fitting = [
            Request(self.fit(pair.context, len(pair.continuation)), pair.continuation)
            for pair in pairs
        ]
        scores = self.subject.scorer.loglikelihood(fitting)
        return [(score.logprob, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Return the log-likelihood of each (text,), its first token after the separator."""
        texts = [self.subject.tokenizer.encode(r.args[0]) for r in requests]
        filled = [text for text in texts if text]
        nats = iter(self.subject.scorer.rolling(filled, self.subject.tokenizer.eos_id))
        return [-float(next(nats).sum(dtype="float64")) if text else 0.0 for text in texts]

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Return what is written after each (prompt, options), without the stop string.

        Raises:
          ValueError: an unknown option, or a prompt that is too long.
        """
        groups: dict[str, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True)].append(i)
        texts: dict[int, str] = {}
        for key, members in groups.items():
            until, count, draw = writing(json.loads(key))
            prompts = [self.prompt(requests[i].args[0], count) for i in members]
            found = self.subject.scorer.generate_until(
                prompts, self.subject.tokenizer, until, count, draw=draw
            )
            texts |= dict(zip(members, found, strict=True))
        return [texts[i] for i in range(len(requests))]

    def prompt(self, text: str, count: int) -> tuple[int, ...]:
        tokens = self.subject.tokenizer.encode(text) or [self.subject.tokenizer.eos_id]
        return self.fit(tuple(tokens), count)

    def fit(self, context: tuple[int, ...], more: int) -> tuple[int, ...]:
        """Return a context that leaves room for `more` tokens, the last of which is not read."""
        limit = self.subject.reader.limit
        if limit is None or self.too_long == "error":
            return context  # the scorer refuses what does not fit
        room = limit + 1 - more
        require(room >= 1, "continuation", more, f"tokens: {self.subject.name} holds {limit}")
        return context[-room:]


def writing(options: Mapping[str, Any]) -> tuple[list[str], int, Draw]:
    """Return stop strings, tokens at most, and how tokens are drawn, of a task's options.

    As in the harness, `do_sample` false or a temperature of 0 is greedy, and so is neither.

    Raises:
      ValueError: an option that is not known here, or of another type; a temperature without
        bounds or below 0.
    """
    for name in options:
        require(name in KNOWN, "generation option", name, f"wants some of {', '.join(KNOWN)}")
    given = {name: value for name, value in options.items() if value is not None}
    until = given.get("until", [])
    stops = [until] if isinstance(until, str) else until
    texts = isinstance(stops, list) and all(isinstance(stop, str) for stop in stops)
    require(texts, "generation option until", until, "wants a string or a list of strings")
    lengths = [whole(name, given[name]) for name in LENGTH_NAMES if name in given]
    sampled = given.get("do_sample", given.get("temperature", 0) != 0)
    require(isinstance(sampled, bool), "generation option do_sample", sampled, "wants a boolean")
    temperature = number("temperature", given.get("temperature", 1.0))
    how = Sampling(
        temperature=temperature if sampled else 0.0,
        top_k=whole("top_k", given.get("top_k", 0)),
        top_p=number("top_p", given.get("top_p", 1.0)),
    )
    return stops, lengths[0] if lengths else MAX_TOKENS, Draw(how)


def number(name: str, value: Any) -> float:
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    require(right, f"generation option {name}", value, "wants a finite number")
    return float(value)


def whole(name: str, value: Any) -> int:
    require(number(name, value) == int(value), f"generation option {name}", value, "wants a count")
    return int(value)


@cache
def register() -> type:
    """Make `nested_jax` a model of lm_eval, and return its class.

    Raises:
      ValueError: lm_eval is not installed.
    """
    api = import_harness("lm_eval.api.model")
    registry = import_harness("lm_eval.api.registry")

    class NestedJax(HarnessMethods, api.LM):  # type: ignore[name-defined]
        """A checkpoint; the arguments are those of ``--model_args``."""

        def __init__(
            self,
            checkpoint: str | Subject = "",
            batch_size: int | str = 32,
            batch_tokens: int = 16_384,
            mesh: str = "1x1x1",
            too_long: str = "error",
            **rest: Any,
        ) -> None:
            api.LM.__init__(self)
            given = {name: value for name, value in rest.items() if value is not None}
            known = "wants checkpoint, batch_size, batch_tokens, mesh or too_long"
            require(not given, "model_args", given, known)
            require(bool(checkpoint), "checkpoint", checkpoint, "wants a workdir, as in runs/NAME")
            if not isinstance(checkpoint, Subject):
                rows = str(batch_size)
                require(rows.isdigit(), "batch_size", batch_size, "wants a number of rows")
                where = parse_mesh(str(mesh).replace("x", ","))
                checkpoint = load_subject(
                    checkpoint, mesh=where, batch_size=int(rows), batch_tokens=int(batch_tokens)
                )
            HarnessMethods.__init__(self, checkpoint, too_long)

    found: type = registry.register_model("nested_jax")(NestedJax)
    return found


def evaluate(subject: Subject, flags: argparse.Namespace) -> Findings:
    names = choose_local(flags.tasks)
    model = register()(subject, too_long=flags.too_long)
    return Findings(*run_local(model, names, data_root(flags), flags))


class Harness(Task):
    """A task, or with words after ``--`` the harness's own command line."""

    def run(self, arguments: Sequence[str]) -> int:
        own, rest = split_rest(arguments)
        if not rest:
            return super().run(own)
        require(not own, "arguments", " ".join(own), "wants nothing before the -- of lm_eval's own")
        register()
        sys.argv = ["lm_eval", *rest]
        import_harness("lm_eval.__main__").cli_evaluate()
        return 0


FLAGS = (
    flag("--tasks", "hellaswag,arc_easy", "see --list-tasks of zeroshot"),
    flag("--num-fewshot", 0, "examples before each question", least=0),
    flag("--too-long", "error", "left: cut contexts there", choices=("error", "left")),
)
HELP = "the same checkpoint in lm-evaluation-harness"
TASK = Harness("harness", HELP, __doc__, FLAGS, evaluate, memorizes=False)
