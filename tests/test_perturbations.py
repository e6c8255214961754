"""Laws of noise against scipy.stats, transforms against their formulas, both against their inverses."""

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
from scipy.spatial.transform import Rotation

from jaxdiff import perturbations as p

CONTINUOUS: dict[str, tuple[p.Law, Any]] = {
    "normal": (p.normal(), scipy.stats.norm()),
    "laplace": (p.laplace(), scipy.stats.laplace(scale=1 / np.sqrt(2))),
    "uniform": (p.uniform(), scipy.stats.uniform(-np.sqrt(3), 2 * np.sqrt(3))),
    "exponential": (p.exponential(), scipy.stats.expon(-1)),
    "gamma": (p.gamma(2.0), scipy.stats.gamma(2, loc=-np.sqrt(2), scale=1 / np.sqrt(2))),
    "tabulated": (p.tabulated(scipy.stats.t(5)), scipy.stats.t(5, scale=np.sqrt(3 / 5))),
}
DISCRETE: dict[str, tuple[p.Law, Any]] = {
    "poisson": (p.poisson(4.0), scipy.stats.poisson(4)),
    "bernoulli": (p.bernoulli(), scipy.stats.bernoulli(0.5)),
    "bernoulli:p=0.2": (p.bernoulli(0.2), scipy.stats.bernoulli(0.2)),
}
MIXTURE = p.mixture(p.laplace(), p.exponential())
EPS = np.linspace(-5, 5, 41)
TABLED = ("gamma", "tabulated")


@functools.cache
def mapped(dtype: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """h(ε) of every continuous law at `EPS`, and h⁻¹ of that; of the mixture at t = 0.3."""
    laws = {name: law for name, (law, _) in CONTINUOUS.items()}
    laws |= {"mixture": MIXTURE} if dtype == "float64" else {}
    with jax.enable_x64(dtype == "float64"):
        eps = jnp.asarray(EPS, dtype)

        @jax.jit
        def both() -> Any:
            noise = {name: law.from_normal(eps, 0.3) for name, law in laws.items()}
            return {name: (noise[name], law.to_normal(noise[name], 0.3)) for name, law in laws.items()}

        return jax.device_get(both())


@functools.cache
def drawn() -> dict[str, np.ndarray]:
    """200,000 numbers of every law."""
    laws = {name: law for name, (law, _) in (CONTINUOUS | DISCRETE).items()}
    with jax.enable_x64(True):
        keys = dict(zip(laws, jax.random.split(jax.random.key(0), len(laws)), strict=True))
        return jax.device_get(jax.jit(lambda: {name: law(keys[name], (200_000,)) for name, law in laws.items()})())


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_law_is_the_quantile_transform(name: str) -> None:
    """In both dtypes, to the far tails; a table of quantiles to its spacing."""
    truth = CONTINUOUS[name][1]
    expected = np.where(EPS < 0, truth.ppf(scipy.stats.norm.cdf(EPS)), truth.isf(scipy.stats.norm.sf(EPS)))
    exact, rounded = (mapped(dtype)[name][0] for dtype in ("float64", "float32"))
    tolerance = 1e-5 if name in TABLED else 1e-11
    np.testing.assert_allclose(exact, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(rounded, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*CONTINUOUS, "mixture"])
def test_a_continuous_law_is_undone_by_its_inverse(name: str) -> None:
    """Uniform noise is within 6e-7 of its end at ε = 5."""
    np.testing.assert_allclose(mapped("float64")[name][1], EPS, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_continuous_law_has_mean_0_and_variance_1_and_passes_kolmogorov_and_smirnov(name: str) -> None:
    """The test has the power to refuse, at the same level, noise that is 5% too wide or off by 0.05."""
    truth, noise = CONTINUOUS[name][1], drawn()[name]
    mean, variance, excess = (float(moment) for moment in truth.stats("mvk"))
    assert (mean, variance) == pytest.approx((0, 1), abs=1e-12)
    assert abs(noise.mean()) < 4 / np.sqrt(len(noise))
    assert abs(noise.var() - 1) < 4 * np.sqrt((excess + 2) / len(noise))
    assert scipy.stats.kstest(noise, truth.cdf).pvalue > 1e-3
    for wrong in (1.05 * noise, noise + 0.05):
        assert scipy.stats.kstest(wrong, truth.cdf).pvalue < 1e-3


@pytest.mark.parametrize("name", DISCRETE)
def test_a_discrete_law_has_mean_0_and_variance_1_and_its_own_probabilities(name: str) -> None:
    law, truth = DISCRETE[name]
    counts = np.asarray(law.values) * truth.std() + truth.mean()
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-12)
    edges = scipy.stats.norm.cdf([-np.inf, *law.thresholds, np.inf])
    np.testing.assert_allclose(np.diff(edges), truth.pmf(np.round(counts)), rtol=1e-9, atol=1e-14)
    noise = drawn()[name]
    values, seen = np.unique(np.round(noise * truth.std() + truth.mean()), return_counts=True)
    rest = len(noise) - truth.pmf(values) @ np.full(len(values), len(noise))
    assert scipy.stats.chisquare(seen, truth.pmf(values) * len(noise) + rest / len(values)).pvalue > 1e-3
    with pytest.raises(ValueError, match="no inverse"):
        law.to_normal(jnp.zeros(1), 0.5)
    with pytest.raises(ValueError, match="laplace, uniform"):
        p.mixture(p.normal(), law)


def test_a_mixture_goes_from_one_law_to_the_other(x64: None) -> None:
    noise, transport = mapped("float64")["mixture"][0], jax.jit(MIXTURE.transport)
    parts = [CONTINUOUS[name][1].cdf(noise) for name in ("laplace", "exponential")]
    np.testing.assert_allclose(0.7 * parts[0] + 0.3 * parts[1], scipy.stats.norm.cdf(EPS), rtol=1e-9, atol=1e-13)
    for s, name in ((0.0, "laplace"), (1.0, "exponential")):
        np.testing.assert_allclose(transport(jnp.asarray(noise), 0.3, s), mapped("float64")[name][0], atol=1e-6)
    drawn = np.asarray(jax.jit(lambda: MIXTURE(jax.random.key(1), (50_000,), 0.3))())
    fourth = sum(weight * CONTINUOUS[name][1].moment(4) for weight, name in ((0.7, "laplace"), (0.3, "exponential")))
    assert abs(drawn.mean()) < 4 / np.sqrt(len(drawn))
    assert abs(drawn.var() - 1) < 4 * np.sqrt((fourth - 1) / len(drawn))

    def cdf(noise: np.ndarray) -> np.ndarray:
        return 0.7 * CONTINUOUS["laplace"][1].cdf(noise) + 0.3 * CONTINUOUS["exponential"][1].cdf(noise)

    assert scipy.stats.kstest(drawn, cdf).pvalue > 1e-3
    assert scipy.stats.kstest(drawn + 0.05, cdf).pvalue < 1e-3


@pytest.mark.parametrize(("law", "neighbours"), [(p.blue(), -1), (p.pink(), 1), (p.blue(axes=1), -1)])
def test_coloured_noise_has_its_spectrum_and_variance_1(law: p.Coloured, neighbours: int, x64: None) -> None:
    """h is linear: its matrix H on a grid of 6x4 gives the covariance H Hᵀ, which is diagonal in Fourier's basis."""
    shape = (6, 4)
    h = np.asarray(jax.vmap(lambda e: law.from_normal(e.reshape(shape), 0.5).ravel())(jnp.eye(24)))
    covariance = h.T @ h
    np.testing.assert_allclose(np.diag(covariance), 1, rtol=1e-12)
    assert np.sign(covariance[0, shape[1]]) == neighbours  # of the next row
    frequencies = [np.fft.fftfreq(n) if axis < law.axes else np.zeros(n) for axis, n in enumerate(shape)]
    f = np.maximum(np.hypot(frequencies[0][:, None], frequencies[1][None]), 1 / 6)
    power = f if neighbours < 0 else 1 / f
    fourier = np.kron(*(scipy.fft.fft(np.eye(n), norm="ortho") for n in shape))
    spectrum = fourier @ covariance @ fourier.conj().T
    np.testing.assert_allclose(spectrum, np.diag((power / power.mean()).ravel()), atol=1e-12)
    noise = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    np.testing.assert_allclose(law.to_normal(law.from_normal(noise, 0.5), 0.5), noise, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: p.tabulated(scipy.stats.cauchy()), "cauchy .* finite variance"),
        (lambda: p.tabulated(scipy.stats.t(2)), r"scipy.stats.t\(5\)"),
        (lambda: p.check_law(Doubled(), (2,)), "variance 4 .* divide by"),
        (lambda: p.check_law(Slashed(), (2,)), "finite variance"),
        (lambda: p.gamma(0.0), "shape = 0.0"),
        (lambda: p.poisson(-1.0), "rate = -1.0"),
        (lambda: p.bernoulli(1.0), "p = 1.0"),
        (lambda: p.coloured(jnp.abs, axes=3), "axes = 3"),
        (lambda: p.mixture(p.normal(), p.blue()), "Coloured can't be mixed"),
        (lambda: p.varied(p.rotation, 1.0, 1.0), "low < high"),
        (lambda: p.rotation(1.0, axis=(0.0, 0.0, 0.0)), "not all 0"),
        (lambda: p.shear(1.0, to=1, by=1), "to = 1, by = 1"),
        (lambda: p.shear(1.0, to=1, by=-1), "two different axes from 0 on"),
        (lambda: p.shear(1.0, by=5)(jnp.zeros((3, 2)), 0.5), r"axis 0 by 5, but a sample has shape \(3, 2\)"),
        (lambda: p.scale([1.0, -1.0]), "the rule is factor > 0"),
        (lambda: p.varied(p.scale, -1.0, 1.0), "factor = -1.0"),
        (lambda: p.warp(zoom=0.0), "the rule is zoom > 0"),
        (lambda: p.varied(p.blur, 1.0, 4.0), "make = blur needs its number"),
        (lambda: p.varied(p.translation, (0.0, 0.0), (1.0,)), "both a number or as many"),
        (lambda: p.translation(1.0)(jnp.zeros((3, 2)), 0.5), "one number for each axis"),
        (lambda: p.overlap(np.zeros((0, 2))), r"others has shape \(0, 2\)"),
        (lambda: p.gamma(0.05), "too near each other for float32"),
        (lambda: p.tabulated(scipy.stats.poisson(3)), "poisson is discrete"),
        (lambda: p.tabulated(scipy.stats.t(2.1)), "of its variance beyond the table"),
        (lambda: p.poisson(np.inf), "rate = inf"),
        (lambda: p.check_law(p.coloured(lambda f: f - 0.3), (8, 8)), "variance nan"),
        (lambda: p.check_law(Doubled(elementwise=False), (8, 8)), "variance [34]"),
        (lambda: p.check_law(Turning(), (2,)), "Turning changes with t, but its varies is False"),
        (lambda: p.check_law(p.mixture(p.normal(), Slashed()), (2,)), "finite variance"),
        (lambda: p.blur(0.0), "width = 0.0"),
        (lambda: p.pixelate((4, 2)), "sizes above 1 that rise"),
        (lambda: p.colours([[1.0, 0.0]]), "as many rows as columns"),
        (lambda: p.fitted(np.zeros((1, 3))), "2 at least"),
        (lambda: p.pixelate((3,))(jnp.zeros((4, 4)), 0.5), "divisors"),
        (lambda: p.quarter_turns()(jnp.zeros((4, 3)), 0.5), "height = width"),
        (lambda: p.rotation(1.0)(jnp.zeros((5, 3)), 0.5), "axis="),
        (lambda: p.mask()(jnp.zeros((4, 4)), 0.5), r"draw\(key, shape\)"),
        (lambda: p.mask().inverse(jnp.zeros((4, 4)), 0.5), "predict x0"),
    ],
)
def test_mistakes_are_named_with_what_would_work(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Doubled(p.Law):
    """Not standardised."""

    elementwise: bool = dataclasses.field(default=True, metadata={"static": True})

    def from_normal(self, eps: jax.Array, t: Any, /) -> jax.Array:
        return 2 * eps


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turning(p.Law):
    """Another one at every t, which it does not say."""

    def from_normal(self, eps: jax.Array, t: Any, /) -> jax.Array:
        return jnp.where(t < 0.7, eps, -eps)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slashed(p.Law):
    """Cauchy's law."""

    def from_normal(self, eps: jax.Array, t: Any, /) -> jax.Array:
        return jnp.tan(jnp.pi * (jax.scipy.special.ndtr(eps) - 0.5))

    def to_normal(self, noise: jax.Array, t: Any, /) -> jax.Array:
        return jax.scipy.special.ndtri(0.5 + jnp.arctan(noise) / jnp.pi)


TRANSFORMS: dict[str, tuple[p.Transform, tuple[int, ...]]] = {
    "identity": (p.IDENTITY, (3,)),
    "shift": (p.shift((3, -2)), (4, 5, 1)),
    "flip": (p.flip(), (4, 5)),
    "quarter_turns": (p.quarter_turns(3), (4, 4)),
    "rotation": (p.rotation(2.0), (3, 2)),
    "rotation in space": (p.rotation(2.0, axis=(1.0, 2.0, -1.0)), (2, 3)),
    "scale": (p.scale([0.5, 3.0]), (3, 2)),
    "shear": (p.shear(1.5), (3, 2)),
    "translation": (p.translation([1.0, -2.0]), (3, 2)),
    "translations": (p.varied(p.translation, (0.0, 1.0), (1.0, 3.0)), (3, 2)),
    "composed": (p.composed(p.rotation(1.0), p.scale(0.5), p.translation([1.0, 2.0])), (2,)),
    "varied": (p.varied(p.rotation, -1.0, 1.0), (3, 2)),
    "warp": (p.warp(0.7, zoom=1.5), (5, 5, 1)),
    "colours": (p.colours([[1 / 3] * 3] * 3), (2, 2, 3)),
    "colours, mixed": (p.colours([[0.5, 0.5], [-0.5, 0.5]]), (2, 2, 2)),
    "blur": (p.blur(3.0), (4, 4)),
    "mask": (p.mask(), (4, 4, 2)),
    "pixelate": (p.pixelate((2, 4)), (4, 4)),
    "overlap": (p.overlap(np.ones((2, 3, 3))), (3, 3)),
    "composed, singular": (p.composed(p.shift((1,)), p.mask()), (4, 4)),
}
ORTHOGONAL = ("identity", "shift", "flip", "quarter_turns", "rotation", "rotation in space", "varied")
TIMES = (0.05, 0.2, 0.6, 1.0)


@functools.cache
def measured() -> dict[str, dict[str, Any]]:
    """Of every transform: g_0(x) − x and, at `TIMES`, the matrix of g_t and the error of the round trip."""

    def of_one(transform: p.Transform, shape: tuple[int, ...]) -> dict[str, Any]:
        g, x = transform.draw(jax.random.key(1), shape), jax.random.normal(jax.random.key(2), shape)
        basis = jnp.concatenate([jnp.zeros((1, x.size)), jnp.eye(x.size)]).reshape(-1, *shape)

        def at(t: jax.Array) -> Any:
            images = jax.vmap(lambda e: g(e, t).ravel())(basis)  # g_t is affine
            invertible = type(g).inverse is not p.Transform.inverse and transform.singular_from > 0
            return images[1:] - images[:1], g.inverse(g(x, t), t) - x if invertible else x

        matrices, back = jax.vmap(at)(jnp.array(TIMES))
        return {"at 0": g(x, 0.0) - x, "matrices": matrices, "back": back}

    with jax.enable_x64(True):
        return jax.device_get(jax.jit(lambda: {name: of_one(*pair) for name, pair in TRANSFORMS.items()})())


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_grows_from_the_identity(name: str) -> None:
    np.testing.assert_allclose(measured()[name]["at 0"], 0, atol=1e-14)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_is_undone_until_it_says_that_it_is_singular_and_not_at_the_end_if_it_is(name: str) -> None:
    transform, found = TRANSFORMS[name][0], measured()[name]
    said = transform.gain(np.array(TIMES))
    for t, matrix, error, most in zip(TIMES, found["matrices"], found["back"], said, strict=True):
        gain = 1 / max(np.linalg.svd(matrix)[1].min(), 1e-300)
        if t < transform.singular_from:
            np.testing.assert_allclose(error, 0, atol=1e-10)
            assert gain < 1e3
            assert gain <= most * (1 + 1e-9) if "composed" in name else most == pytest.approx(gain)
        elif t == 1:
            assert gain > 1e3


@pytest.mark.parametrize("name", [name for name, (g, _) in TRANSFORMS.items() if g.singular_from <= 1])
def test_what_is_marked_singular_fails_the_round_trip(name: str) -> None:
    """At the end of the path, in float32."""
    transform, shape = TRANSFORMS[name]
    g, x = transform.draw(jax.random.key(1), shape), jax.random.normal(jax.random.key(2), shape)
    if name in ("warp", "mask", "composed, singular"):
        with pytest.raises(ValueError, match="has no inverse; let the network predict x0"):
            g.inverse(g(x, 1.0), 1.0)
    else:
        assert not np.all(np.abs(g.inverse(g(x, 1.0), 1.0) - x) < 0.1)


@pytest.mark.parametrize("name", ORTHOGONAL)
def test_what_only_moves_is_orthogonal(name: str) -> None:
    for matrix in measured()[name]["matrices"]:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-12)


def test_the_times_at_which_inverses_end(x64: None) -> None:
    """Blur's by its gain on a checkerboard; that of a matrix of colours by its determinant; float32 loses both."""
    blur = p.blur(3.0)
    checkers = jnp.asarray((-1.0) ** np.add.outer(np.arange(4), np.arange(4)))
    assert float(blur.inverse(checkers, blur.singular_from)[0, 0]) == pytest.approx(1e3, rel=0.01)
    assert not np.all(np.isfinite(blur.inverse(jnp.ones((4, 4), jnp.float32), jnp.float32(1.5))))
    for colours, end in (
        ([[-1.0, 0.0], [0.0, 2.0]], 0.5),
        ([[-500.3]], 1 / 501.3),
        (np.triu(np.ones((3, 3)), 1).tolist(), 1.0),
    ):
        assert end - 0.11 < p.colours(colours).singular_from <= end  # of the last the gain is 10³ at t = 0.9
    assert p.colours([[0.5, 0.5], [-0.5, 0.5]]).singular_from == np.inf
    assert p.composed(p.shift((1,)), p.pixelate((2, 4))).singular_from == pytest.approx(0.4995)
    assert p.composed(*[p.blur(0.8)] * 4).singular_from == pytest.approx(p.blur(1.6).singular_from)  # variances add up
    assert p.scale(1e-4).singular_from == pytest.approx(0.75)
    assert p.shear(2e3).singular_from == pytest.approx(0.5, abs=1e-3)
    found = {name: TRANSFORMS[name][0].singular_from for name in ("warp", "mask", "overlap")}
    assert found == {"warp": 0, "mask": 0, "overlap": 0.999}


def test_noise_of_low_frequencies_passes_whatever_the_mean_of_a_sample_is() -> None:
    """Most of its power is in the mean of a sample, and so are the errors of its moments."""
    p.check_law(p.coloured(lambda f: f**-3), (32, 32))


def test_composing_nothing_does_nothing() -> None:
    assert p.composed() == p.composed(p.IDENTITY) == p.IDENTITY
    assert p.composed(p.IDENTITY, p.blur(1.0)) == p.blur(1.0)


@pytest.mark.parametrize("name", [*CONTINUOUS, "mixture"])
def test_an_inverse_holds_in_float32(name: str) -> None:
    law = MIXTURE if name == "mixture" else CONTINUOUS[name][0]
    eps = jnp.asarray(EPS, jnp.float32)
    back = law.to_normal(law.from_normal(eps, 0.3), 0.3)
    np.testing.assert_allclose(back, eps, atol=0.04 if name == "mixture" else 0.01)


def test_transforms_are_what_their_formulas_say(x64: None) -> None:
    x, points = (np.random.default_rng(0).normal(size=s) for s in ((4, 4), (5, 3)))
    about = np.array([1.0, 2.0, -1.0]) / np.sqrt(6)
    means = np.broadcast_to(x.reshape(2, 2, 2, 2).mean((1, 3), keepdims=True), (2, 2, 2, 2)).reshape(4, 4)
    sheared = points + 1.5 * points[:, :1] * np.array([[0, 0, 1]])
    cases = [
        (p.shift((3, -2)), x, 0.5, np.roll(x, (2, -1), (0, 1))),
        (p.flip(), x, 0.5, x[:, ::-1]),
        (p.quarter_turns(2), x, 0.5, np.rot90(x)),
        (p.warp(np.pi / 2), x, 1.0, np.rot90(x)),
        (p.rotation(2.0, axis=(1.0, 2.0, -1.0)), points, 0.5, Rotation.from_rotvec(about).apply(points)),
        (p.rotation(np.pi), np.array([1.0, 0.0]), 0.5, np.array([0.0, 1.0])),
        (p.scale([4.0, 1.0, 9.0]), points, 0.5, points * np.array([[2, 1, 3]])),
        (p.shear(3.0, to=2, by=0), points, 0.5, sheared),
        (p.translation([1.0, 2.0, 3.0]), points, 0.5, points + np.array([[0.5, 1, 1.5]])),
        (p.composed(p.scale(4.0), p.translation([1.0, 0, 0])), points, 0.5, 2 * points + np.array([[0.5, 0, 0]])),
        (p.blur(3.0), x, 0.4, np.fft.ifft2(scipy.ndimage.fourier_gaussian(np.fft.fft2(x), 1.2)).real),
        (p.pixelate((2, 4)), x, 0.25, (x + means) / 2),
        (p.pixelate((2, 4)), x, 0.75, (means + x.mean()) / 2),
        (p.colours([[0.0, 1.0], [1.0, 0.0]]), x[:, :2], 1.0, x[:, 1::-1]),
    ]
    found = jax.jit(lambda: [transform(jnp.asarray(sample), t) for transform, sample, t, _ in cases])()
    for image, (transform, _, t, expected) in zip(found, cases, strict=True):
        np.testing.assert_allclose(image, expected, atol=1e-9, err_msg=f"{transform} at {t}")


def test_random_parameters_are_those_of_their_law() -> None:
    keys, shape = jax.random.split(jax.random.key(0), 2000), (4, 4, 1)
    others = jnp.arange(3.0)[:, None, None, None] * jnp.ones((1, *shape))
    composed = p.composed(p.varied(p.warp, -1.0, 3.0), p.mask(), p.overlap(others))
    warp, mask, overlap = jax.vmap(lambda key: composed.draw(key, shape))(keys).parts
    assert scipy.stats.kstest(np.asarray(warp.angle), scipy.stats.uniform(-1, 4).cdf).pvalue > 1e-3
    assert mask.hidden_from.shape == (2000, 4, 4, 1)
    assert scipy.stats.kstest(np.asarray(mask.hidden_from).ravel(), scipy.stats.uniform().cdf).pvalue > 1e-3
    seen = np.bincount(np.asarray(overlap.other)[:, 0, 0, 0].astype(int))
    assert scipy.stats.chisquare(seen).pvalue > 1e-3


def test_a_start_has_the_mean_and_covariance_of_the_data() -> None:
    """50 samples of 6 numbers; a draw is linear in the normal numbers, whose matrix is the factors'."""
    x = np.random.default_rng(0).normal(size=(50, 3, 2)) @ np.array([[1.0, 2.0], [0.0, 0.3]]) + 1
    start = p.fitted(x)
    np.testing.assert_allclose(start.mean, x.mean(0), rtol=1e-5)
    factors = np.asarray(start.factors).reshape(-1, 6)
    np.testing.assert_allclose(factors.T @ factors, np.cov(x.reshape(50, 6).T), rtol=1e-4, atol=1e-5)
    draws = jax.vmap(start)(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(draws.mean(0), x.mean(0), atol=4 * 2 / np.sqrt(4000))
