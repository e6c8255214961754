"""The exact denoisers against SciPy's densities, autodiff, and integration by quadrature."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxdiff import analytic, schedules
from jaxdiff.typing import InputError

RNG = np.random.default_rng(0)
WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = RNG.normal(size=(3, 2))
ROOTS = RNG.normal(size=(3, 2, 2))
MATRICES = ROOTS @ ROOTS.swapaxes(1, 2) + 0.1 * np.eye(2)
X = np.array([[0.3, -0.7], [2.0, 1.0], [-8.0, 3.0]])
TIMES = [0.0, 0.4, 1.0]

pytestmark = pytest.mark.usefixtures("x64")
every_schedule = pytest.mark.parametrize("name", ["linear", "vp", "ve", "flow"])


def mixture(name: str) -> Any:
    return analytic.mixture(WEIGHTS, MEANS, MATRICES, schedules.SCHEDULES[name]())


@jax.jit
def everything(exact: Any, t: jax.Array) -> dict[str, Any]:
    """All outputs of a denoiser at every x of `X`, for the whole mixture and for each component."""

    def of(x: jax.Array, cond: jax.Array | None) -> dict[str, Any]:
        log_density, gradient = jax.value_and_grad(lambda x: exact.log_density(x, t, cond))(x)
        score, prediction = exact.score(x, t, cond), exact(x, t, cond)
        return {"log_density": log_density, "gradient": gradient, "score": score, "prediction": prediction}

    whole = jax.vmap(lambda x: of(x, None) | {"posterior": exact.log_posterior(x, t)})(X)
    parts = jax.vmap(lambda cond: jax.vmap(lambda x: of(x, cond))(X))(jnp.arange(3))
    schedule = exact.process.schedule
    return {"whole": whole, "parts": parts, "alpha": schedule.alpha(t), "sigma": schedule.sigma(t)}


def densities(alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """w_j N(x; α m_j, α² C_j + σ² I) for every x and j, by SciPy."""
    components = [
        stats.multivariate_normal(alpha * m, alpha**2 * c + sigma**2 * np.eye(2))
        for m, c in zip(MEANS, MATRICES, strict=True)
    ]
    return np.stack([w * component.pdf(X) for w, component in zip(WEIGHTS, components, strict=True)], 1)


@every_schedule
@pytest.mark.parametrize("t", TIMES)
def test_densities_and_posteriors_are_those_of_scipy(name, t):
    found = jax.device_get(everything(mixture(name), np.float64(t)))
    joint = densities(found["alpha"], found["sigma"])
    np.testing.assert_allclose(found["whole"]["log_density"], np.log(joint.sum(1)), rtol=1e-9)
    posterior = np.exp(found["whole"]["posterior"])
    np.testing.assert_allclose(posterior, joint / joint.sum(1, keepdims=True), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found["parts"]["log_density"], np.log(joint / WEIGHTS).T, rtol=1e-8)


@every_schedule
@pytest.mark.parametrize("t", TIMES)
def test_the_score_is_the_gradient_of_the_density_and_the_noise_is_its_negative(name, t):
    found = jax.device_get(everything(mixture(name), np.float64(t)))
    alpha, sigma = found["alpha"], found["sigma"]
    for of in (found["whole"], found["parts"]):
        x0, noise, _ = of["prediction"]
        np.testing.assert_allclose(of["score"], of["gradient"], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(noise, -sigma * of["gradient"], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(alpha * x0 + sigma * noise, np.broadcast_to(X, x0.shape), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.99])
def test_the_estimate_is_the_posterior_mean(t):
    """In one dimension, by quadrature of x_0 p(x_0) N(x_t; α x_0, σ²)."""
    schedule = schedules.VP()
    exact = analytic.mixture([0.4, 0.6], [[-1.0], [0.7]], [0.05, 0.2], schedule)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))

    def joint(x0: float, power: int) -> float:
        prior = 0.4 * stats.norm.pdf(x0, -1.0, 0.05**0.5) + 0.6 * stats.norm.pdf(x0, 0.7, 0.2**0.5)
        return x0**power * prior * stats.norm.pdf(0.3, alpha * x0, sigma)

    moments = [
        integrate.quad(joint, -8, 8, args=(power,), points=[-1, 0.3 / alpha, 0.7], limit=400)[0] for power in (0, 1)
    ]
    found = exact(jnp.array([0.3]), t).x0
    np.testing.assert_allclose(found, moments[1] / moments[0], rtol=1e-7)


def test_variances_of_coordinates_matrices_and_images_agree():
    schedule, variances = schedules.Cosine(), RNG.uniform(0.1, 1, (2, 2, 3, 1))
    means, weights = RNG.normal(size=(2, 2, 3, 1)), [1.0, 3.0]
    x = jnp.asarray(RNG.normal(size=(2, 3, 1)))
    flat = np.stack([np.diag(v.ravel()) for v in variances])
    one = analytic.mixture(weights, means, variances, schedule)
    other = analytic.mixture(weights, means.reshape(2, 6), flat, schedule)
    np.testing.assert_allclose(one(x, 0.3).x0.ravel(), other(x.ravel(), 0.3).x0, rtol=1e-12)
    np.testing.assert_allclose(one.log_density(x, 0.3), other.log_density(x.ravel(), 0.3), rtol=1e-12)
    alone = analytic.gaussian(means[0], variances[0], schedule)
    np.testing.assert_allclose(alone(x, 0.3).noise, one(x, 0.3, jnp.asarray(0)).noise, rtol=1e-12)


@every_schedule
def test_a_point_mass_is_predicted(name):
    """x̂_0 is the point at every t, and nothing is divided by zero, in float32 too."""
    for dtype in (jnp.float64, jnp.float32):
        exact = analytic.gaussian([0.5, -1.0], 0.0, schedules.SCHEDULES[name]())
        for t in (0.0, 0.5, 1.0):
            x0, noise, _ = exact(jnp.array([0.1, 0.2], dtype), jnp.asarray(t, dtype))
            np.testing.assert_allclose(x0, [0.5, -1.0], rtol=1e-5)
            assert jnp.isfinite(noise).all()


def test_draws_have_the_exact_mean_covariance_and_weights():
    exact, n = mixture("vp"), 200_000
    x, classes = jax.device_get(exact.data.sample_with_classes(jax.random.key(0), n))
    mean, covariance = np.asarray(exact.data.mean()), np.asarray(exact.data.covariance())
    np.testing.assert_allclose(x.mean(0), mean, atol=4 * np.sqrt(covariance.diagonal().max() / n))
    centred = x - mean
    products = centred[:, :, None] * centred[:, None, :]
    np.testing.assert_array_less(np.abs(products.mean(0) - covariance), 4 * products.std(0) / np.sqrt(n))
    np.testing.assert_allclose(np.bincount(classes) / n, WEIGHTS, atol=4 * 0.5 / np.sqrt(n))
    np.testing.assert_array_equal(exact.data.sample(jax.random.key(0), n), x)


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "message"),
    [
        ([1.0, 0.0], [[0.0], [1.0]], [1.0, 1.0], "weights = .* above 0"),
        ([1.0], [[0.0], [1.0]], [1.0, 1.0], "give .k,. weights"),
        ([1.0], [[0.0, 1.0]], [-1.0], "eigenvalue of -1.0"),
        ([1.0], [[0.0, 1.0]], [[[1.0, 0.5], [0.0, 1.0]]], "not symmetric"),
        ([1.0], [[0.0, 1.0]], [[1.0, 1.0, 1.0]], r"give \(1,\), \(1, 2\) or \(1, 2, 2\)"),
    ],
)
def test_an_invalid_mixture_is_refused(weights, means, covariances, message):
    with pytest.raises(InputError, match=message):
        analytic.mixture(weights, means, covariances, schedules.VP())


def test_samples_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"shape \(3,\).*\(2,\)"):
        mixture("vp")(jnp.zeros(3), 0.5)
