"""What a memory is, as one static and hashable value: the cross product of the papers' choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from nested_jax.errors import require


@dataclass(frozen=True)
class MemorySpec:
    """An associative memory M: keys -> values, and how it is written and read.

    At token t the gradient g_t of the objective is taken at the *anchor*, the memory as of the last
    multiple of `chunk` tokens (NL Eq. 90), and the rule moves the running memory W; per matrix,
    with inputs on the left, y = x W, and u the unit direction of x:

        gd      W_t = W_{t-1} + U_t
        titans  W_t = a_t W_{t-1} + U_t                         (Titans Eq. 13; its 1 - alpha is a)
        dgd     W_t = (a_t I - eta_t u_t u_t^T) W_{t-1} + U_t   (NL Eq. 57 and 88)

    where U_t = -eta_t g_t, or with `momentum` U_t = S_t = mu_t S_{t-1} - eta_t g_t. The direction u
    of the matrix that keys feed is the key; of one that a hidden activation z feeds, z / |z|.

    `read="token"` answers a query from the running memory, W_t (`order="write_read"`) or W_{t-1}
    (`"read_write"`); `read="chunk"` answers it from the anchor, and the order makes no difference.

    `gradient_at="decayed"` takes the gradient at a_t W_{t-1} instead. For `titans` with `l2` that
    is Gated DeltaNet, W_t = a_t (I - eta_t k_t k_t^T) W_{t-1} + eta_t k_t v_t^T, where Titans as
    printed (`"previous"`) is (a_t I - eta_t k_t k_t^T) W_{t-1} + eta_t k_t v_t^T.

    Raises:
      ValueError: an unknown name (with the known ones) or a combination without meaning.
    """

    arch: Literal["linear", "mlp"] = "linear"  # W x, or x + W_1 act(W_2 x), NL Eq. 89 and 91
    depth: int = 2  # matrices of an mlp
    activation: Literal["gelu", "silu"] = "gelu"  # of an mlp
    objective: Literal["l2", "dot"] = "l2"
    rule: Literal["gd", "titans", "dgd"] = "titans"
    momentum: bool = False  # of titans and dgd
    gradient_at: Literal["previous", "decayed"] = "previous"  # decayed: linear, chunk 1
    read: Literal["token", "chunk"] = "token"
    order: Literal["write_read", "read_write"] = "write_read"
    chunk: int = 64  # tokens between gradient boundaries; 1 is the online rule

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            known = get_args(hint)
            value = getattr(self, name)
            require(
                not known or value in known,
                f"memory.{name}",
                value,
                f"known: {', '.join(map(str, known))}",
            )
        require(self.depth >= 1, "memory.depth", self.depth, "wants at least 1 matrix")
        require(self.chunk >= 1, "memory.chunk", self.chunk, "wants at least 1 token")
        require(
            not (self.momentum and self.rule == "gd"),
            "memory.momentum",
            self.momentum,
            "rule 'gd' has none; 'titans' with keep 1 is gradient descent with momentum",
        )
        require(
            self.gradient_at == "previous" or (self.has_keep and self.is_online_linear),
            "memory.gradient_at",
            self.gradient_at,
            "wants a linear memory of chunk 1 and a rule with retention",
        )

    @property
    def is_online_linear(self) -> bool:
        """Every write is affine in the memory, so that no gradient boundary is needed."""
        return self.arch == "linear" and self.chunk == 1

    @property
    def has_keep(self) -> bool:
        return self.rule != "gd"

    @property
    def num_matrices(self) -> int:
        return 1 if self.arch == "linear" else self.depth

    @property
    def is_residual(self) -> bool:
        return self.arch == "mlp"

    @property
    def erases(self) -> bool:
        """Whether every matrix is written by delta descent."""
        return self.rule == "dgd"
