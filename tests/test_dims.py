"""Networks in 1, 2 and 3 dimensions: each agrees with that of one more dimension, along which nothing changes."""

import itertools
import math
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models import NoisyClassifier, UNet, layers
from jaxdiff.typing import InputError

FIELDS = {
    "stem": 4,
    "down": (4, 6),
    "middle": (),
    "up": (6, 4),
    "layers": 1,
    "attention": (False, True),
    "heads": 2,
    "groups": 2,
    "time_dim": 4,
    "patch": 2,
}
SIZES = {1: (16,), 2: (8, 4), 3: (4, 8, 4)}


def variables_of(model: Any, x: jax.Array, t: jax.Array) -> dict[str, jax.Array]:
    """Weights by path, all of them random."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, t)["params"]
    flat = flax.traverse_util.flatten_dict(shapes, sep="/")
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=leaf.shape, scale=0.3) for path, leaf in flat.items()}


def lifted(path: str, leaf: np.ndarray, patch: int) -> np.ndarray:
    """The weight of a network with one more dimension, the last, that does to every position along it what `leaf` does.

    Kernels of 3 take the position itself, halving takes the first of two, and doubling repeats a position. Of a patch
    the first positions along the new dimension are read, and all are written.
    """
    is_kernel = path.endswith("/kernel")
    taps = [0, 1, 1, 0] if "double" in path else [0, 1, 0, 0] if "halve" in path else [0, 1, 0]
    if path.startswith("head"):
        channels = leaf.reshape(*leaf.shape[:-1], -1, 1, 2)
        leaf = np.repeat(channels, patch, axis=-2).reshape(*leaf.shape[:-1], -1)
    if path == "stem/kernel":
        *size, inputs, outputs = leaf.shape
        first = leaf.reshape(*size, inputs // 2, 1, 2, outputs)
        rest = np.zeros((*size, inputs // 2, patch - 1, 2, outputs))
        leaf = np.concatenate([first, rest], axis=-3).reshape(*size, -1, outputs)
    if is_kernel and leaf.ndim > 2:
        leaf = np.expand_dims(leaf, -3) * np.reshape(taps, (-1, 1, 1))
    return leaf


@pytest.mark.thorough
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize(
    "network",
    [(UNet, FIELDS), (NoisyClassifier, {"channels": (4, 6), "groups": 2, "time_dim": 4, "patch": 2, "classes": 3})],
    ids=["unet", "classifier"],
)
def test_a_network_is_that_of_one_more_dimension_along_which_nothing_changes(network, dims, x64):
    kind, fields = network
    patch, t = fields["patch"], jnp.array([0.3, 0.9])
    x = jax.random.normal(jax.random.key(1), (2, *SIZES[dims], 2))
    further = jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], 4, 2))
    models = [kind(**fields, dims=d, dtype=jnp.float64) for d in (dims, dims + 1)]
    flat = variables_of(models[0], x, t)
    lifted_flat = {path: lifted(path, leaf, patch) for path, leaf in flat.items()}
    shapes = {path: leaf.shape for path, leaf in variables_of(models[1], further, t).items()}
    assert {path: leaf.shape for path, leaf in lifted_flat.items()} == shapes
    y, wider = (
        jax.jit(model.apply)({"params": flax.traverse_util.unflatten_dict(weights, sep="/")}, inputs, t)
        for model, weights, inputs in zip(models, (flat, lifted_flat), (x, further), strict=True)
    )
    assert y.std() > 0.01
    if kind is UNet:
        assert y.shape == x.shape
        y = np.broadcast_to(y[..., None, :], wider.shape)
    np.testing.assert_allclose(wider, y, rtol=0, atol=1e-5 * float(np.abs(y).max()))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_doubling_adds_the_kernel_around_every_position(dims):
    sizes, c = (3, 2, 4)[:dims], 2
    x = np.random.default_rng(0).normal(size=(2, *sizes, c)).astype(np.float32)
    model = layers.Double(jnp.float32)
    variables = model.init(jax.random.key(0), jnp.asarray(x))
    kernel = np.asarray(variables["params"]["kernel"])
    assert kernel.shape == (*[4] * dims, c, c)
    expected = np.zeros((2, *(2 * size + 2 for size in sizes), c))  # a margin of 1 takes what falls outside
    for i in np.ndindex(*sizes):
        for r in itertools.product(range(4), repeat=dims):
            position = tuple(2 * a + b for a, b in zip(i, r, strict=True))
            expected[(slice(None), *position)] += x[(slice(None), *i)] @ kernel[r]
    inner = expected[(slice(None), *[slice(1, -1)] * dims)]
    np.testing.assert_allclose(model.apply(variables, jnp.asarray(x)), inner, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 3])
def test_doubling_starts_with_the_variance_of_its_fan_in(dims):
    kernel = layers.Double(jnp.float32).init(jax.random.key(0), jnp.zeros((1, *[2] * dims, 64)))["params"]["kernel"]
    np.testing.assert_allclose(kernel.var(), 1 / (2**dims * 64), rtol=0.1)


@pytest.mark.parametrize(("sizes", "size"), [((6,), 3), ((4, 6), 2), ((2, 4, 6), 2)])
def test_patches_are_cubes_of_positions(sizes, size):
    x = jnp.arange(2.0 * math.prod(sizes) * 3).reshape(2, *sizes, 3)
    patches = layers.to_patches(x, size)
    assert patches.shape == (2, *(length // size for length in sizes), size ** len(sizes) * 3)
    last = x[(1, *[slice(-size, None)] * len(sizes))]
    np.testing.assert_array_equal(patches[(1, *[-1] * len(sizes))], last.reshape(-1))
    np.testing.assert_array_equal(layers.from_patches(patches, size), x)


@pytest.mark.thorough
@pytest.mark.parametrize("dims", [1, 3])
def test_the_gradient_reaches_every_parameter(dims):
    model = UNet(**FIELDS | {"outputs": 2}, dims=dims)
    x, t = jax.random.normal(jax.random.key(1), (2, *SIZES[dims], 2)), jnp.array([0.3, 0.9])
    variables = {"params": flax.traverse_util.unflatten_dict(variables_of(model, x, t), sep="/")}
    loss, gradient = jax.jit(jax.value_and_grad(lambda p: (model.apply(p, x, t) ** 2).mean()))(variables)
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradient))


def test_sizes_and_dimensions_that_do_not_fit_are_refused():
    t = jnp.zeros(1)
    for dims in (0, 4, -1):
        with pytest.raises(InputError, match=f"^dims = {dims}; "):
            UNet(dims=dims)
        with pytest.raises(InputError, match=f"^dims = {dims}; "):
            NoisyClassifier(dims=dims)
    for sizes, multiple in {(30,): 4, (4, 8, 6): 4}.items():
        with pytest.raises(InputError, match=f"{'×'.join(map(str, sizes))} .* multiples of {multiple}"):
            UNet(dims=len(sizes)).init(jax.random.key(0), jnp.zeros((1, *sizes, 1)), t)
        with pytest.raises(InputError, match=f"set dims to {len(sizes)}"):
            UNet().init(jax.random.key(0), jnp.zeros((1, *sizes, 1)), t)
