"""Fingerprints: the same on every mesh, another one for every changed bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nested_jax.config import MeshConfig
from nested_jax.sharding import make_mesh
from nested_jax.train.integrity import fingerprint, seal, unseal


def sample() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(size=(8, 6)).astype(np.float32),
        "half": rng.normal(size=(5,)).astype(jnp.bfloat16),
        "count": np.int32(7),
        "mask": np.array([True, False, True]),
    }


def test_fingerprint_is_the_definition() -> None:
    w = sample()["w"]
    bits = w.view(np.uint32).astype(object).ravel()
    want = sum((2 * i + 1) * b for i, b in enumerate(bits)) % 2**32
    assert fingerprint([jnp.asarray(w)]) == [want]


def test_fingerprint_does_not_depend_on_the_mesh() -> None:
    tree = sample()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    placed = {k: jax.device_put(v, NamedSharding(mesh, PartitionSpec())) for k, v in tree.items()}
    placed["w"] = jax.device_put(tree["w"], NamedSharding(mesh, PartitionSpec("fsdp", "model")))
    assert fingerprint(placed) == fingerprint(tree)


@pytest.mark.parametrize("element", [0, 7, 47])
def test_every_flipped_bit_shows(element: int) -> None:
    tree = sample()
    want = fingerprint(tree)
    for bit in range(32):
        bits = tree["w"].copy().view(np.uint32)
        bits.ravel()[element] ^= np.uint32(1 << bit)
        assert fingerprint({**tree, "w": bits.view(np.float32)}) != want


def test_exchanged_elements_show() -> None:
    tree = sample()
    moved = {**tree, "w": tree["w"][::-1].copy()}
    assert fingerprint(moved) != fingerprint(tree)


def test_a_seal_breaks_when_the_body_changes() -> None:
    sealed = seal({"step": 3, "loss": 0.1, "levels": [1, 2]})
    assert unseal(sealed) == {"step": 3, "loss": 0.1, "levels": [1, 2]}
    sealed["body"]["step"] = 4
    with pytest.raises(ValueError, match="digest"):
        unseal(sealed)
