"""Guidance where posteriors are known: mixtures, and pairs of normal distributions, whose guided ODE is linear."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

import jaxdiff as jd
from jaxdiff import analytic, guidance, samplers, schedules
from jaxdiff.denoisers.guidance import Composition, Interval
from jaxdiff.processes import Conditioned
from jaxdiff.typing import InputError, Prediction

SCHEDULE = schedules.VP()
PROCESS = jd.Gaussian(SCHEDULE)
WEIGHTS = (-1.5, -0.5, 0.0, 0.7, 3.0)
X, T = jnp.array([0.3, -0.8]), 0.4
# Every deterministic sampler; each takes the denoiser at other times and points.
DETERMINISTIC = ("ddim", "heun", "midpoint", "rk4", "dpm++2m", "dpm++3m")


def mixture() -> Any:
    """The exact denoiser of three components in the plane, each with its own covariance."""
    covariances = [[[0.2, 0.05], [0.05, 0.1]], [[0.1, 0.0], [0.0, 0.3]], [[0.05, -0.02], [-0.02, 0.05]]]
    means = [[1.0, 0.5], [-1.0, 0.3], [0.2, -1.0]]
    return analytic.mixture([0.5, 0.3, 0.2], means, covariances, SCHEDULE)


def log_posterior(exact: Any) -> Any:
    return lambda x, t, cond: exact.log_posterior(x, t)[cond]


@pytest.mark.thorough
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_two_kinds_of_guidance_agree_if_posteriors_are_exact(name: str, x64: None) -> None:
    exact = mixture()
    sampler, cond = samplers.make(name), jnp.array([0, 1, 2])

    @jax.jit
    def drawn(w: jax.Array) -> list[jax.Array]:
        denoisers = (
            guidance.classifier_free(exact, w),
            guidance.classifier(exact, log_posterior(exact), w),
            guidance.classifier(guidance.unconditional(exact), log_posterior(exact), 1 + w),
        )
        options = {"shape": (2,), "n": 3, "steps": 8, "cond": cond}
        return [jd.sample(jax.random.key(0), denoiser, sampler, **options) for denoiser in denoisers]

    unguided = np.asarray(drawn(0.0)[0])
    for w in WEIGHTS:
        free, conditional, unconditional = map(np.asarray, drawn(w))
        np.testing.assert_allclose(conditional, free, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(unconditional, free, rtol=1e-9, atol=1e-10)
        assert w == 0 or np.abs(free - unguided).max() > 0.01


@pytest.mark.thorough
def test_at_pure_noise_classifier_guidance_has_its_limit(x64: None) -> None:
    """At α = 0 x̃_0 is E[x_0|c] + w (E[x_0|c] − E[x_0]), to e^{−7}, the α/σ at which the limit is taken."""
    schedule, w, c = schedules.Flow(), 1.5, jnp.array(1)
    exact = analytic.mixture([0.7, 0.3], [[-1.0, 0.5], [1.0, 0.0]], [0.1, 0.2], schedule)
    free = guidance.classifier_free(exact, w)(X, 1.0, c)
    by = guidance.classifier(exact, log_posterior(exact), w)(X, 1.0, c)
    np.testing.assert_allclose(by.x0, free.x0, rtol=5e-3)
    np.testing.assert_allclose(by.noise, X, rtol=1e-12)
    assert np.abs(by.x0 - exact(X, 1.0, c).x0).max() > 1


def test_a_network_classifier_takes_the_null_label_and_gives_nan_out_of_range() -> None:
    by = guidance.NetworkClassifier(apply=lambda params, x, t: x, params=None, process=PROCESS)
    x = jnp.array([1.0, 2.0, 0.5])
    found = [float(by(x, 0.5, jnp.array(label))) for label in (-1, 1, 3)]
    np.testing.assert_allclose(found[:2], [0.0, float(jax.nn.log_softmax(x)[1])], rtol=1e-6)
    assert np.isnan(found[2])


def test_guidance_keeps_the_sample_on_the_path_and_has_the_stated_score(x64: None) -> None:
    exact, w, c = mixture(), 1.5, jnp.array(1)
    guided = jax.jit(guidance.classifier_free(exact, w))(X, T, c)
    alpha, sigma = SCHEDULE.alpha(T), SCHEDULE.sigma(T)
    np.testing.assert_allclose(alpha * guided.x0 + sigma * guided.noise, X, rtol=1e-12)
    score = (1 + w) * exact.score(X, T, c) - w * exact.score(X, T)
    np.testing.assert_allclose(-guided.noise / sigma, score, rtol=1e-12)
    np.testing.assert_allclose(guidance.classifier_free(exact, -1.0)(X, T, c).x0, exact(X, T).x0, rtol=1e-12)


@pytest.mark.thorough
def test_at_weight_0_the_samples_have_the_distribution_of_their_class(x64: None) -> None:
    """RK4 in 40 steps is exact to 1e-4 here; mean and covariance within 4 standard errors of 20,000 samples."""
    exact, n = mixture(), 20_000
    cond = jnp.full(n, 2)
    x = jd.sample(
        jax.random.key(0),
        guidance.classifier_free(exact, 0.0),
        samplers.RK4(),
        shape=(2,),
        n=n,
        steps=40,
        timesteps="log_snr",
        cond=cond,
    )
    covariance = np.array([[0.05, -0.02], [-0.02, 0.05]])
    assert np.abs(np.mean(np.asarray(x), 0) - [0.2, -1.0]).max() < 4 * np.sqrt(0.05 / n) + 1e-3
    assert np.abs(np.cov(np.asarray(x).T) - covariance).max() < 4 * 0.05 * np.sqrt(2 / n) + 1e-3


def normal_pair(m_c: float, v_c: float, m: float, v: float) -> Any:
    """A denoiser for data N(m_c, v_c) under a condition, and N(m, v) under none."""

    def predict(x_t: jax.Array, t: Any, cond: Any, /) -> Prediction:
        null = jnp.asarray(True if cond is None else cond < 0)
        mean, variance = jnp.where(null, m, m_c), jnp.where(null, v, v_c)
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        slope = (x_t - alpha * mean) / (alpha**2 * variance + sigma**2)
        return Prediction(mean + alpha * variance * slope, sigma * slope)

    return jd.from_function(predict, PROCESS, null=-1)


@pytest.mark.thorough
@pytest.mark.parametrize("w", WEIGHTS)
def test_between_normal_distributions_the_guided_ode_follows_its_solution(w: float, x64: None) -> None:
    """With y = x/α and ς = σ/α, dy/dς = (1 + w) ς (y − m_c)/(v_c + ς²) − w ς (y − m)/(v + ς²) is solved by

        y(0) = h(0)/h(ς_1) y(ς_1) + h(0) ∫_0^{ς_1} f/h dς,    h = (v_c + ς²)^{(1+w)/2} (v + ς²)^{−w/2}

    and f the mean's part, (1 + w) ς m_c/(v_c + ς²) − w ς m/(v + ς²).
    """
    m_c, v_c, m, v = 0.8, 0.1, -0.2, 0.6
    denoiser = guidance.classifier_free(normal_pair(m_c, v_c, m, v), w)
    end = float(SCHEDULE.sigma(1.0) / SCHEDULE.alpha(1.0))

    def h(s: float) -> float:
        return (v_c + s**2) ** ((1 + w) / 2) * (v + s**2) ** (-w / 2)

    def slope(log_s: float) -> float:
        s = np.exp(log_s)
        return s * ((1 + w) * s * m_c / (v_c + s**2) - w * s * m / (v + s**2)) / h(s)

    mean = h(0) * integrate.quad(slope, -20, np.log(end), limit=200, epsabs=1e-12)[0]
    gain = h(0) / h(end) / float(SCHEDULE.alpha(1.0))
    found = jd.decode(denoiser, jnp.array([[0.0], [1.0]]), cond=jnp.array([0, 0]))
    np.testing.assert_allclose(np.asarray(found)[:, 0], [mean, mean + gain], rtol=1e-4, atol=1e-4)
    steps = jd.sample(
        jax.random.key(0),
        denoiser,
        samplers.RK4(),
        shape=(),
        n=4000,
        steps=60,
        timesteps="log_snr",
        cond=jnp.zeros(4000, int),
    )
    sigma = gain * float(SCHEDULE.sigma(1.0))
    assert abs(np.mean(steps) - mean) < 4 * sigma / np.sqrt(4000) + 2e-3
    assert abs(np.std(steps) / sigma - 1) < 4 / np.sqrt(2 * 4000) + 2e-3


def test_a_composition_has_the_weighted_score_and_can_be_guided(x64: None) -> None:
    exact, v, w = mixture(), jnp.array([0.7, 0.5, -0.2]), 0.5
    labels = jnp.array([0, 2, 1])
    composition = Composition(labels, v)
    sigma = SCHEDULE.sigma(T)
    scores = jnp.stack([exact.score(X, T, label) for label in labels])
    plain = jax.jit(guidance.composed(exact))(X, T, composition)
    np.testing.assert_allclose(-plain.noise / sigma, v @ scores, rtol=1e-12)
    guided = jax.jit(guidance.composed(guidance.classifier_free(exact, w)))(X, T, composition)
    np.testing.assert_allclose(-guided.noise / sigma, (1 + w) * v @ scores - w * exact.score(X, T), rtol=1e-10)
    one = guidance.composed(exact)(X, T, Composition(labels[:1], jnp.ones(1)))
    np.testing.assert_allclose(one.x0, exact(X, T, labels[0]).x0, rtol=1e-12)


def test_the_weight_may_depend_on_time_and_be_limited_to_an_interval(x64: None) -> None:
    exact, c = mixture(), jnp.array(0)

    @jax.jit
    def x0(denoiser: Any, t: float) -> jax.Array:
        return denoiser(X, t, c).x0

    def at(w: Any, t: float) -> np.ndarray:
        return np.asarray(x0(guidance.classifier_free(exact, w), t))

    low, high = float(SCHEDULE.log_snr(0.6)), float(SCHEDULE.log_snr(0.2))
    some = Interval(2.0, low=low, high=high)
    np.testing.assert_array_equal(at(some, 0.4), at(2.0, 0.4))
    for t in (0.1, 0.7):
        np.testing.assert_array_equal(at(some, t), at(0.0, t))

    def rising(t: Any) -> Any:
        return 3.0 * t

    np.testing.assert_allclose(at(rising, 0.4), at(1.2, 0.4), rtol=1e-12)
    within = Interval(rising, low=low)
    np.testing.assert_allclose(at(within, 0.1), at(0.3, 0.1), rtol=1e-12)
    np.testing.assert_array_equal(at(within, 0.7), at(0.0, 0.7))


def test_rescaling_undoes_the_growth_of_x0(x64: None) -> None:
    exact, c, w = mixture(), jnp.array(0), 4.0
    plain = exact(X, T, c).x0
    free = guidance.classifier_free(exact, w)(X, T, c).x0
    for share in (0.3, 1.0):
        found = guidance.classifier_free(exact, w, rescale=share)(X, T, c)
        expected = np.asarray(free) * (share * np.std(plain) / np.std(free) + 1 - share)
        np.testing.assert_allclose(found.x0, expected, rtol=1e-12)
        np.testing.assert_allclose(SCHEDULE.alpha(T) * found.x0 + SCHEDULE.sigma(T) * found.noise, X, rtol=1e-12)


def test_both_branches_are_one_call_of_the_network() -> None:
    calls = []

    def network(params: None, x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        calls.append(x.shape)
        return x * labels[:, None].astype(float)

    denoiser = guidance.classifier_free(jd.denoiser(network, None, PROCESS, null=-1), 2.0)
    jaxpr = str(jax.make_jaxpr(denoiser.__call__)(X, 0.5, jnp.array(3)))
    assert len(calls) == 1
    assert "f32[2,1,2]" in jaxpr  # two examples, of two numbers each, mapped over one call


def test_a_structured_condition_has_a_null_of_its_structure() -> None:
    def predict(x_t: jax.Array, t: Any, cond: Any, /) -> Prediction:
        return Prediction(cond["a"] + 0 * x_t, cond["b"] * jnp.ones_like(x_t))

    cond = {"a": jnp.array(2.0), "b": jnp.array(5.0)}
    denoiser = jd.from_function(predict, PROCESS)
    found = guidance.classifier_free(denoiser, 1.0, null={"a": 1.0, "b": 0.0})(X, 0.5, cond)
    np.testing.assert_allclose(found.x0, [3.0, 3.0])
    np.testing.assert_allclose(found.noise, [10.0, 10.0])


def test_the_ancestral_mean_in_log_snr_is_that_of_the_paper(x64: None) -> None:
    """Ho & Salimans 2022, algorithm 2: from λ to a λ' above it the step is N(μ, β̃^{1−v} (σ²_{λ|λ'})^v) with

    μ = e^{λ−λ'} (α'/α) z + (1 − e^{λ−λ'}) α' x̃,    β̃ = (1 − e^{λ−λ'}) σ'²,    σ²_{λ|λ'} = (1 − e^{λ−λ'}) σ²
    """
    exact, c, w, v = mixture(), jnp.array(1), 0.8, 0.3
    t, s = 0.6, 0.35
    low, high = (float(SCHEDULE.log_snr(time)) for time in (t, s))
    gone = 1 - np.exp(low - high)
    x_tilde = guidance.classifier_free(exact, w)(X, t, c).x0
    alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
    alpha_s, sigma_s = float(SCHEDULE.alpha(s)), float(SCHEDULE.sigma(s))
    mean = (1 - gone) * alpha_s / alpha * np.asarray(X) + gone * alpha_s * np.asarray(x_tilde)
    variance = (gone * sigma_s**2) ** (1 - v) * (gone * sigma**2) ** v
    guided = guidance.classifier_free(exact, w)
    key = jax.random.key(7)
    z = PROCESS.sample_noise(key, (2,))
    x_s, _ = samplers.DDPM(variance=v).step(key, X, None, t=t, s=s, denoiser=Conditioned(inner=guided, cond=c))
    np.testing.assert_allclose(x_s, mean + np.sqrt(variance) * np.asarray(z), rtol=1e-10)


def test_invalid_guidance_is_refused() -> None:
    exact = mixture()
    with pytest.raises(InputError, match=r"rescale = 1.5; must satisfy 0 <= rescale <= 1"):
        guidance.classifier_free(exact, 1.0, rescale=1.5)
    with pytest.raises(InputError, match="cond is None"):
        guidance.classifier_free(exact, 1.0)(X, 0.5)
    with pytest.raises(InputError, match=r"low = 1.0, high = -1.0; must satisfy low < high"):
        Interval(1.0, low=1.0, high=-1.0)
    with pytest.raises(InputError, match=r"a composed denoiser takes a jaxdiff\.guidance\.Composition"):
        guidance.composed(exact)(X, 0.5, jnp.array(1))
    laplace = jd.from_function(lambda x, t, cond: exact(x, t), jd.Perturbed(SCHEDULE, noise=jd.noise.Laplace()))
    with pytest.raises(InputError, match=r"guidance by a classifier needs a Gaussian process.*guide it by labels"):
        guidance.classifier(laplace, log_posterior(exact), 1.0)
