"""Sampling, and the loop that reads a prompt once and then writes token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nested_jax.errors import require
from nested_jax.models.lm import LanguageModel
from nested_jax.models.memories import begin
from nested_jax.models.state import State
from nested_jax.types import Array, PyTree

# state, tokens [B, T], targets [B, T] -> state
Learn = Callable[[State, Array, Array], State]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the most probable one."""

    temperature: float = 1.0
    top_k: int = 0  # keep the k most probable; 0 is all
    top_p: float = 1.0  # keep the most probable whose mass reaches p (Holtzman et al. 2020)
    symbols: int = 0  # tokens from this one on stand for nothing and are never drawn; 0: all do
    never: tuple[int, ...] = ()  # nor are these: control tokens, such as padding

    def __post_init__(self) -> None:
        # Below, logits that are divided by it overflow, and what is drawn is not the largest.
        fine = self.temperature == 0 or 1e-3 <= self.temperature <= 1e3
        want = "wants 0, which takes the most probable token, or 0.001 to 1000"
        require(fine, "temperature", self.temperature, want)
        require(self.top_k >= 0, "top_k", self.top_k, "wants 0 (all) or a count of tokens")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "wants a probability in (0, 1]")


def sample(logits_BS: Array, key: Array, how: Sampling) -> Array:
    """Draw one token per sequence from float32 logits; int32 [B]."""
    if 0 < how.symbols < logits_BS.shape[-1] or how.never:
        known_S = np.arange(logits_BS.shape[-1]) < (how.symbols or logits_BS.shape[-1])
        known_S[list(how.never)] = False
        logits_BS = jnp.where(known_S, logits_BS, -jnp.inf)
    if how.temperature == 0:
        return jnp.argmax(logits_BS, axis=-1).astype(jnp.int32)
    logits_BS = logits_BS / how.temperature
    if how.top_k:
        kth_B1 = jax.lax.top_k(logits_BS, min(how.top_k, logits_BS.shape[-1]))[0][:, -1:]
        logits_BS = jnp.where(logits_BS < kth_B1, -jnp.inf, logits_BS)
    if how.top_p < 1:
        logits_BS = _nucleus(logits_BS, how.top_p)
    return jax.random.categorical(key, logits_BS, axis=-1).astype(jnp.int32)


def _nucleus(logits_BS: Array, top_p: float) -> Array:
    """Drop the tokens after those whose probabilities, largest first, reach `top_p`."""
    ranked_BS = jnp.flip(jnp.sort(logits_BS, axis=-1), axis=-1)
    p_BS = jax.nn.softmax(ranked_BS, axis=-1)
    before_BS = jnp.cumsum(p_BS, axis=-1) - p_BS  # the first token is always kept
    kept_BS = jnp.where(before_BS < top_p, ranked_BS, jnp.inf)
    return jnp.where(logits_BS < jnp.min(kept_BS, axis=-1, keepdims=True), -jnp.inf, logits_BS)


def generate(  # noqa: PLR0913 - the options of one call, all of them named
    model: LanguageModel,
    params: PyTree,
    prompt_BT: np.ndarray,
    count: int,
    key: Array,
    how: Sampling,
    *,
    learn: Learn | None = None,
    chunk: int = 0,
    memory: State | None = None,
) -> Iterator[np.ndarray]:
    """Yield `count` tokens, int32 [B] each, that follow the prompts.

    The prompt is read in one call; every later call reads one token, in constant shape. Token i is
    drawn with ``fold_in(key, i)``.

    Args:
      model: from `build_model`.
      params: of the model.
      prompt_BT: int32 prompts of one length, at least 1 token.
      count: tokens to generate.
      key: of the draws.
      how: temperature, top-k, top-p, symbols.
      learn: reads tokens and their targets and writes the fast weights (`nested_jax.teach`); it is
        given the prompt, and what was generated as soon as a chunk of it is complete.
      chunk: tokens of a teach chunk; with `learn` only.
      memory: what was learned before, of one row or one for each prompt (models/memories.py).
    Raises:
      ValueError: an empty prompt, a count below 1, or more than learned positions have room for.
    """
    length = prompt_BT.shape[1]
    require(length >= 1, "prompt", prompt_BT.shape, "wants at least one token")
    require(count >= 1, "count", count, "wants at least one token")
    most = model.cfg.max_len - length
    if model.cfg.kind.gpt2:
        place = f"model.max_len={model.cfg.max_len} positions"
        require(most >= 1, "prompt", f"{length} tokens", f"wants fewer: {place}")
        want = f"wants at most {most}: {place}, {length} of a prompt"
        require(count <= most, "count", count, want)
    init = partial(model.init_state, batch_size=prompt_BT.shape[0], capacity=length + count)
    fresh = jax.jit(init)(params)  # under jit no two arrays share a buffer, as donation wants
    if memory is not None:
        fresh = jax.jit(partial(begin, model))(fresh, memory)
    stream = _Stream(model, params, prompt_BT, fresh, learn, chunk)
    draw = jax.jit(partial(sample, how=how))
    for i in range(count):
        token_B = np.asarray(draw(stream.logits_BS, jax.random.fold_in(key, i)))
        yield token_B
        if i + 1 < count:
            stream.push(token_B)


class _Stream:
    """A state that follows the text, and the logits of what comes next."""

    def __init__(
        self,
        model: LanguageModel,
        params: PyTree,
        prompt_BT: np.ndarray,
        fresh: State,
        learn: Learn | None,
        chunk: int,
    ) -> None:
        # The state is donated: its caches are updated in place.
        donate: dict[str, Any] = {} if learn else {"donate_argnums": 1}
        self.step = jax.jit(model.apply, **donate)
        self.params, self.learn, self.chunk = params, learn, chunk
        self.taught = prompt_BT.shape[1] - 1  # pairs of a token and its target
        self.unlearned = [prompt_BT[:, -1:]]  # tokens read since, the last without a target
        if learn is None:
            self.state, logits = self.step(params, fresh, jnp.asarray(prompt_BT))
        else:
            # `base` has read all tokens whose targets it was taught; `state` runs ahead of it.
            self.base = fresh
            if prompt_BT.shape[1] > 1:
                self.base = learn(
                    fresh, jnp.asarray(prompt_BT[:, :-1]), jnp.asarray(prompt_BT[:, 1:])
                )
            self.state, logits = self.step(params, self.base, jnp.asarray(prompt_BT[:, -1:]))
        self.logits_BS = logits[:, -1]

    def push(self, token_B: np.ndarray) -> None:
        """Read one more token."""
        token_B1 = token_B[:, None]
        if self.learn is not None:
            self.unlearned.append(token_B1)
            pairs = len(self.unlearned) - 1
            if (self.taught + pairs) % self.chunk == 0:
                text = jnp.asarray(np.concatenate(self.unlearned, axis=1))
                self.base = self.learn(self.base, text[:, :-1], text[:, 1:])
                self.taught, self.unlearned = self.taught + pairs, [token_B1]
                self.state = self.base
        self.state, logits = self.step(self.params, self.state, jnp.asarray(token_B1))
        self.logits_BS = logits[:, -1]
