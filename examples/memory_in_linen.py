"""A neural memory in a plain Flax linen model: it learns to recall pairs that it has just read.

    python examples/memory_in_linen.py [--steps 200]

The model reads random pairs of a key and a value, then keys alone, and is asked for their values.
Without a memory it could only guess: one of 16. A minute on one core.
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from nested_jax.layers.parts import MemoryConfig, ModelConfig, NeuralMemory, reading


class Model(nn.Module):
    symbols: int = 16

    def setup(self):
        memory = MemoryConfig(arch="linear", conv=0, momentum=False, chunk=8, inner_lr=0.5)
        self.keys, self.values = nn.Embed(self.symbols, 64), nn.Embed(self.symbols + 1, 64)
        self.memory = NeuralMemory(ModelConfig(dim=64, heads=1, memory=memory))
        self.head = nn.Dense(self.symbols)

    def __call__(self, keys_BT, values_BT, state=None, read=0):
        x_BTD = self.keys(keys_BT) + self.values(values_BT)
        state = self.memory.init_state(len(x_BTD), 0) if state is None else state
        state, y_BTD = self.memory(state, x_BTD, reading(x_BTD, read))
        return state, self.head(y_BTD)


def rows(key, symbols=16, pairs=8, batch=32):
    """Return keys and values of pairs, then keys alone (value 0), and the values; [B, 2 pairs]."""
    a, b, c = jax.random.split(key, 3)
    order = jax.vmap(lambda k: jax.random.permutation(k, symbols)[:pairs])
    keys, again = order(jax.random.split(a, batch)), jax.random.permutation(c, pairs)
    values = jax.random.randint(b, (batch, pairs), 0, symbols)
    shown = jnp.concatenate([values + 1, jnp.zeros_like(values)], axis=1)
    asked = jnp.concatenate([values, values[:, again]], axis=1)
    return jnp.concatenate([keys, keys[:, again]], axis=1), shown, asked


def main(steps):
    model, tx = Model(), optax.adam(3e-3)
    keys, shown, _ = rows(jax.random.key(0))
    params = model.init(jax.random.key(1), keys, shown)
    opt = tx.init(params)

    @jax.jit
    def step(params, opt, key):
        keys, shown, asked = rows(key)
        half = keys.shape[1] // 2  # the keys alone

        def loss(params):
            _, logits = model.apply(params, keys, shown)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, asked)
            right = logits[:, half:].argmax(-1) == asked[:, half:]
            return nats[:, half:].mean(), right.mean()

        (_, right), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt = tx.update(grads, opt)
        return optax.apply_updates(params, updates), opt, right

    shares = []
    for i in range(steps):
        params, opt, right = step(params, opt, jax.random.key(i + 2))
        shares.append(float(right))
    print(f"recalled: {shares[0]:.2f} at first, {sum(shares[-10:]) / 10:.2f} at the end")
    return shares


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    main(parser.parse_args().steps)
