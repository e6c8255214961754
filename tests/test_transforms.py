"""Transforms against their formulas and their inverses."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.stats
from scipy.spatial.transform import Rotation as ScipyRotation

from jaxdiff.processes import FittedNormal
from jaxdiff.processes.transforms import (
    IDENTITY,
    TRANSFORMS,
    Blur,
    ColorMatrix,
    Compose,
    Flip,
    Pixelate,
    QuarterTurns,
    Randomized,
    RandomMask,
    RandomOverlap,
    Rotation,
    Scale,
    Shear,
    Shift,
    Transform,
    Translation,
    Warp,
)

# (transform, shape of a sample, whether its inverse is usable at every t)
CASES: dict[str, tuple[Transform, tuple[int, ...], bool]] = {
    "identity": (IDENTITY, (3,), True),
    "shift": (Shift((3, -2)), (4, 5, 1), True),
    "flip": (Flip(), (4, 5), True),
    "quarter_turns": (QuarterTurns(3), (4, 4), True),
    "rotation": (Rotation(2.0), (3, 2), True),
    "rotation in space": (Rotation(2.0, axis=(1.0, 2.0, -1.0)), (2, 3), True),
    "random_rotation": (Randomized(Rotation, -1.0, 1.0), (3, 2), True),
    "scale": (Scale([0.5, 3.0]), (3, 2), True),
    "scale, small": (Scale([1e-4, 3.0]), (3, 2), False),
    "scale, random and small": (Randomized(Scale, 1e-4, 1.0), (3, 2), False),
    "shear": (Shear(1.5), (3, 2), True),
    "translation": (Translation([1.0, -2.0]), (3, 2), True),
    "translation, random": (Randomized(Translation, (0.0, 1.0), (1.0, 3.0)), (3, 2), True),
    "compose": (Compose([Rotation(1.0), Scale(0.5), Translation([1.0, 2.0])]), (2,), True),
    "compose, one of them lossy": (Compose((Shift(1), RandomMask())), (4, 4), False),
    "warp": (Warp(0.7, zoom=1.5), (5, 5, 1), False),
    "random_warp": (Randomized(Warp, 0.5, 1.0), (5, 5, 1), False),
    "colors": (ColorMatrix([[1 / 3] * 3] * 3), (2, 2, 3), False),
    "colors, regular": (ColorMatrix([[0.5, 0.5], [-0.5, 0.5]]), (2, 2, 2), True),
    "colors, singular at ½": (ColorMatrix([[-1.0, 0.0], [0.0, 2.0]]), (2, 2, 2), False),
    "colors, singular between looks": (ColorMatrix([[-500.3]]), (2, 2, 1), False),
    "colors, nilpotent": (ColorMatrix(np.triu(np.ones((3, 3)), 1).tolist()), (2, 2, 3), False),
    "blur": (Blur(3.0), (4, 4), False),
    "blur, narrow": (Blur(0.83), (4, 4), True),
    "mask": (RandomMask(), (4, 4, 2), False),
    "pixelate": (Pixelate((2, 4)), (4, 4), False),
    "overlap": (RandomOverlap(np.ones((2, 3, 3))), (3, 3), False),
}
ORTHOGONAL = ("identity", "shift", "flip", "quarter_turns", "rotation", "rotation in space", "random_rotation")
TIMES = (0.05, 0.2, 0.6, 1.0)


@functools.cache
def measured() -> dict[str, dict[str, Any]]:
    """For every transform g_0(x) − x and, at `TIMES`, the matrix of g_t and the error of the round trip."""

    def of_one(transform: Transform, shape: tuple[int, ...], invertible: bool) -> dict[str, Any]:
        g, x = transform.sample_params(jax.random.key(1), shape), jax.random.normal(jax.random.key(2), shape)
        basis = jnp.concatenate([jnp.zeros((1, x.size)), jnp.eye(x.size)]).reshape(-1, *shape)

        def at(t: jax.Array) -> Any:
            images = jax.vmap(lambda e: g(e, t).ravel())(basis)  # g_t is affine
            return images[1:] - images[:1], g.inverse(g(x, t), t) - x if invertible else x

        matrices, back = jax.vmap(at)(jnp.array(TIMES))
        return {"at 0": g(x, 0.0) - x, "matrices": matrices, "back": back}

    with jax.enable_x64(True):
        return jax.device_get(jax.jit(lambda: {name: of_one(*case) for name, case in CASES.items()})())


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_a_transform_grows_from_the_identity(name: str) -> None:
    np.testing.assert_allclose(measured()[name]["at 0"], 0, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_a_transform_is_invertible_if_its_inverse_enlarges_no_error_by_a_thousand(name: str) -> None:
    transform, _, invertible = CASES[name]
    assert transform.invertible is invertible
    found = measured()[name]
    gains = [1 / max(np.linalg.svd(matrix)[1].min(), 1e-300) for matrix in found["matrices"]]
    if invertible:
        np.testing.assert_allclose(found["back"], 0, atol=1e-10)
        assert max(gains) < 1e3
    elif name in ("colors, singular at ½", "colors, singular between looks"):  # regular at all of `TIMES`
        t, M = 1 / 501.3 if "looks" in name else 0.5, np.array(transform.matrix)
        assert np.linalg.svd((1 - t) * np.eye(len(M)) + t * M)[1].min() < 1e-12
    elif name not in ("random_warp", "scale, random and small"):  # whose parameters may have been mild ones
        assert gains[-1] > 1e3


def test_every_registered_transform_is_tested() -> None:
    assert set(TRANSFORMS) <= set(CASES)


def test_the_bound_of_the_blurs_inverse_is_that_of_a_checkerboard(x64: None) -> None:
    width = np.sqrt(np.log(1e3)) / np.pi
    checkers = jnp.asarray((-1.0) ** np.add.outer(np.arange(4), np.arange(4)))
    assert float(Blur(width).inverse(checkers, 1.0)[0, 0]) == pytest.approx(1e3)
    assert [Blur(factor * width).invertible for factor in (0.999, 1.001)] == [True, False]
    assert not np.all(np.isfinite(Blur(4.5).inverse(jnp.ones((4, 4), jnp.float32), jnp.float32(1.0))))


@pytest.mark.parametrize("name", ORTHOGONAL)
def test_transforms_that_only_move_are_orthogonal(name: str) -> None:
    for matrix in measured()[name]["matrices"]:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-12)


def test_transforms_are_what_their_formulas_say(x64: None) -> None:
    x, points = (np.random.default_rng(0).normal(size=s) for s in ((4, 4), (5, 3)))
    about = np.array([1.0, 2.0, -1.0]) / np.sqrt(6)
    means = np.broadcast_to(x.reshape(2, 2, 2, 2).mean((1, 3), keepdims=True), (2, 2, 2, 2)).reshape(4, 4)
    sheared = points + 1.5 * points[:, :1] * np.array([[0, 0, 1]])
    cases = [
        (Compose([]), x, 0.5, x),
        (Shift((3, -2)), x, 0.5, np.roll(x, (2, -1), (0, 1))),
        (Shift(2), x, 0.5, np.roll(x, 1, 0)),
        (Flip(), x, 0.5, x[:, ::-1]),
        (QuarterTurns(2), x, 0.5, np.rot90(x)),
        (Warp(np.pi / 2), x, 1.0, np.rot90(x)),
        (Rotation(2.0, axis=[1, 2, -1]), points, 0.5, ScipyRotation.from_rotvec(about).apply(points)),
        (Rotation(np.pi), np.array([1.0, 0.0]), 0.5, np.array([0.0, 1.0])),
        (Scale([4.0, 1.0, 9.0]), points, 0.5, points * np.array([[2, 1, 3]])),
        (Shear(3.0, to=2, by=0), points, 0.5, sheared),
        (Translation([1.0, 2.0, 3.0]), points, 0.5, points + np.array([[0.5, 1, 1.5]])),
        (Compose([Scale(4.0), Translation([1.0, 0, 0])]), points, 0.5, 2 * points + np.array([[0.5, 0, 0]])),
        (Blur(3.0), x, 0.4, np.fft.ifft2(scipy.ndimage.fourier_gaussian(np.fft.fft2(x), 1.2)).real),
        (Pixelate((2, 4)), x, 0.25, (x + means) / 2),
        (Pixelate((2, 4)), x, 0.75, (means + x.mean()) / 2),
        (ColorMatrix([[0.0, 1.0], [1.0, 0.0]]), x[:, :2], 1.0, x[:, 1::-1]),
    ]
    found = jax.jit(lambda: [transform(jnp.asarray(sample), t) for transform, sample, t, _ in cases])()
    for image, (transform, _, t, expected) in zip(found, cases, strict=True):
        np.testing.assert_allclose(image, expected, atol=1e-9, err_msg=f"{transform} at {t}")


@pytest.mark.parametrize("name", CASES)
def test_a_transform_is_a_pytree_made_by_its_constructor(name: str) -> None:
    """Through `jax.jit`, with traced parameters, and as a copy made by `dataclasses.replace`."""
    transform, shape, _ = CASES[name]
    params = transform.sample_params(jax.random.key(1), shape)
    x = jax.random.normal(jax.random.key(2), shape)
    expected = params(x, 0.6)
    np.testing.assert_allclose(jax.jit(lambda g: dataclasses.replace(g)(x, 0.6))(params), expected, atol=1e-5)
    drawn = jax.jit(lambda key: transform.sample_params(key, shape))(jax.random.key(1))
    assert jax.tree.structure(drawn) == jax.tree.structure(params)
    if params is transform:
        jax.jit(lambda g: (bool(g.invertible), x)[1])(transform)


def test_random_parameters_have_their_distribution() -> None:
    keys, shape = jax.random.split(jax.random.key(0), 2000), (4, 4, 1)
    others = jnp.arange(3.0)[:, None, None, None] * jnp.ones((1, *shape))
    composed = Compose([Randomized(Warp, -1.0, 3.0), RandomMask(), RandomOverlap(others)])
    warp, mask, overlap = jax.vmap(lambda key: composed.sample_params(key, shape))(keys).parts
    assert scipy.stats.kstest(np.asarray(warp.angle), scipy.stats.uniform(-1, 4).cdf).pvalue > 1e-3
    assert mask.hidden_from.shape == (2000, 4, 4, 1)
    assert scipy.stats.kstest(np.asarray(mask.hidden_from).ravel(), scipy.stats.uniform().cdf).pvalue > 1e-3
    seen = np.bincount(np.asarray(overlap.other)[:, 0, 0, 0].astype(int))
    assert scipy.stats.chisquare(seen).pvalue > 1e-3


def test_a_fitted_normal_has_the_mean_and_covariance_of_the_data() -> None:
    """50 samples of 6 numbers; a draw is linear in normal numbers, with the factors as its matrix."""
    x = np.random.default_rng(0).normal(size=(50, 3, 2)) @ np.array([[1.0, 2.0], [0.0, 0.3]]) + 1
    start = FittedNormal.fit(x)
    np.testing.assert_allclose(start.mean, x.mean(0), rtol=1e-5)
    factors = np.asarray(start.factors).reshape(-1, 6)
    np.testing.assert_allclose(factors.T @ factors, np.cov(x.reshape(50, 6).T), rtol=1e-4, atol=1e-5)
    draws = jax.vmap(start)(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(draws.mean(0), x.mean(0), atol=4 * 2 / np.sqrt(4000))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Randomized(Rotation, 1.0, 1.0), "low < high"),
        (lambda: Randomized(Scale, -1.0, 1.0), "factor = -1.0"),
        (lambda: Randomized(Blur, 1.0, 4.0), "make = Blur needs its number"),
        (lambda: Randomized(Translation, (0.0, 0.0), (1.0,)), "they must have one shape"),
        (lambda: Rotation(1.0, axis=(0.0, 0.0, 0.0)), "not all 0"),
        (lambda: Rotation(1.0)(jnp.zeros((5, 3)), 0.5), "axis="),
        (lambda: Shear(1.0, to=1, by=1), "to = 1, by = 1"),
        (lambda: Shear(1.0, to=1, by=-1), "two different axes >= 0"),
        (lambda: Shear(1.0, by=5)(jnp.zeros((3, 2)), 0.5), r"to = 0, by = 5, but a sample has shape \(3, 2\)"),
        (lambda: Scale([1.0, -1.0]), "must satisfy factor > 0"),
        (lambda: Warp(zoom=0.0), "must satisfy zoom > 0"),
        (lambda: Warp()(jnp.zeros(3), 0.5), r"it must be an image, \(height, width"),
        (lambda: Translation(1.0)(jnp.zeros((3, 2)), 0.5), "one number for each axis"),
        (lambda: RandomOverlap(np.zeros((0, 2))), r"others has shape \(0, 2\)"),
        (lambda: RandomOverlap(np.zeros((2, 2))).sample_params(jax.random.key(0), (3,)), r"but a sample \(3,\)"),
        (lambda: Blur(0.0), "width = 0.0"),
        (lambda: Pixelate((4, 2)), "rising sizes above 1"),
        (lambda: Pixelate((3,))(jnp.zeros((4, 4)), 0.5), "divisors"),
        (lambda: ColorMatrix([[1.0, 0.0]]), "it must be square"),
        (lambda: ColorMatrix([[1.0]])(jnp.zeros((4, 4)), 0.5), "the last axis must be 1"),
        (lambda: Shift((1, 1))(jnp.zeros(4), 0.5), r"pixels = \(1, 1\), but a sample has shape \(4,\)"),
        (lambda: QuarterTurns()(jnp.zeros((4, 3)), 0.5), "height = width"),
        (lambda: RandomMask()(jnp.zeros((4, 4)), 0.5), r"call sample_params\(key, shape\)"),
        (lambda: RandomMask().inverse(jnp.zeros((4, 4)), 0.5), "has no inverse; let the network predict x0"),
        (lambda: FittedNormal.fit(np.zeros((1, 3))), "at least 2"),
    ],
)
def test_errors_name_the_mistake_and_what_works(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
