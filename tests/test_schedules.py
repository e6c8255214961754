"""The contract of every registered schedule: formulas, inverses, rates, precision, and JAX transformations."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from schedule_truths import BETAS, CASES, FORMULAS, OFFSETS, SLOPES, Kind, times, values

from jaxdiff import schedules
from jaxdiff.processes import Gaussian
from jaxdiff.schedules import Schedule

DISCRETE = [name for name in CASES if CASES[name]().num_timesteps is not None]
every_case = pytest.mark.parametrize("name", CASES)
both_precisions = pytest.mark.parametrize("dtype", ["float32", "float64"])


@every_case
@both_precisions
@pytest.mark.quick(dtype=["float64"])
def test_alpha_and_sigma_are_the_formula(name: str, dtype: str) -> None:
    # float32: T·t is rounded to 6e-8·T steps, times a slope of log α of up to 3.4 a step (the last of cosine's 1000).
    # float64: the reference's own 1 − ᾱ loses 1e-16/σ², 1e-10 for σ = 1e-3.
    rtol = 3e-4 if dtype == "float32" else 1e-9
    for kind in ("between", 0.0, 1.0):
        alpha, sigma = FORMULAS[name](times(CASES[name](), kind).astype(np.float64))
        computed = values(name, kind, dtype)
        assert computed.alpha.dtype == computed.sigma.dtype == dtype
        np.testing.assert_allclose(computed.alpha, alpha, rtol=rtol, atol=1e-12)
        np.testing.assert_allclose(computed.sigma, sigma, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("name", DISCRETE)
@both_precisions
def test_discrete_schedule_is_exact_at_every_step(name: str, dtype: str) -> None:
    schedule = CASES[name]()
    assert schedule.num_timesteps == len(BETAS[name])
    with jax.enable_x64(dtype == "float64"):
        t = jnp.asarray(np.arange(schedule.num_timesteps + 1) / schedule.num_timesteps, dtype)
        alpha, sigma = jax.device_get(jax.jit(lambda schedule, t: (schedule.alpha(t), schedule.sigma(t)))(schedule, t))
    # In float64; logarithms keep the precision of 1 − ᾱ at the first steps, the product is the definition.
    log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-BETAS[name]))])
    np.testing.assert_allclose(np.exp(log_alpha_bar[1:]), np.cumprod(1 - BETAS[name]), rtol=1e-11)
    # float32: the table's entry, up to 9.9, is rounded, 9.9·6e-8, and doubled by the square; exp and expm1 add 1e-7.
    rtol = 2e-6 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(alpha**2, np.exp(log_alpha_bar), rtol=rtol)
    np.testing.assert_allclose(sigma**2, -np.expm1(log_alpha_bar), rtol=rtol)
    assert (alpha[0], sigma[0]) == (1, 0)


def test_linear_schedule_ends_at_the_known_alpha_bar() -> None:
    assert schedules.Linear().alpha(1.0) ** 2 == pytest.approx(4.04e-5, abs=5e-8)  # three digits are quoted


@every_case
def test_log_snr_is_that_of_alpha_and_sigma_and_falls_strictly(name: str) -> None:
    t = np.concatenate([times(CASES[name](), kind) for kind in (*OFFSETS, 1.0)])
    order = np.unique(t, return_index=True)[1]  # also just beside the steps, where it must not be flat
    pieces = [values(name, kind, "float64") for kind in (*OFFSETS, 1.0)]
    log_snr, alpha, sigma = (
        np.concatenate([getattr(piece, field) for piece in pieces])[order] for field in ("log_snr", "alpha", "sigma")
    )
    assert np.all(np.diff(log_snr) < 0)
    inside = (alpha > 0) & (sigma > 0)
    expected = 2 * np.log(alpha[inside] / sigma[inside])
    np.testing.assert_allclose(log_snr[inside], expected, rtol=1e-12, atol=1e-12)  # all without cancellation


@every_case
@both_precisions
def test_variance_preserving_schedules_preserve_it(name: str, dtype: str) -> None:
    if not isinstance(CASES[name](), schedules.VariancePreserving):
        pytest.skip("not variance preserving")
    for kind in (*OFFSETS, 1.0):
        computed = values(name, kind, dtype)
        np.testing.assert_allclose(computed.alpha**2 + computed.sigma**2, 1, atol=5 * np.finfo(dtype).eps)


@every_case
@both_precisions
def test_time_inverts_log_snr(name: str, dtype: str) -> None:
    # λ is rounded to eps·|λ| ≤ 20 eps, times dt/dλ ≤ 0.25 (the flow at t = ½); atan and a table add a few eps. In
    # float32 a time beside a step may be moved to it: by 3e-4 steps, see `OFFSETS`.
    moved = 3e-4 / (CASES[name]().num_timesteps or np.inf) if dtype == "float32" else 0
    for kind in (*OFFSETS, 0.0, 1.0):
        t = times(CASES[name](), kind)
        np.testing.assert_allclose(values(name, kind, dtype).time, t, atol=30 * np.finfo(dtype).eps + moved)


@every_case
@both_precisions
def test_time_is_clipped_outside_the_range(name: str, dtype: str) -> None:
    first, last = values(name, 0.0, dtype).log_snr[0], values(name, 1.0, dtype).log_snr[0]
    log_snr = np.array([first + 5, first + 500, np.inf, last - 5, last - 500, -np.inf], dtype)
    t = values(name, 0.0, dtype, tuple(log_snr)).beyond
    assert t.dtype == dtype
    assert t[:3].tolist() == [0, 0, 0]
    np.testing.assert_allclose(t[3:], 1, atol=2 * np.finfo(dtype).eps)
    assert np.all(t <= 1)


@every_case
def test_rates_are_the_derivatives(name: str) -> None:
    t, h = times(CASES[name](), "between").astype(np.float64), 1e-7
    ahead, behind = FORMULAS[name](t + h), FORMULAS[name](t - h)
    computed = values(name, "between", "float64")
    for rate, plus, minus in zip((computed.d_alpha, computed.d_sigma), ahead, behind, strict=True):
        # Central differences: rounding is 1e-16/h = 1e-9 of a value (1e-16/(σh) of a small σ = √(1 − ᾱ), with σ of
        # 3e-3); the truncation is (h/t)² = 4e-6 of the rate where σ grows like √t, at t = 0.37/7000.
        np.testing.assert_allclose(rate, (plus - minus) / (2 * h), rtol=1e-5, atol=1e-6)


@every_case
@both_precisions
def test_the_rate_of_the_log_snr_is_the_formula(name: str, dtype: str) -> None:
    t = times(CASES[name](), "between")
    # float32: the differences of a table's entries are rounded, as in the test of the formula.
    rtol = 1e-3 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(values(name, "between", dtype).d_log_snr, SLOPES[name](t.astype(np.float64)), rtol=rtol)


@every_case
@both_precisions
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_the_rate_of_the_log_snr_is_infinite_if_the_log_snr_is(name: str, dtype: str, t: float) -> None:
    found = values(name, t, dtype)
    assert np.all(found.d_log_snr < 0)
    np.testing.assert_array_equal(np.isinf(found.d_log_snr), np.isinf(found.log_snr))


@every_case
@pytest.mark.parametrize("kind", ["between", 1.0])
def test_rates_in_float32_are_those_in_float64(name: str, kind: Kind | float) -> None:
    single, double = values(name, kind, "float32"), values(name, kind, "float64")
    for field in ("d_alpha", "d_sigma"):
        # T·t and the differences of a table's entries are rounded, as in the test of the formula.
        np.testing.assert_allclose(getattr(single, field), getattr(double, field), rtol=1e-3)


@every_case
@both_precisions
def test_rates_at_the_ends_are_one_sided_and_never_nan(name: str, dtype: str) -> None:
    start, end = values(name, 0.0, dtype), values(name, 1.0, dtype)
    assert np.all(np.isfinite([start.d_alpha, end.d_alpha, end.d_sigma]))
    assert np.all(start.d_alpha <= 0)
    assert np.all(start.d_sigma > 0)  # +∞ where σ leaves 0 like a square root


@every_case
@both_precisions
def test_gradients_inside_are_those_of_the_formula(name: str, dtype: str) -> None:
    computed = values(name, "between", dtype)
    d_alpha, d_sigma, d_log_snr, d_time = computed.slopes
    rtol = 1e-3 if dtype == "float32" else 1e-9  # of a table's differences, as above
    np.testing.assert_allclose(d_alpha, computed.d_alpha, rtol=rtol)
    np.testing.assert_allclose(d_sigma, computed.d_sigma, rtol=rtol)
    np.testing.assert_allclose(d_log_snr, 2 * (d_alpha / computed.alpha - d_sigma / computed.sigma), rtol=rtol)
    np.testing.assert_allclose(d_time, 1, rtol=3e-2 if dtype == "float32" else 1e-6)


@pytest.mark.parametrize("name", [*schedules.SCHEDULES, "learned-bent"])
@pytest.mark.quick(name=["linear", "vp", "learned-bent"])
def test_jit_batches_and_scalars_agree(name: str) -> None:
    schedule, picked = CASES[name](), np.array([[1, 5, 9], [11, 17, 23]])
    t = jnp.asarray(times(schedule, "between")[picked])
    jitted = values(name, "between", "float32")
    for method in ("alpha", "sigma", "log_snr"):
        eager, scalar = getattr(schedule, method)(t), getattr(schedule, method)(float(t[0, 1]))
        assert (eager.shape, scalar.shape) == ((2, 3), ())
        # Compiled, T·t is fused and rounded differently, as in the test of the formula.
        np.testing.assert_allclose(eager, getattr(jitted, method)[picked], rtol=3e-4)
        np.testing.assert_allclose(scalar, eager[0, 1], rtol=3e-4)


@every_case
def test_equal_schedules_share_a_compilation(name: str) -> None:
    traces = []

    @jax.jit
    def same(schedule: Schedule) -> Schedule:
        traces.append(None)
        return schedule

    assert jax.tree.structure(same(CASES[name]())) == jax.tree.structure(same(CASES[name]()))
    assert len(traces) == 1


def test_discrete_schedules_are_values() -> None:
    """A vector of β in any form makes the same schedule, and the same table of another class is not equal."""
    betas = np.linspace(2e-3, 0.4, 50)
    schedule = schedules.Discrete(betas)
    assert schedule == schedules.Discrete(betas.tolist()) != schedules.Linear(50)
    assert hash(schedule) == hash(schedules.Discrete(tuple(betas)))
    assert (schedule.num_timesteps, jax.tree.leaves(schedule)) == (50, [])
    np.testing.assert_array_equal(schedule.log_alpha(0.33), schedules.Linear(50).log_alpha(0.33))


def test_check_times_names_the_rule() -> None:
    schedules.check_times(1.0, 0.0)
    jax.jit(schedules.check_times)(2.0, 3.0)  # unknown values pass
    for t, s, message in ((1.5, None, "t = 1.5; must satisfy 0 <= t <= 1"), (0.2, 0.2, "must satisfy s < t")):
        with pytest.raises(ValueError, match=message):
            schedules.check_times(t, s)


ENDS = {
    "linear": (math.inf, -10.1),
    "cosine": (math.inf, -19.8),
    "vp": (math.inf, -10.0),
    "sigmoid": (math.inf, -20),
    "truncated_cosine": (20, -20),
    "ve": (math.inf, -7.8),
    "edm": (12.4, -8.8),
    "flow": (math.inf, -math.inf),
    "learned": (13.3, -5),
}


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@both_precisions
def test_the_ends_are_the_documented_ones(name: str, dtype: str) -> None:
    first, last = values(name, 0.0, dtype), values(name, 1.0, dtype)
    assert (first.log_snr[0], last.log_snr[0]) == pytest.approx(ENDS[name], abs=0.05)
    assert bool(first.sigma[0] == 0) == math.isinf(ENDS[name][0])
    assert bool(last.alpha[0] == 0) == math.isinf(ENDS[name][1])
    if name not in ("truncated_cosine", "learned"):
        assert first.alpha[0] == 1


def test_the_sigmoid_schedule_is_the_published_one(x64: None) -> None:
    """Chen 2023, algorithm 1, in float64 away from the end, where the literal formula cancels."""
    t = jnp.linspace(0, 0.95, 20)
    for start, end, tau in ((-3, 3, 1.0), (0, 3, 0.3), (-3, 3, 0.9)):
        first, last, value = (1 / (1 + np.exp(-x / tau)) for x in (start, end, start + np.asarray(t) * (end - start)))
        found = schedules.Sigmoid(start=start, end=end, tau=tau, log_snr_min=-60).alpha(t) ** 2
        np.testing.assert_allclose(found, (last - value) / (last - first), rtol=1e-11)


def test_edm_visits_the_noise_levels_of_the_paper(x64: None) -> None:
    """Karras et al. 2022, equation 5, at i = 0…N−1 with N = 18."""
    i, n = np.arange(18), 18
    levels = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(schedules.EDM().sigma(jnp.asarray(1 - i / (n - 1))), levels, rtol=1e-12)


@every_case
def test_a_schedule_is_a_pytree_of_anything(name: str) -> None:
    schedule = CASES[name]()
    shapes = jax.eval_shape(lambda schedule: schedule, schedule)
    assert jax.tree.structure(shapes) == jax.tree.structure(schedule)
    process = Gaussian(schedule)
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), process)
    axes = jax.tree.map(lambda _: 0, process)
    mapped = jax.vmap(lambda process, t: process.schedule.alpha(t), in_axes=(axes, 0))
    assert jax.eval_shape(mapped, stacked, jnp.zeros(2)).shape == (2,)
    assert stacked.schedule.num_timesteps == schedule.num_timesteps
    jax.jit(lambda process, t: process.schedule.alpha(t)).lower(process, 0.5)
    assert jax.jit(schedule.alpha)(0.5).shape == ()  # a bound method, which is hashed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.Linear(0), "num_timesteps = 0; must satisfy num_timesteps >= 1"),
        (lambda: schedules.Cosine(-1), "num_timesteps = -1"),
        (lambda: schedules.Discrete(np.zeros(0)), r"betas has shape \(0,\)"),
        (lambda: schedules.Discrete(np.full((2, 2), 0.1)), r"betas has shape \(2, 2\)"),
        (lambda: schedules.Discrete(np.array([0.1, 0.0])), r"betas\[1\] = 0.0; every β must lie strictly between"),
        (lambda: schedules.Discrete(np.array([np.nan, 0.1])), r"betas = .*finite"),
        (lambda: schedules.Discrete(np.array([1.0, 0.1])), r"betas\[0\] = 1.0"),
        (lambda: schedules.Discrete(np.array([1.0])), r"betas\[0\] = 1.0"),
        (lambda: schedules.Linear(10), "num_timesteps = 10 .* use 21 timesteps or more"),
        (lambda: schedules.VP(beta_min=3.0, beta_max=2.0), "beta_min = 3.0, beta_max = 2.0; must satisfy"),
        (lambda: schedules.TruncatedCosine(log_snr_max=-1.0, log_snr_min=1.0), "log_snr_min < log_snr_max"),
        (lambda: schedules.VE(sigma_min=0.0), "0 < sigma_min < sigma_max"),
        (lambda: schedules.EDM(sigma_min=2.0, sigma_max=1.0), "sigma_min = 2.0, sigma_max = 1.0; must satisfy"),
        (lambda: schedules.EDM(rho=0.0), "rho = 0.0; must satisfy 0 < rho"),
        (lambda: schedules.Sigmoid(start=3.0), "start = 3.0, end = 3.0; must satisfy start < end"),
        (lambda: schedules.Sigmoid(tau=0.0), "tau = 0.0 with start = -3.0, end = 3.0; must satisfy tau > 0"),
        (lambda: schedules.Sigmoid(tau=0.01), "within ±80, where float32 still holds"),
        (lambda: schedules.Sigmoid(log_snr_min=-math.inf), "log_snr_min = -inf; it must be a finite number"),
        (
            lambda: schedules.Learned.init(jax.random.key(0), hidden=0),
            "hidden = 0; the network needs at least 1 sigmoid",
        ),
        (lambda: schedules.Learned.init(log_snr_min=20.0), "must satisfy log_snr_min < log_snr_max"),
    ],
)
def test_a_wrong_argument_is_named(make: Callable[[], Schedule], message: str, unchecked: None) -> None:
    with pytest.raises(ValueError, match=message):
        make()
