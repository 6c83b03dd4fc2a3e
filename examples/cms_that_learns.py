"""A continuum memory in a plain model, written while it reads: the loss of one text falls.

    python examples/cms_that_learns.py

Nothing is trained: a random model reads a text that repeats, and its two CMS levels are written
every 8 and 32 tokens by the gradient of their own next-token loss. Seconds on one core.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from nested_jax.layers.parts import (
    CMS,
    CMSConfig,
    ModelConfig,
    deltas_of,
    init_levels,
    write_levels,
)

CHUNK = 8
CONFIG = ModelConfig(dim=32, mlp_hidden=64, cms=CMSConfig(periods=(8, 32), inner_lr=(0.05,)))


class Model(nn.Module):
    symbols: int = 20

    def setup(self):
        self.embed, self.head = nn.Embed(self.symbols, 32), nn.Dense(self.symbols)
        self.cms = CMS(CONFIG, fast=True)

    def __call__(self, tokens_BT, deltas=None):
        y_BTD, recall_B = self.cms(self.embed(tokens_BT), deltas)
        return self.head(y_BTD), recall_B

    def start(self, batch):
        return self.cms.init_deltas(batch), self.cms.rates()


def main():
    model = Model()
    text = jnp.tile(jax.random.permutation(jax.random.key(0), 20), 13)[None, :257]
    params = model.init(jax.random.key(1), text)
    deltas, rates = model.apply(params, 1, method="start")
    levels = init_levels(CONFIG.cms, deltas)

    @jax.jit
    def read(levels, tokens, targets):
        def loss(deltas):
            logits, recall = model.apply(params, tokens, deltas)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return nats.sum() + recall.sum(), nats.mean()

        grads, nats = jax.grad(loss, has_aux=True)(deltas_of(levels))
        return write_levels(CONFIG.cms, levels, grads, rates, CHUNK), nats

    losses = []
    for at in range(0, 256, CHUNK):
        levels, nats = read(levels, text[:, at : at + CHUNK], text[:, at + 1 : at + 1 + CHUNK])
        losses.append(float(nats))
    writes = [int(level.writes_B[0]) for level in levels]
    print(f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} at the end; {writes} writes")
    return losses, writes


if __name__ == "__main__":
    main()
