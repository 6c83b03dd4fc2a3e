"""Self-modifying Titans (NL Eq. 83-93): a memory whose projections are memories, also written.

Every generator M_g (g: k, v, q, rate, keep) and the memory M_mem are read and differentiated at the
state M̄ that their last chunk boundary left. For token t with input x_t,

    k_t = unit(M̄_k(x_t))     v_t = M̄_v(x_t)     q_t = unit(M̄_q(x_t)), or a slow projection of x_t
    eta_t = max_rate sigmoid(<r_eta, M̄_rate(x_t)> + b_eta) (1 - mu_t)
    a_t = sigmoid(<r_a, M̄_keep(x_t)> + b_a)
    eps_t = eta_t, or max_rate sigmoid_s(<r_eps, M̄_rate(x_t)> + b_eps): a delta rule erases with it
    every memory M, M_mem too, is written with key k_t, target unit(M̄(v_t)), rate eta_t, keep a_t
    y_t = M_mem(q_t)

A generator g with a pace p_g in (0, 1] is written with rates p_g eta_t, p_g eps_t and with keep
1 - p_g (1 - a_t): a token moves it p_g times as far as M_mem. NL writes all memories with one rate
and keep, p = 1. But delta rates of the order of 1, which recall wants of M_mem, replace what M_k
and M_v have learned.

sigmoid_s is stretched by s beyond both ends and clipped (the hard concrete gate of arXiv 1712.01312
without its noise): with s > 0 a token can erase nothing at all, so that writes add up, or all, so
that they mirror; a sigmoid only tends to either.

NL makes eta and a scalars and leaves open how; here M_rate and M_keep are memories like the others,
read out by slow vectors r, so that their self-made targets are unit vectors too. The target is
normalised because M̄(v) written into M makes the update quadratic in M, and it diverges.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.errors import require
from nested_jax.ops.memory.arch import Matrices, memory_apply
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.memory.state import MemoryState
from nested_jax.ops.normalize import l2_normalize, widen
from nested_jax.types import Array

GENERATORS = ("k", "v", "q", "rate", "keep")


@dataclass(frozen=True)
class SelfModSpec:
    """Which projections are memories, and how they and M_mem are written.

    Raises:
      ValueError: an unknown generator, or two memories that cannot be written together.
    """

    memory: MemorySpec  # M_mem
    generator: MemorySpec  # all generators; what differs from `memory` is the chunk
    generators: tuple[str, ...]  # in the order of the generator axis
    max_rate: float = 1.0
    erase_stretch: float = 0.0  # of the sigmoid of eps_t
    targets: Literal["self", "value"] = "self"  # unit(M̄(v_t)), or v_t itself
    frozen: bool = False  # the memories are only read
    remat: bool = True  # keep about sqrt(T / step) states for the backward pass, recompute others

    def __post_init__(self) -> None:
        unknown = [g for g in self.generators if g not in GENERATORS]
        require(not unknown, "generators", unknown, f"known: {', '.join(GENERATORS)}")
        large, small = sorted((self.memory.chunk, self.generator.chunk), reverse=True)
        require(
            large % small == 0,
            "memory.generator_chunk",
            self.generator.chunk,
            f"must divide memory.chunk={self.memory.chunk}, or be a multiple of it",
        )
        for name in ("rule", "momentum", "gradient_at"):
            value, want = getattr(self.generator, name), getattr(self.memory, name)
            require(value == want, f"generator.{name}", value, f"wants {want!r}, as the memory")
        require(
            self.memory.gradient_at == "previous",
            "memory.gradient_at",
            self.memory.gradient_at,
            "a self-modifying memory wants 'previous'",
        )

    @property
    def specs(self) -> tuple[MemorySpec, MemorySpec]:
        """In the order of `SelfModState`."""
        return self.generator, self.memory


class SelfModState(NamedTuple):
    generators: MemoryState  # leaves [B, H, generators, I, O]
    memory: MemoryState


class SelfModInputs(NamedTuple):
    """Tokens, leaves [B, T, H, K] and [B, T, H]; a projection that a generator makes is None."""

    x: Array  # unit vectors that the generators read; [B, T, H, G, K] gives each its own
    q: Array | None
    k: Array | None
    v: Array | None
    momentum: Array | None


class GateReadout(NamedTuple):
    """The slow parameters of the gates; `keep` parts are None where nothing is forgotten."""

    rate_HV: Array
    rate_bias_H: Array
    keep_HV: Array | None
    keep_bias_H: Array | None
    pace_HG: Array | None = None  # of the generators, in their order; None: all 1
    erase_HV: Array | None = None  # None: erased at the rate of the write, as NL has it
    erase_bias_H: Array | None = None


class Generated(NamedTuple):
    q_CK: Array
    k_CK: Array
    v_CV: Array
    rate_C: Array
    keep_C: Array
    erase_C: Array | None


def init_self_modifying(
    spec: SelfModSpec, generators0: Matrices, memory0: Matrices, batch: int
) -> SelfModState:
    """Return fresh memories from the learned [H, generators, I, O] and [H, I, O]."""

    def fresh(spec: MemorySpec, fast0: Matrices) -> MemoryState:
        fast = tuple(jnp.broadcast_to(widen(w)[None], (batch, *w.shape)) for w in fast0)
        momentum = tuple(jnp.zeros_like(w) for w in fast) if spec.momentum else ()
        return MemoryState(fast, fast, momentum, jnp.zeros((batch,), jnp.int32))

    return SelfModState(fresh(spec.generator, generators0), fresh(spec.memory, memory0))


def stretched_sigmoid(logit: Array, stretch: float) -> Array:
    """Return a sigmoid from -stretch to 1 + stretch, clipped to [0, 1]."""
    return jnp.clip((1.0 + 2.0 * stretch) * jax.nn.sigmoid(logit) - stretch, 0.0, 1.0)


def generate(
    spec: SelfModSpec, readout: GateReadout, anchors: Matrices, tokens: SelfModInputs
) -> Generated:
    """Read the generators of one head, leaves [generators, I, O], for its C tokens."""
    own = None if tokens.x.ndim == 2 else 1
    read = jax.vmap(partial(memory_apply, spec.generator), in_axes=(0, own))
    made_GCV = read(anchors, tokens.x)
    made = dict(zip(spec.generators, made_GCV, strict=True))
    rate_C = spec.max_rate * jax.nn.sigmoid(made["rate"] @ readout.rate_HV + readout.rate_bias_H)
    erase_C = None
    if readout.erase_HV is not None:
        logit_C = made["rate"] @ readout.erase_HV + readout.erase_bias_H
        erase_C = spec.max_rate * stretched_sigmoid(logit_C, spec.erase_stretch)
    if tokens.momentum is not None:
        rate_C = rate_C * (1.0 - tokens.momentum)
    keep_C = jnp.ones_like(rate_C)
    if "keep" in made:
        keep_C = jax.nn.sigmoid(made["keep"] @ readout.keep_HV + readout.keep_bias_H)
    given: dict[str, Array] = {"q": tokens.q, "k": tokens.k, "v": tokens.v}  # type: ignore[dict-item]
    q_CK, k_CK, v_CV = (made[name] if name in made else given[name] for name in ("q", "k", "v"))
    return Generated(l2_normalize(q_CK), l2_normalize(k_CK), v_CV, rate_C, keep_C, erase_C)


def make_target(spec: SelfModSpec, memory: MemorySpec, anchor: Matrices, v_CV: Array) -> Array:
    """Return what one memory of one head is written with, [C, V]."""
    if spec.targets == "value":
        return v_CV
    return l2_normalize(memory_apply(memory, anchor, v_CV))


def check_self_modifying(spec: SelfModSpec, state: SelfModState, inputs: SelfModInputs) -> None:
    """Raise `ValueError` unless state and inputs belong to the spec."""
    b, _, h, *own, k = inputs.x.shape
    require(
        own in ([], [len(spec.generators)]),
        "inputs.x",
        inputs.x.shape,
        f"wants [B, T, H, K], or [B, T, H, G, K] with a vector for each of {spec.generators}",
    )
    for name in ("q", "k", "v"):
        given = getattr(inputs, name)
        require(
            (given is None) == (name in spec.generators),
            f"inputs.{name}",
            None if given is None else given.shape,
            f"wants None where a generator makes it, of {spec.generators}",
        )
    require(
        (inputs.momentum is None) == (not spec.memory.momentum),
        "inputs.momentum",
        None if inputs.momentum is None else inputs.momentum.shape,
        f"wants an array exactly if memory.momentum={spec.memory.momentum}",
    )
    shape, want = state.generators.fast[0].shape, (b, h, len(spec.generators), k)
    require(shape[:4] == want, "state.generators", shape, f"wants {want} in front")
    shape = state.memory.fast[0].shape
    require(shape[:3] == (b, h, k), "state.memory", shape, f"wants {(b, h, k)} in front")
