"""Likelihoods, latents and interpolation against closed forms, in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import schedules
from jaxdiff.denoisers import analytic
from jaxdiff.likelihood import bits_per_dim, decode, dequantize, encode, log_likelihood, slerp
from jaxdiff.processes import Denoiser, Perturbed
from jaxdiff.processes.noise import Laplace
from jaxdiff.samplers import probability_flow
from jaxdiff.samplers.probability_flow import Solver
from jaxdiff.schedules import Schedule
from jaxdiff.typing import InputError

pytestmark = pytest.mark.usefixtures("x64")

# The mean m of the data that remains in x_1 changes log p by about |m| α_1/σ_1 < 1e-4.
SCHEDULES: dict[str, Schedule] = {
    "vp": schedules.VP(beta_max=50.0),
    "ve": schedules.VE(sigma_max=1e5),
    "flow": schedules.Flow(),
}
EXACT = Solver(rtol=1e-7, atol=1e-7)

every_schedule = pytest.mark.parametrize("name", SCHEDULES)


def mixture(schedule: Schedule, d: int) -> Denoiser:
    """Two normal components with full covariances."""
    rng = np.random.default_rng(0)
    means, roots = 0.5 * rng.normal(size=(2, d)), 0.5 * rng.normal(size=(2, d, d)) / math.sqrt(d)
    return analytic.mixture([0.3, 0.7], means, roots @ roots.swapaxes(1, 2) + 0.05 * np.eye(d), schedule=schedule)


def truth(data: Denoiser, x: jax.Array) -> np.ndarray:
    return np.asarray(jax.vmap(lambda x: data.log_density(x, 0.0))(x))


@every_schedule
@pytest.mark.parametrize("d", [2, 64])
@pytest.mark.quick(d=[2], name=["vp", "ve"])
def test_the_exact_trace_gives_the_true_density(name, d):
    """To 1e-3 nats."""
    data = mixture(SCHEDULES[name], d)
    x = data.data.sample(jax.random.key(1), 4)
    found = log_likelihood(data, x, solver=EXACT)
    np.testing.assert_allclose(found.log_density, truth(data, x), rtol=0, atol=1e-3)
    np.testing.assert_array_equal(found.standard_error, 0)


@pytest.mark.thorough
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinsons_estimate_is_within_three_standard_errors(probe):
    """And the standard error is that of the estimates: 32 squared deviations average to 1 within 4·√(2/32)."""
    schedule = SCHEDULES["flow"]
    data = mixture(schedule, 64)
    x = data.data.sample(jax.random.key(2), 32)
    found = log_likelihood(data, x, key=jax.random.key(3), probes=64, probe=probe)
    deviations = (np.asarray(found.log_density) - truth(data, x)) / np.asarray(found.standard_error)
    assert abs(deviations.mean()) < 3 / math.sqrt(32)
    assert abs((deviations**2).mean() - 1) < 4 * math.sqrt(2 / 32)


def test_a_condition_reaches_the_density():
    schedule = SCHEDULES["flow"]
    data = mixture(schedule, 2)
    x, cond = data.data.sample(jax.random.key(1), 4), jnp.array([0, 1, 1, 0])
    found = log_likelihood(data, x, cond=cond, solver=EXACT)
    expected = jax.vmap(lambda x, cond: data.log_density(x, 0.0, cond))(x, cond)
    np.testing.assert_allclose(found.log_density, expected, rtol=0, atol=1e-3)


@pytest.mark.thorough
@every_schedule
def test_encoding_and_decoding_are_inverse_and_exact_for_normal_data(name):
    schedule = SCHEDULES[name]
    mean, variance = np.array([0.4, -0.2]), np.array([0.3, 0.05])
    data = analytic.gaussian(mean, variance, schedule=schedule)
    x0 = data.data.sample(jax.random.key(0), 8)
    solver = Solver(rtol=1e-9, atol=1e-9)
    x1 = encode(data, x0, solver=solver)
    alpha, sigma = float(schedule.alpha(1.0)), float(schedule.sigma(1.0))
    spread = np.sqrt((alpha**2 * variance + sigma**2) / variance)
    np.testing.assert_allclose(x1, alpha * mean + spread * (np.asarray(x0) - mean), rtol=1e-6)
    np.testing.assert_allclose(decode(data, x1, solver=solver), x0, rtol=1e-6)


@pytest.mark.thorough
@every_schedule
def test_float32_reaches_both_ends(name):
    """π/2 in float32 is beyond π/2: a schedule with α_1 = 0 must not notice."""
    with jax.enable_x64(False):
        data = analytic.gaussian([0.4, -0.2], 0.1, schedule=SCHEDULES[name])
        x0 = data.data.sample(jax.random.key(0), 4)
        found = log_likelihood(data, x0)
        expected = jax.vmap(lambda x: data.log_density(x, 0.0))(x0)
        np.testing.assert_allclose(found.log_density, expected, rtol=0, atol=2e-3)
        np.testing.assert_allclose(decode(data, found.latent), x0, rtol=0, atol=1e-3)


def test_slerp_stays_on_the_sphere_at_equal_angles():
    a, b = jnp.array([[3.0, 0.0], [0.0, 0.0]]), jnp.array([[0.0, 3.0], [0.0, 0.0]])
    for share in (0.0, 0.25, 0.5, 1.0):
        angle = share * math.pi / 2
        expected = np.array([[3 * math.cos(angle), 3 * math.sin(angle)], [0, 0]])
        np.testing.assert_allclose(slerp(a, b, share), expected, atol=1e-12)
    np.testing.assert_allclose(slerp(a, a, 0.3), a, atol=1e-12)
    np.testing.assert_allclose(slerp(a, -a, 0.3), 0.4 * a, atol=1e-12)  # no arc is the shortest
    np.testing.assert_allclose(slerp(0 * a, a, 0.3), 0.3 * a, atol=1e-12)
    np.testing.assert_array_equal(slerp(0 * a, 0 * a, 0.3), 0 * a)


def test_dequantized_levels_and_bits_per_dim():
    """Dequantized levels fill their width evenly; under a uniform density each takes log₂ n bits."""
    for n in (2, 17, 256):
        levels = np.tile(np.arange(n), 20_000 // n)
        x = np.asarray(dequantize(jax.random.key(0), jnp.asarray(2 * levels / (n - 1) - 1), n))
        position = (x + 1) * (n - 1) / 2 - levels
        assert np.abs(position).max() <= 0.5
        assert abs(position.mean()) < 4 * math.sqrt(1 / 12 / len(x))
        assert position.std() == pytest.approx(math.sqrt(1 / 12), rel=0.03)
        uniform = -3 * math.log(2 + 2 / (n - 1))  # three coordinates, over the width of all levels
        np.testing.assert_allclose(bits_per_dim.from_log_density(jnp.array([uniform]), 3, n), math.log2(n), rtol=1e-12)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": -1}, "probes = -1"),
        ({"probes": 3}, "key is None"),
        ({"probes": 3, "key": jax.random.key(0), "probe": "cauchy"}, "rademacher, gaussian"),
    ],
)
def test_invalid_probes_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        log_likelihood(mixture(schedules.VP(), 2), jnp.zeros((1, 2)), **options)


def test_a_process_without_an_ode_is_refused():
    x = jnp.zeros((3, 2))
    denoiser = analytic.empirical(x, Perturbed(schedules.VP(), noise=Laplace()))
    for function in (log_likelihood, encode, decode):
        with pytest.raises(InputError, match="needs a Gaussian process"):
            function(denoiser, x)


def test_a_solver_that_gives_up_says_where_and_with_which_tolerance():
    schedule = schedules.VP()
    with pytest.raises(InputError, match=r"past t = 0\.\d+ with rtol = 1e-05, .* in 2 steps"):
        encode(mixture(schedule, 2), jnp.ones((1, 2)), solver=Solver(max_steps=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rtol": 0.0}, "rtol = 0.0"), ({"atol": -1.0}, "atol = -1.0"), ({"max_steps": 0}, "max_steps = 0")],
)
def test_invalid_solver_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Solver(**options)


@pytest.mark.thorough
def test_a_tolerance_that_float32_cannot_reach_warns_and_gains_nothing():
    """The error of the latents, against float64, is that of the least tolerance without a warning; still solved."""
    schedule = schedules.Flow()
    data = mixture(schedule, 2)
    x0 = data.data.sample(jax.random.key(1), 8)
    exact = np.asarray(encode(data, x0, solver=Solver(rtol=1e-10, atol=1e-10)))
    with jax.enable_x64(False):
        data, x0 = mixture(schedule, 2), jnp.asarray(x0, jnp.float32)
        reached = encode(data, x0, solver=Solver(rtol=3e-7, atol=3e-7))
        with pytest.warns(
            UserWarning, match=r"rtol = 1e-08, atol = 1e-08 are more than float32 .* up to 4\.8e-07 .*x64"
        ):
            beyond = encode(data, x0, solver=Solver(rtol=1e-8, atol=1e-8))
    errors = [np.abs(np.asarray(latents) - exact).max() for latents in (reached, beyond)]
    assert errors[0] < 5e-6
    assert errors[1] > errors[0] / 5
    Solver(rtol=1e-8, atol=1e-8).check_dtype(jnp.float64)


@pytest.mark.thorough
def test_decoding_inverts_encoding_to_the_tolerance():
    schedule = SCHEDULES["flow"]
    data = mixture(schedule, 2)
    x0 = data.data.sample(jax.random.key(1), 8)
    for tolerance in (1e-2, 1e-4, 1e-6):
        solver = Solver(rtol=tolerance, atol=tolerance)
        x1 = encode(data, x0, solver=solver)
        assert np.abs(decode(data, x1, solver=solver) - x0).max() < 10 * tolerance


def test_times_outside_the_path_are_refused():
    schedule = schedules.VP()
    for t, s in ((1.5, 0.0), (0.5, -0.1)):
        with pytest.raises(InputError, match=r"[ts] = (1\.5|-0\.1); must satisfy 0 <= [ts] <= 1"):
            probability_flow.integrate(mixture(schedule, 2), jnp.ones(2), t=t, s=s, solver=EXACT)


@pytest.mark.thorough
@pytest.mark.parametrize("variance", [0.02, 0.1, 4.0])
@pytest.mark.parametrize(
    "schedule", [schedules.Flow(), schedules.VP(), schedules.Cosine()], ids=lambda s: type(s).__name__
)
def test_no_latent_decodes_wrong_by_chance(schedule: schedules.Schedule, variance: float) -> None:
    """Encoding N(0, v) is the factor √(α_1² v + σ_1²)/√v. One sample in a hundred decoded wrong by up to 12 %."""
    exact = analytic.gaussian(np.zeros(1), variance, schedule=schedule)
    x0 = math.sqrt(variance) * jnp.asarray(np.random.default_rng(0).normal(size=(2000, 1)), jnp.float32)
    factor = math.sqrt((schedule.alpha(1.0) ** 2 * variance + schedule.sigma(1.0) ** 2) / variance)
    np.testing.assert_allclose(encode(exact, x0), x0 * factor, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(decode(exact, x0 * factor), x0, rtol=1e-4, atol=1e-4)
