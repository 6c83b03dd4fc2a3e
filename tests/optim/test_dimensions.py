"""The rule that finds a matrix in a parameter, and Muon on parameters of every layout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close
from optim_reference import newton_schulz

from nested_jax.optim import MatrixDims, matrix_dims, scale_by_muon, tree_dims
from nested_jax.optim.dimensions import from_matrices, project, to_matrices
from nested_jax.types import ParamInfo

L, M, D, H, K, F = 2, 4, 12, 3, 5, 7
SIZES = {"layers": L, "levels": M, "embed": D, "heads": H, "kv_heads": H, "head_width": K, "mlp": F}

CASES = {
    ("embed", "mlp"): ((), (0,), (1,)),
    ("mlp", "embed"): ((), (0,), (1,)),
    ("embed", "embed"): ((), (0,), (1,)),
    ("layers", "embed", "mlp"): ((0,), (1,), (2,)),
    ("embed", "mlp", "layers"): ((2,), (0,), (1,)),
    ("layers", "levels", "mlp", "embed"): ((0, 1), (2,), (3,)),
    ("layers", "embed", "heads"): ((0,), (1,), (2,)),
    ("layers", "embed", "heads", "head_width"): ((0,), (1,), (2, 3)),
    ("layers", "embed", "kv_heads", "head_width"): ((0,), (1,), (2, 3)),
    ("layers", "heads", "head_width", "embed"): ((0,), (1, 2), (3,)),
    ("layers", "heads", "head_width", "mlp"): ((0, 1), (2,), (3,)),
}


def info(axes, kind="matrix"):
    return ParamInfo(tuple(SIZES.get(a, 2) for a in axes), axes, kind)


@pytest.mark.parametrize(("axes", "want"), CASES.items())
def test_the_rule(axes, want):
    assert matrix_dims(info(axes)) == MatrixDims(*want)


@pytest.mark.parametrize(
    "axes",
    [
        ("layers", "embed"),
        ("embed",),
        ("mlp", "embed", "head_width"),
        ("embed", "mlp", "embed"),
        ("mlp", "head_width", "mlp"),
        (None, "mlp", "mlp"),
    ],
)
def test_what_it_cannot_resolve_is_an_error_that_names_the_parameter(axes):
    with pytest.raises(ValueError, match=r"parameter \['block'\]\['w'\]: axes=.*of a matrix"):
        tree_dims({"block": {"w": info(axes)}})


def test_tree_dims_leaves_the_other_kinds_out():
    tree = {"w": info(("embed", "mlp")), "e": info(("embed", "mlp"), "embed")}
    assert tree_dims(tree) == {"w": MatrixDims((), (0,), (1,)), "e": None}


@pytest.mark.parametrize("axes", CASES)
def test_matrices_round_trip(axes):
    leaf = info(axes)
    x = np.arange(np.prod(leaf.shape)).reshape(leaf.shape)  # these two work on numpy as well
    dims = matrix_dims(leaf)
    np.testing.assert_array_equal(from_matrices(to_matrices(x, dims), dims, x.shape), x)
    assert to_matrices(x, dims).shape[-2:] == dims.matrix_shape(leaf.shape)


def test_muon_orthogonalises_the_right_axes():
    """Each layout against one SVD a matrix, cut out by hand."""
    axes = {
        "mlp": ("layers", "embed", "mlp"),
        "q": ("layers", "embed", "heads", "head_width"),
        "o": ("layers", "heads", "head_width", "embed"),
    }
    tree = {name: info(a) for name, a in axes.items()}
    rng = np.random.default_rng(0)
    grads = {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in tree.items()}
    tx = scale_by_muon(dims=tree_dims(tree))
    params = jax.tree.map(jnp.asarray, grads)
    got = jax.device_get(jax.jit(tx.update)(params, tx.init(params))[0])
    for name in tree:
        rows = {"mlp": D, "q": D, "o": H * K}[name]
        for layer in range(L):
            matrix = grads[name][layer].reshape(rows, -1)
            want = 0.2 * np.sqrt(max(matrix.shape)) * newton_schulz(matrix)
            assert_close(got[name][layer].reshape(rows, -1), want, rtol=1e-4)


def test_masked_leaves_pass_through_and_plain_vectors_are_refused():
    tx = scale_by_muon(dims={"w": MatrixDims((), (0,), (1,)), "b": None})
    params = {"w": jnp.ones((3, 4)), "b": optax.MaskedNode()}
    step, _ = tx.update(params, tx.init(params))
    assert step["b"] == optax.MaskedNode()
    with pytest.raises(ValueError, match="dims=None for a leaf of shape"):
        tx.update({"w": jnp.ones((3, 4)), "b": jnp.ones(4)}, tx.init({"w": 0.0, "b": 0.0}))
    with pytest.raises(ValueError, match="ndim=1"):
        scale_by_muon().update({"b": jnp.ones(4)}, scale_by_muon().init({"b": jnp.ones(4)}))


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 5, 3)])
def test_project_is_the_product_in_either_order(shape):
    key, x = (jax.random.normal(jax.random.key(i), shape) for i in range(2))
    want = np.einsum("lik,ljk,ljo->lio", *(np.asarray(a, np.float64) for a in (key, key, x)))
    assert_close(project(key, x), want, rtol=1e-6)
