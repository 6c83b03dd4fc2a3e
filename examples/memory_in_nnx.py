"""A self-modifying memory in a Flax nnx model, through ``flax.nnx.bridge``.

    python examples/memory_in_nnx.py

The parameters live in the nnx module; the memory's state is a value that the caller carries, so a
text in two pieces gives what it gives as one. Seconds on one core.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from nested_jax.layers.parts import MemoryConfig, ModelConfig, SelfModifying, reading


class Model(nnx.Module):
    def __init__(self, symbols, rngs):
        memory = MemoryConfig(rule="dgd", objective="dot", momentum=False, chunk=4)
        part = SelfModifying(ModelConfig(dim=32, heads=2, memory=memory))
        self.embed = nnx.Embed(symbols, 32, rngs=rngs)
        self.memory = nnx.bridge.ToNNX(part, rngs=rngs)
        self.memory.lazy_init(1, 0, method=SelfModifying.init_state)
        self.head = nnx.Linear(32, symbols, rngs=rngs)

    def start(self, batch):
        return self.memory(batch, 0, method=SelfModifying.init_state)

    def __call__(self, state, tokens_BT, read=0):
        x_BTD = self.embed(tokens_BT)
        state, y_BTD = self.memory(state, x_BTD, reading(x_BTD, read))
        return state, self.head(x_BTD + y_BTD)


def main():
    model = Model(50, nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (3, 11), 0, 50)
    start = nnx.jit(lambda model: model.start(3))
    read = nnx.jit(lambda model, *inputs: model(*inputs))
    _, whole = read(model, start(model), tokens)
    state, first = read(model, start(model), tokens[:, :6])
    _, second = read(model, state, tokens[:, 6:], 6)
    apart = float(jnp.abs(jnp.concatenate([first, second], axis=1) - whole).max())
    loss = nnx.jit(nnx.grad(lambda model: jnp.square(model(model.start(3), tokens)[1]).mean()))
    grads = loss(model)
    moved = sum(bool(jnp.abs(g).max() > 0) for g in jax.tree.leaves(grads))
    print(f"one text in two pieces differs by {apart:.1e}; {moved} arrays have a gradient")
    return apart, moved


if __name__ == "__main__":
    main()
