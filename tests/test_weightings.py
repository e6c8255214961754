"""Weightings: each against its formula, the same loss for every target, finite at the ends, and the ELBO."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import integrate

from jaxdiff import analytic, denoiser, from_function, losses, registry, schedules, weightings
from jaxdiff.data import DataSpec
from jaxdiff.experiment.build import make_experiment
from jaxdiff.processes import Gaussian
from jaxdiff.processes.parameterization import KINDS
from jaxdiff.schedules import Schedule
from jaxdiff.typing import InputError, Prediction, pytree

# One of each kind: discrete, preserving variance, exploding, and with α = 0 at an end.
SCHEDULES: dict[str, Schedule] = {name: schedules.SCHEDULES[name]() for name in ("linear", "vp", "ve", "flow")}
TEXTS = (
    "simple",
    "snr",
    "truncated_snr",
    "min_snr:gamma=2",
    "p2:gamma=0.5,k=3",
    "elbo",
    "sigmoid:bias=-1",
    "elbo:num_timesteps=50",
)


def make(text: str) -> weightings.Weighting:
    return registry.make("weight", text, weightings.WEIGHTINGS)


WEIGHTINGS = {text: make(text) for text in TEXTS}
TIMES = (0.0253, 0.5004, 0.9706)  # inside the segments of discrete schedules, where λ is smooth
X0 = np.random.default_rng(0).normal(size=(2, 3))
KEY = jax.random.key(7)
SPEC = DataSpec(shape=(2,), levels=None)

every_schedule = pytest.mark.parametrize("name", SCHEDULES)


def of_numpy(schedule: Schedule, t: float) -> tuple[dict[str, float], float]:
    """The weights on eps by their published formulas, and the SNR, in float64; λ' by finite differences."""

    def log_snr(t: float) -> float:
        return 2 * math.log(schedule.alpha(jnp.float64(t))) - 2 * math.log(schedule.sigma(jnp.float64(t)))

    h, lam = 1e-5, log_snr(t)
    rate = (8 * (log_snr(t + h) - log_snr(t - h)) - (log_snr(t + 2 * h) - log_snr(t - 2 * h))) / (12 * h)
    snr = math.exp(lam)
    return {
        "simple": 1,
        "snr": 1,
        "truncated_snr": max(snr, 1) / snr,
        "min_snr:gamma=2": min(snr, 2) / snr,
        "p2:gamma=0.5,k=3": 1 / math.sqrt(3 + snr),
        "elbo": -rate / 2,
        "sigmoid:bias=-1": -rate / 2 / (1 + math.exp(1 + lam)),
        "elbo:num_timesteps=50": 25 * (math.exp(log_snr(t - 1 / 50)) / snr - 1),
    }, snr


@every_schedule
@pytest.mark.parametrize("t", TIMES)
def test_each_weight_is_its_formula_on_eps_and_on_x0(name: str, t: float, x64: None) -> None:
    schedule = SCHEDULES[name]
    formulas, snr = of_numpy(schedule, t)
    assert list(formulas) == list(WEIGHTINGS)
    found = jax.device_get(jax.jit(lambda t: {text: w(schedule, t) for text, w in WEIGHTINGS.items()})(jnp.float64(t)))
    for text, formula in formulas.items():
        assert found[text].eps == pytest.approx(formula, rel=1e-8), text
        assert found[text].x0 == pytest.approx(formula * snr, rel=1e-8), text


@every_schedule
@pytest.mark.quick(name=["linear", "ve"])
def test_the_loss_is_the_same_for_every_target(name: str, x64: None) -> None:
    """For a denoiser with x̂_0 off by 0.3 in every coordinate, and so n̂ by −0.3 α/σ."""
    schedule, x0, error = SCHEDULES[name], jnp.asarray(X0), 0.3

    def wrong(x_t: jax.Array, t: jax.Array, cond: Any = None, /) -> Prediction:
        return Prediction(x0 + error, (x_t - schedule.alpha(t) * (x0 + error)) / schedule.sigma(t))

    model = from_function(wrong, Gaussian(schedule))

    @jax.jit
    def loss(t: jax.Array) -> dict[tuple[str, str], jax.Array]:
        found, factors = {}, factors_at(t, schedule)
        for kind in KINDS:
            measure = functools.partial(losses.weighted, model, x0, t, key=KEY, target=kind)
            one, of_kind = measure(weight=WEIGHTINGS["simple"]), factors[kind]
            found |= {(text, kind): one * of_kind[i] / of_kind[0] for i, text in enumerate(TEXTS)}
            found["min_snr:gamma=2", kind] = measure(weight=WEIGHTINGS["min_snr:gamma=2"])
        return found

    for t in TIMES:
        formulas, snr = of_numpy(schedule, t)
        for (text, kind), found in jax.device_get(loss(jnp.float64(t))).items():
            assert found == pytest.approx(formulas[text] * snr * error**2, rel=1e-8), (text, kind, t)


def factors_at(t: Any, schedule: Schedule) -> dict[str, jax.Array]:
    """For each target the weights of `TEXTS` on its squared error."""
    eps, x0 = zip(*(weighting(schedule, t) for weighting in WEIGHTINGS.values()), strict=True)
    weights = weightings.Weights(jnp.stack(eps), jnp.stack(x0))
    return {
        target: jax.vmap(functools.partial(weightings.for_target, target, t=t, schedule=schedule))(weights)
        for target in KINDS
    }


def infinite(name: str, text: str, target: str, t: float) -> bool:
    """Where a weight is documented to be infinite."""
    late = text.partition(":")[0] in ("truncated_snr", "elbo", "sigmoid")
    return SCHEDULES[name].alpha(t) == 0 and late and target in ("eps", "score")


@every_schedule
@pytest.mark.quick(name=["linear", "flow"])
def test_the_loss_and_its_derivative_in_the_output_are_finite_at_all_trained_times(name: str) -> None:
    """The sample has a part for each kind of prediction: the loss is finite if that of each part is."""
    process = Gaussian(SCHEDULES[name])
    times = (2.0**-23, 1e-3, 1.0)  # the first is the smallest that a continuous draw can give
    x0 = jnp.asarray(np.stack([X0] * len(KINDS)), jnp.float32)

    @jax.jit
    def parts(t: jax.Array) -> Any:
        def all_losses(output: jax.Array) -> dict[str, jax.Array]:
            networks = [denoiser(lambda params, x, t: params[None], output, process, predicts=kind) for kind in KINDS]

            def predict(x_t: jax.Array, t: jax.Array, cond: Any, /) -> Prediction:
                found = [network(x, t) for network, x in zip(networks, x_t, strict=True)]
                return Prediction(jnp.stack([one.x0 for one in found]), jnp.stack([one.noise for one in found]))

            model = from_function(predict, process)
            return {target: losses.simple(model, x0, t, key=KEY, target=target) for target in KINDS}

        plain = jax.jvp(all_losses, (jnp.full((2, 3), 0.5),), (jnp.ones((2, 3)),))
        return plain, factors_at(t, process.schedule)

    for t in times:
        (value, slope), factors = jax.device_get(parts(jnp.float32(t)))
        for target in KINDS:
            for text, factor in zip(TEXTS, factors[target], strict=True):
                with np.errstate(all="ignore"):
                    finite = np.all(np.isfinite(factor * np.array([value[target], slope[target]])))
                assert finite != infinite(name, text, target, t), (text, target, t)


@pytest.mark.parametrize("t", [0.3, 0.8])
def test_infinitely_weak_truncations_are_the_simple_weight_and_the_elbo(t: float, x64: None) -> None:
    schedule = schedules.Cosine()
    np.testing.assert_allclose(weightings.sigmoid(bias=50)(schedule, t), weightings.elbo()(schedule, t), rtol=1e-12)
    np.testing.assert_array_equal(weightings.min_snr(gamma=1e12)(schedule, t), weightings.simple()(schedule, t))


@pytest.mark.parametrize("target", KINDS)
def test_the_weight_is_0_without_noise(target: str) -> None:
    schedule = SCHEDULES["linear"]
    for text, weighting in WEIGHTINGS.items():
        assert weightings.for_target(target, weighting(schedule, 0.0), t=0.0, schedule=schedule) == 0, text


def test_the_discrete_elbo_has_the_weights_of_ho_et_al(x64: None) -> None:
    """Equation 12 with σ_t² = β̃_t: β_t²/(2 β̃_t α_t (1 − ᾱ_t)) on eps at each of the T times, 0 at the first."""
    T, beta = 1000, np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - beta)
    posterior = (1 - bar[:-1]) / (1 - bar[1:]) * beta[1:]
    expected = beta[1:] ** 2 / (2 * posterior * (1 - beta[1:]) * (1 - bar[1:]))
    t = jnp.arange(1, T + 1) / T
    found = jax.jit(jax.vmap(lambda t: weightings.elbo(num_timesteps=T)(SCHEDULES["linear"], t).eps))(t)
    assert found[0] == 0
    np.testing.assert_allclose(found[1:] / T, expected, rtol=1e-9)


@every_schedule
def test_the_discrete_elbo_is_the_divergence_of_two_posteriors(name: str, x64: None) -> None:
    """KL of q(x_s|x_t, x_0) from q(x_s|x_t, x̂_0), T times, is the weight on x_0 of (x_0 − x̂_0)²."""
    schedule, T = SCHEDULES[name], 40
    for k in (1, 2, 21, 40):
        s, t = jnp.float64((k - 1) / T), jnp.float64(k / T)
        found = weightings.elbo(num_timesteps=T)(schedule, t).x0
        a_s, s_s, a_t, s_t = (float(f(u)) for u in (s, t) for f in (schedule.alpha, schedule.sigma))
        if s_s == 0:
            assert k == 1
            assert found == 0
            continue
        step = s_t**2 - (a_t / a_s) ** 2 * s_s**2  # the variance of x_t given x_s
        mean, variance = a_s * step / s_t**2, step * s_s**2 / s_t**2
        assert found == pytest.approx(T * mean**2 / (2 * variance), rel=1e-6), k  # step cancels to 1e-9 at k = 1


@pytree(kw_only=False, eq=False)
class GivenNoise(Gaussian):
    """With this noise instead of a random one."""

    given: Any

    def sample_noise(self, key: Any, shape: tuple[int, ...], t: Any = 1.0) -> Any:
        return self.given


@every_schedule
def test_the_elbo_of_gaussian_data_depends_on_the_ends_alone(name: str, x64: None) -> None:
    """For x_0 ~ N(m, c) the error of n̂ has variance c SNR/(1 + c SNR), which integrates over ½ dλ to ½ log(1 + c SNR).

    The error is linear in ((x_0 − m)/√c, n) ~ N(0, I), so that the sum of its squares at the two unit vectors is its
    expectation: no sampling. Between λ = 6 and λ = −4.
    """
    schedule, m, c, high, low = SCHEDULES[name], 0.5, 0.3, 6.0, -4.0
    exact = analytic.gaussian(np.full(2, m), c, schedule)
    exact = exact.with_process(GivenNoise(schedule, jnp.array([0.0, 1.0])))
    x0 = m + math.sqrt(c) * jnp.array([1.0, 0.0])

    start, end = (float(schedule.time(jnp.float64(lam))) for lam in (high, low))
    kinks = np.arange(1001) / 1000  # of discrete schedules
    edges = np.concatenate([[start], kinks[(kinks > start) & (kinks < end)], [end]])
    nodes, weights = np.polynomial.legendre.leggauss(5)
    widths = np.diff(edges)[:, None] / 2
    times = (edges[:-1, None] + widths * (1 + nodes)).ravel()

    @jax.jit
    @jax.vmap
    def loss(t: jax.Array) -> list[jax.Array]:
        measure = functools.partial(losses.weighted, exact, x0, t, key=KEY)
        found = [measure(weight=make(text)) for text in ("elbo", "sigmoid:bias=1")]
        return [2 * value for value in [*found, measure(weight=weightings.elbo(), target="v")]]  # a mean of two

    bound, cut, in_v = (np.sum(widths * weights * np.reshape(values, (-1, 5))) for values in loss(jnp.asarray(times)))
    expected = 0.5 * math.log((1 + c * math.exp(high)) / (1 + c * math.exp(low)))
    assert bound == pytest.approx(expected, rel=1e-8)
    assert in_v == pytest.approx(expected, rel=1e-8)

    def density(lam: float) -> float:
        return 0.5 / (1 + math.exp(lam - 1)) * c * math.exp(lam) / (1 + c * math.exp(lam))

    assert cut == pytest.approx(integrate.quad(density, low, high, epsabs=1e-12)[0], rel=1e-8)


def test_the_condition_reaches_the_network() -> None:
    process = Gaussian(SCHEDULES["flow"])
    model = denoiser(lambda params, x, t, cond: 0 * x + cond[:, None], None, process, predicts="x0")
    found = losses.weighted(
        model, jnp.full(3, 5.0), 0.25, key=KEY, weight=weightings.min_snr(), cond=jnp.float32(3), target="x0"
    )
    assert found == pytest.approx(5 * 2**2, rel=1e-6)  # SNR = 9, cut to 5


@pytest.mark.parametrize("weight", [None, "min_snr:gamma=3"])
@pytest.mark.quick(weight=["min_snr:gamma=3"])
def test_an_experiment_uses_the_weight_of_its_config(weight: str | None) -> None:
    config = tiny.config({"loss": {"target": "v", "weight": weight}})
    experiment = make_experiment(config, SPEC)
    params = jax.jit(experiment.init)(jax.random.key(0))
    t, keys, _ = jax.jit(lambda key: experiment.draw(key, 4))(jax.random.key(1))
    x0 = jax.random.normal(jax.random.key(2), (4, 2))
    model = experiment.network(params)
    schedule = model.process.schedule

    def expected(x0: jax.Array, t: jax.Array, key: jax.Array) -> jax.Array:
        plain = losses.simple(model, x0, t, key=key, target="v")
        if weight is None:
            return plain
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return jnp.minimum(alpha**2 / sigma**2, 3) * sigma**2 * plain  # the error of x̂_0 is σ times that of v

    found = jax.jit(experiment.loss)(params, x0, t, keys)
    np.testing.assert_allclose(found, jax.jit(jax.vmap(expected))(x0, t, keys), rtol=1e-5)


@pytest.mark.parametrize("target", ["eps", "v"])
def test_an_experiment_refuses_an_infinite_weight(target: str) -> None:
    config = tiny.config({"loss": {"target": target, "weight": "elbo"}, "schedule": {"name": "flow"}})
    if target == "v":
        assert make_experiment(config, SPEC).config.loss.built_weight is not None
        return
    message = (
        r"^loss\.weight = 'elbo' is infinite at t = 1 on loss\.target = 'eps'.* set loss\.target to v, velocity or x0$"
    )
    with pytest.raises(InputError, match=message):
        make_experiment(config, SPEC)


def test_every_weighting_is_made_from_its_name_and_tested_here() -> None:
    assert {text.partition(":")[0] for text in TEXTS} == set(weightings.WEIGHTINGS)
    for name in weightings.WEIGHTINGS:
        assert make(name)(SCHEDULES["vp"], 0.5).eps > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("minsnr", "weight = 'minsnr'; the known ones are elbo, min_snr, .*did you mean 'min_snr'\\?"),
        ("min_snr:g=5", "weight = 'min_snr:g=5' has no option 'g'; it takes gamma"),
        ("simple:gamma=5", "weight = 'simple:gamma=5' has no option 'gamma'; it takes none"),
        ("min_snr:gamma=five", "weight.gamma = 'five' has the wrong type; it must be float"),
        ("min_snr:gamma=0", "weight = 'min_snr' with gamma = 0.0; gamma must be above 0, and finite"),
        ("p2:gamma=-1", "weight = 'p2' with gamma = -1.0; gamma must be above 0, and finite"),
        ("p2:k=0", "weight = 'p2' with k = 0.0; k must be above 0, and finite"),
        ("elbo:num_timesteps=0", "weight = 'elbo' with num_timesteps = 0; num_timesteps must be above 0, and finite"),
        ("sigmoid:bias=1e999", "weight.bias = inf; it must be a finite number"),
    ],
)
def test_an_invalid_weighting_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        make(text)


def test_an_unknown_target_is_refused() -> None:
    schedule = SCHEDULES["vp"]
    with pytest.raises(InputError, match="target = 'pixels'; it must be one of eps, x0"):
        weightings.for_target("pixels", weightings.simple()(schedule, 0.5), t=0.5, schedule=schedule)
