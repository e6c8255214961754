"""The contract of every registered schedule: formulas, inverses, rates, precision, and what JAX does with it."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import schedules
from jaxdiff.processes import Gaussian
from jaxdiff.schedules import Learned, Schedule, log_snr_rate, rates


def bent(*, learn_ends: bool) -> Learned:
    """A learned schedule that is not about linear any more, with its ends moved where they are learned."""
    schedule = schedules.learned(jax.random.key(3), hidden=16, learn_ends=learn_ends)
    ends = jnp.array([1.7, -2.3], jnp.float32) if learn_ends else None
    return dataclasses.replace(schedule, heights=4 * schedule.heights + 6, ends=ends)


# Every entry of the registry with its defaults, and some with other arguments.
CASES: dict[str, Callable[[], Schedule]] = {
    **schedules.REGISTRY,
    "linear-10": lambda: schedules.linear(10, beta_first=0.01, beta_last=0.9),
    "linear-1": lambda: schedules.linear(1, beta_first=0.5),
    "linear-7000": lambda: schedules.linear(7000, beta_last=0.003),
    "cosine-20": lambda: schedules.cosine(20, offset=0.02, beta_max=0.9),
    "discrete-3": lambda: schedules.discrete(np.array([0.1, 0.5, 0.2])),
    "vp-mild": lambda: schedules.VP(beta_min=0.5, beta_max=5.0),
    "truncated_cosine-lopsided": lambda: schedules.TruncatedCosine(log_snr_max=12.0, log_snr_min=-6.0),
    "ve-wide": lambda: schedules.VE(sigma_min=0.002, sigma_max=348.0),
    "sigmoid-lopsided": lambda: schedules.Sigmoid(start=0.0, end=3.0, tau=0.3, log_snr_min=-9.0),
    "edm-cubic": lambda: schedules.EDM(sigma_min=0.01, sigma_max=20.0, rho=3.0),
    "learned": lambda: schedules.learned(jax.random.key(0)),
    "learned-bent": lambda: bent(learn_ends=False),
    "learned-ends": lambda: bent(learn_ends=True),
}
DISCRETE = [name for name in CASES if CASES[name]().steps is not None]
BETAS = {
    "linear": np.linspace(1e-4, 0.02, 1000),
    "linear-10": np.linspace(0.01, 0.9, 10),
    "linear-1": np.array([0.5]),
    "linear-7000": np.linspace(1e-4, 0.003, 7000),
    "discrete-3": np.array([0.1, 0.5, 0.2]),
}


def cosine_betas(steps: int, offset: float, beta_max: float) -> np.ndarray:
    """Nichol & Dhariwal 2021, equation 17, in a loop."""
    f = [math.cos((k / steps + offset) / (1 + offset) * math.pi / 2) ** 2 for k in range(steps + 1)]
    return np.array([min(1 - f[k] / f[k - 1], beta_max) for k in range(1, steps + 1)])


BETAS["cosine"] = cosine_betas(1000, 0.008, 0.999)
BETAS["cosine-20"] = cosine_betas(20, 0.02, 0.9)


def by_betas(betas: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """α and σ from the cumulative product of 1 − β, geometric between steps."""
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])

    def formula(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a = np.exp(np.interp(t * len(betas), np.arange(len(alpha_bar)), np.log(alpha_bar)))
        return np.sqrt(a), np.sqrt(1 - a)

    return formula


def by_beta_integral(low: float, high: float) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    def formula(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        integral = low * t + (high - low) * t**2 / 2  # ∫_0^t β
        return np.exp(-integral / 2), np.sqrt(1 - np.exp(-integral))

    return formula


def by_angle(first: float, last: float) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    def formula(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        odds = np.exp(np.array([first, last]))  # cos²φ/sin²φ
        low, high = np.arctan2(np.sqrt(1 / (1 + odds)), np.sqrt(odds / (1 + odds)))
        phi = low + t * (high - low)
        return np.cos(phi), np.sin(phi)

    return formula


def by_variance(low: float, high: float) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    return lambda t: (np.ones_like(t), low * np.sqrt((high / low) ** (2 * t) - 1))


def sigmoid_arguments(start: float, end: float, tau: float, lowest: float) -> Callable[[np.ndarray], tuple]:
    """s, e, and at a time u − s, e − u, where the last is found for t = 1 by bisection of its logarithm."""
    s, e = start / tau, end / tau

    def log_snr(p: float) -> float:
        odds = math.sinh(p / 2) / math.sinh((e - s - p) / 2)
        return math.log(odds * math.cosh(s / 2) / math.cosh(e / 2))

    low, high = -100.0, math.log(e - s) - 1e-9
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if log_snr(math.exp(middle)) < lowest else (low, middle)
    return lambda t: (s, e, t * (e - s - math.exp(low)), (1 - t) * (e - s) + t * math.exp(low))


def by_sigmoid(*arguments: float) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """By S(x) − S(y) = sinh((x − y)/2)/(2 cosh(x/2) cosh(y/2)), which does not cancel."""

    def formula(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s, e, q, p = sigmoid_arguments(*arguments)(t)
        common = np.cosh((s + q) / 2) * np.sinh((e - s) / 2)
        return (
            np.sqrt(np.sinh(p / 2) * np.cosh(s / 2) / common),
            np.sqrt(np.sinh(q / 2) * np.cosh(e / 2) / common),
        )

    return formula


def by_root(low: float, high: float, rho: float) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    roots = low ** (1 / rho), high ** (1 / rho)
    return lambda t: (np.ones_like(t), (roots[0] + t * (roots[1] - roots[0])) ** rho)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, np.asarray(x, np.float64))


def network(schedule: Learned) -> tuple[Callable, Callable, float, float]:
    """γ̃ and its derivative as Kingma et al. print them, and both ends, in numpy."""
    w, h = softplus(schedule.slopes), softplus(schedule.heights) / len(schedule.heights)
    b = np.asarray(schedule.offsets, np.float64)

    def sigmoids(t: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(w * t[..., None] + b)))

    first, last = schedule.log_snr_max, schedule.log_snr_min
    if schedule.ends is not None:
        a = np.asarray(schedule.ends, np.float64)
        room = 7 / 16 * (first - last)
        moved = np.where(a > 0, a, 1 / (1 / a - 1 / room))
        first, last = first + moved[0], last - moved[1]
    return (
        lambda t: t + sigmoids(t) @ h,
        lambda t: 1 + (sigmoids(t) * (1 - sigmoids(t))) @ (h * w),
        first,
        last,
    )


def by_network(make: Callable[[], Learned]) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    def formula(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gamma, _, first, last = network(make())
        start, end = gamma(np.zeros(1)), gamma(np.ones(1))
        log_snr = first + (last - first) * (t / 128 + 127 / 128 * (gamma(t) - start) / (end - start))
        return np.sqrt(1 / (1 + np.exp(-log_snr))), np.sqrt(1 / (1 + np.exp(log_snr)))

    return formula


FORMULAS = {name: by_betas(betas) for name, betas in BETAS.items()} | {
    "vp": by_beta_integral(0.1, 20.0),
    "vp-mild": by_beta_integral(0.5, 5.0),
    "truncated_cosine": by_angle(20.0, -20.0),
    "truncated_cosine-lopsided": by_angle(12.0, -6.0),
    "ve": by_variance(0.01, 50.0),
    "ve-wide": by_variance(0.002, 348.0),
    "flow": lambda t: (1 - t, t),
    "sigmoid": by_sigmoid(-3.0, 3.0, 1.0, -20.0),
    "sigmoid-lopsided": by_sigmoid(0.0, 3.0, 0.3, -9.0),
    "edm": by_root(0.002, 80.0, 7.0),
    "edm-cubic": by_root(0.01, 20.0, 3.0),
    **{name: by_network(CASES[name]) for name in ("learned", "learned-bent", "learned-ends")},
}


def slope_by_betas(betas: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """(log ᾱ)'/(1 − ᾱ), as for every schedule that preserves variance."""
    steps, logs = len(betas), np.log1p(-betas)
    table = np.concatenate([[0.0], np.cumsum(logs)])

    def formula(t: np.ndarray) -> np.ndarray:
        log_alpha_bar = np.interp(t * steps, np.arange(steps + 1), table)
        return steps * logs[np.ceil(t * steps).astype(int) - 1] / -np.expm1(log_alpha_bar)

    return formula


def slope_by_beta_integral(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda t: (low + (high - low) * t) / np.expm1(-low * t - (high - low) * t**2 / 2)


def slope_by_angle(first: float, last: float) -> Callable[[np.ndarray], np.ndarray]:
    """λ = −2 log tan φ."""
    low, high = (math.atan(math.exp(-log_snr / 2)) for log_snr in (first, last))
    return lambda t: -4 * (high - low) / np.sin(2 * (low + t * (high - low)))


def slope_by_variance(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    rate = 2 * math.log(high / low)
    return lambda t: rate / np.expm1(-rate * t)


def slope_by_sigmoid(*arguments: float) -> Callable[[np.ndarray], np.ndarray]:
    """λ = log sinh(p/2) − log sinh(q/2) + a constant."""

    def formula(t: np.ndarray) -> np.ndarray:
        _, _, q, p = sigmoid_arguments(*arguments)(t)
        _, _, reach, _ = sigmoid_arguments(*arguments)(np.ones(()))
        return -reach / 2 * (1 / np.tanh(p / 2) + 1 / np.tanh(q / 2))

    return formula


def slope_by_root(low: float, high: float, rho: float) -> Callable[[np.ndarray], np.ndarray]:
    roots = low ** (1 / rho), high ** (1 / rho)
    return lambda t: -2 * rho * (roots[1] - roots[0]) / (roots[0] + t * (roots[1] - roots[0]))


def slope_by_network(make: Callable[[], Learned]) -> Callable[[np.ndarray], np.ndarray]:
    def formula(t: np.ndarray) -> np.ndarray:
        gamma, slope, first, last = network(make())
        return (last - first) * (1 / 128 + 127 / 128 * slope(t) / (gamma(np.ones(1)) - gamma(np.zeros(1))))

    return formula


SLOPES = {name: slope_by_betas(betas) for name, betas in BETAS.items()} | {
    "vp": slope_by_beta_integral(0.1, 20.0),
    "vp-mild": slope_by_beta_integral(0.5, 5.0),
    "truncated_cosine": slope_by_angle(20.0, -20.0),
    "truncated_cosine-lopsided": slope_by_angle(12.0, -6.0),
    "ve": slope_by_variance(0.01, 50.0),
    "ve-wide": slope_by_variance(0.002, 348.0),
    "flow": lambda t: -2 / (t * (1 - t)),
    "sigmoid": slope_by_sigmoid(-3.0, 3.0, 1.0, -20.0),
    "sigmoid-lopsided": slope_by_sigmoid(0.0, 3.0, 0.3, -9.0),
    "edm": slope_by_root(0.002, 80.0, 7.0),
    "edm-cubic": slope_by_root(0.01, 20.0, 3.0),
    **{name: slope_by_network(CASES[name]) for name in ("learned", "learned-bent", "learned-ends")},
}


Kind = Literal["knot", "after", "between", "before"]
OFFSETS: dict[Kind, float] = {"knot": 0.0, "after": 3e-4, "between": 0.37, "before": 1 - 3e-4}


def times(schedule: Schedule, kind: Kind | float) -> np.ndarray:
    """24 times, as float32 holds them: of one kind, relative to the steps of a discrete schedule, or all the same."""
    if isinstance(kind, float):
        return np.full(24, kind, np.float32)
    cells = schedule.steps or 1000
    k = np.linspace(0, cells - 1, 24).astype(int)
    return ((k + OFFSETS[kind]) / cells).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Values:
    """Everything a schedule says of some times, as numpy arrays in the precision asked for."""

    alpha: np.ndarray
    sigma: np.ndarray
    log_snr: np.ndarray
    time: np.ndarray  # of log_snr
    d_alpha: np.ndarray  # by `rates`
    d_sigma: np.ndarray
    d_log_snr: np.ndarray  # by `log_snr_rate`
    slopes: np.ndarray  # reverse-mode derivatives of alpha, sigma, log_snr and of time after log_snr


@jax.jit
def everything(schedule: Schedule, t: jax.Array) -> dict[str, jax.Array]:
    def round_trip(t: jax.Array) -> jax.Array:
        return schedule.time(schedule.log_snr(t))

    functions = {"alpha": schedule.alpha, "sigma": schedule.sigma, "log_snr": schedule.log_snr, "time": round_trip}
    out, slopes = {}, []
    for name, function in functions.items():
        out[name], pullback = jax.vjp(function, t)
        slopes.append(pullback(jnp.ones_like(t))[0])
    d_alpha, d_sigma = rates(schedule, t)
    d_log_snr = log_snr_rate(schedule, t)
    return out | {"d_alpha": d_alpha, "d_sigma": d_sigma, "d_log_snr": d_log_snr, "slopes": jnp.stack(slopes)}


@functools.cache
def values(name: str, kind: Kind | float, dtype: str) -> Values:
    schedule = CASES[name]()
    with jax.enable_x64(dtype == "float64"):
        return Values(**jax.device_get(everything(schedule, jnp.asarray(times(schedule, kind), dtype))))


every_case = pytest.mark.parametrize("name", CASES)
both_precisions = pytest.mark.parametrize("dtype", ["float32", "float64"])


@every_case
@both_precisions
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
    assert schedule.steps == len(BETAS[name])
    with jax.enable_x64(dtype == "float64"):
        t = jnp.asarray(np.arange(schedule.steps + 1) / schedule.steps, dtype)
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
    assert schedules.linear().alpha(1.0) ** 2 == pytest.approx(4.04e-5, abs=5e-8)  # three digits are quoted


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
        pytest.skip("makes no such promise")
    for kind in (*OFFSETS, 1.0):
        computed = values(name, kind, dtype)
        np.testing.assert_allclose(computed.alpha**2 + computed.sigma**2, 1, atol=5 * np.finfo(dtype).eps)


@every_case
@both_precisions
def test_time_inverts_log_snr(name: str, dtype: str) -> None:
    # λ is rounded to eps·|λ| ≤ 20 eps, times dt/dλ ≤ 0.25 (the flow at t = ½); atan and a table add a few eps. In
    # float32 a time beside a step may be moved to it: by 3e-4 steps, see `OFFSETS`.
    moved = 3e-4 / (CASES[name]().steps or np.inf) if dtype == "float32" else 0
    for kind in (*OFFSETS, 0.0, 1.0):
        t = times(CASES[name](), kind)
        np.testing.assert_allclose(values(name, kind, dtype).time, t, atol=30 * np.finfo(dtype).eps + moved)


@every_case
@both_precisions
def test_time_is_clipped_outside_the_range(name: str, dtype: str) -> None:
    first, last = values(name, 0.0, dtype).log_snr[0], values(name, 1.0, dtype).log_snr[0]
    log_snr = np.array([first + 5, first + 500, np.inf, last - 5, last - 500, -np.inf], dtype)
    with jax.enable_x64(dtype == "float64"):
        t = jax.jit(lambda schedule, log_snr: schedule.time(log_snr))(CASES[name](), log_snr)
    assert t.dtype == dtype
    assert t[:3].tolist() == [0, 0, 0]
    np.testing.assert_allclose(t[3:], 1, atol=2 * np.finfo(dtype).eps)
    assert np.all(np.asarray(t) <= 1)


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
def test_the_rate_of_the_log_snr_is_infinite_where_that_is(name: str, dtype: str, t: float) -> None:
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


@every_case
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


def test_a_table_of_log_alphas_can_be_learned(x64: None) -> None:
    gradient = jax.jit(jax.grad(lambda schedule: schedule.log_alpha(0.57)))(schedules.linear(10)).log_alphas
    np.testing.assert_allclose(gradient, np.eye(11)[5] * 0.3 + np.eye(11)[6] * 0.7, atol=1e-12)


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


@pytest.mark.parametrize("name", [*schedules.REGISTRY, "learned"])
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


WILD = {
    "zero": lambda normal: 0 * normal,
    "small": lambda normal: 1e-6 * normal,
    "random": lambda normal: 10 * normal,
    "large": lambda normal: 1e4 * normal,
    "all large": lambda normal: 0 * normal + 1e4,
    "all very negative": lambda normal: 0 * normal - 1e4,
    "huge": lambda normal: 1e30 * normal,
}


@pytest.mark.parametrize("kind", WILD)
@pytest.mark.parametrize("learn_ends", [False, True])
@both_precisions
def test_a_learned_schedule_falls_whatever_its_parameters(kind: str, learn_ends: bool, dtype: str) -> None:
    leaves, structure = jax.tree.flatten(schedules.learned(jax.random.key(0), hidden=64, learn_ends=learn_ends))
    normal = [WILD[kind](np.random.default_rng(i).normal(size=leaf.shape)) for i, leaf in enumerate(leaves)]
    if learn_ends:  # λ itself must not lose its digits
        normal[-1] = np.clip(normal[-1], -1e4, 30)
    t = np.linspace(0, 1, 1001)
    with jax.enable_x64(dtype == "float64"):
        schedule = jax.tree.unflatten(structure, [jnp.asarray(leaf, dtype) for leaf in normal])
        found = jax.device_get(everything(schedule, jnp.asarray(t, dtype)))
        first, last = jax.device_get(schedule.log_snr_ends())
    assert all(np.all(np.isfinite(value)) for value in found.values())
    assert np.all(np.diff(found["log_snr"]) < 0)
    assert np.all(found["d_log_snr"] < 0)
    assert (found["log_snr"][0], found["log_snr"][-1]) == (first, last)
    # λ is rounded to a few eps|λ|, and falls by at least a 128th of its range in a unit of t.
    rounding = 8 * np.finfo(dtype).eps * max(abs(first), abs(last)) * 128 / (first - last)
    np.testing.assert_allclose(found["time"], t, atol=rounding)


@pytest.mark.parametrize("name", ["learned", "learned-bent", "learned-ends"])
@both_precisions
@pytest.mark.parametrize("compiled", [False, True])
def test_a_learned_schedule_meets_its_ends_exactly(name: str, dtype: str, compiled: bool) -> None:
    with jax.enable_x64(dtype == "float64"):
        schedule = CASES[name]()
        first, last = schedule.log_snr_ends()
        assert first.dtype == last.dtype == dtype
        log_snr = jax.jit(schedule.log_snr) if compiled else schedule.log_snr
        assert (log_snr(0.0), log_snr(1.0)) == (first, last)
        assert jax.jit(schedule.time)(jnp.stack([first, last])).tolist() == [0, 1]
        t = jnp.array([0.0, 1.0, 0.3, 1.0, 0.0])
        np.testing.assert_array_equal(log_snr(t)[np.array([0, 1, 3, 4])], jnp.stack([first, last, last, first]))
        if name != "learned-ends":
            assert (first, last) == (np.asarray(13.3, dtype), -5)


def test_a_learned_schedule_starts_about_linear() -> None:
    t = np.linspace(0, 1, 101, dtype=np.float32)
    for seed in range(3):
        for ends in (False, True):
            schedule = schedules.learned(jax.random.key(seed), log_snr_max=10.0, log_snr_min=-10.0, learn_ends=ends)
            np.testing.assert_allclose(jax.jit(schedule.log_snr)(t), 10 - 20 * t, atol=0.02 * 20)
            np.testing.assert_allclose(jax.jit(log_snr_rate)(schedule, t), -20, rtol=0.05)


@pytest.mark.parametrize("name", ["learned-bent", "learned-ends"])
def test_gradients_after_a_learned_schedules_parameters(name: str, x64: None) -> None:
    """Of λ, of its inverse and of its rate, by both modes, against central differences along a random direction."""
    schedule = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), CASES[name]())
    leaves, structure = jax.tree.flatten(schedule)
    along = jax.tree.unflatten(structure, [np.random.default_rng(i).normal(size=x.shape) for i, x in enumerate(leaves)])

    def functions(schedule: Learned) -> jax.Array:
        return jnp.stack([schedule.log_snr(0.3), schedule.time(2.5), log_snr_rate(schedule, 0.3)])

    @jax.jit
    def derivatives(schedule: Learned) -> tuple[jax.Array, Learned, jax.Array, jax.Array]:
        forward = jax.jvp(functions, (schedule,), (along,))[1]
        second = jax.jvp(lambda s: jax.jvp(functions, (s,), (along,))[1], (schedule,), (along,))[1]
        return functions(schedule), jax.jacrev(functions)(schedule), forward, second

    h = 1e-5
    moved = [derivatives(jax.tree.map(lambda x, d, a=a: x + a * d, schedule, along)) for a in (-h, h)]
    _, backward, forward, second = derivatives(schedule)
    # Central differences: h² = 1e-10 of third derivatives, and 1e-15·|λ'|/h = 1e-9 of rounding.
    np.testing.assert_allclose(forward, (moved[1][0] - moved[0][0]) / (2 * h), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(second, (moved[1][2] - moved[0][2]) / (2 * h), rtol=1e-6, atol=1e-8)
    pulled = sum(jnp.tensordot(g, d, d.ndim) for g, d in zip(*map(jax.tree.leaves, (backward, along)), strict=True))
    np.testing.assert_allclose(pulled, forward, rtol=1e-10)


def test_learning_a_schedule_lowers_the_variance_of_the_bound_and_keeps_its_value() -> None:
    """Kingma et al. 2021, sections 5.1 and 5.2: −½ ∫ λ' E‖n − n̂‖² dt depends on the ends of λ alone.

    For data N(0, ¼) the exact denoiser's error is c/(c + σ²) with c = α²/4, and the integral ½ log(1 + e^λ/4) between
    the ends.
    """

    def integrand(schedule: Learned, t: jax.Array) -> jax.Array:
        odds = jnp.exp(schedule.log_snr(t)) / 4
        return -0.5 * log_snr_rate(schedule, t) * odds / (1 + odds)

    t = (jnp.arange(512) + 0.5) / 512  # the midpoint rule: h² = 4e-6 of the second derivative
    schedule = schedules.learned(jax.random.key(0), hidden=32)
    optimizer = optax.adam(3e-2)

    def step(carry: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        schedule, state = carry
        variance, gradient = jax.value_and_grad(lambda schedule: integrand(schedule, t).var())(schedule)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(schedule, updates), state), (variance, integrand(schedule, t).mean())

    learn = jax.jit(lambda carry: jax.lax.scan(step, carry, length=100))
    _, (variances, means) = learn((schedule, optimizer.init(schedule)))
    exact = 0.5 * math.log((1 + math.exp(13.3) / 4) / (1 + math.exp(-5) / 4))
    np.testing.assert_allclose(means, exact, rtol=1e-4)
    assert variances[-1] < 0.6 * variances[0]


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
    assert stacked.schedule.steps == schedule.steps
    jax.jit(lambda process, t: process.schedule.alpha(t)).lower(process, 0.5)
    assert jax.jit(schedule.alpha)(0.5).shape == ()  # a bound method, which is hashed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.linear(0), "steps = 0; a discrete schedule needs at least 1"),
        (lambda: schedules.cosine(-1), "steps = -1"),
        (lambda: schedules.discrete(np.zeros(0)), r"betas has shape \(0,\)"),
        (lambda: schedules.discrete(np.full((2, 2), 0.1)), r"betas has shape \(2, 2\)"),
        (lambda: schedules.discrete(np.array([0.1, 0.0])), r"betas\[1\] = 0.0; every β must lie strictly between"),
        (lambda: schedules.discrete(np.array([np.nan, 0.1])), r"betas\[0\] = nan"),
        (lambda: schedules.linear(10, beta_last=1.0), r"betas\[9\] = 1.0"),
        (lambda: schedules.VP(beta_min=3.0, beta_max=2.0), "beta_min = 3.0, beta_max = 2.0; the rule is"),
        (lambda: schedules.TruncatedCosine(log_snr_max=-1.0, log_snr_min=1.0), "log_snr_min < log_snr_max"),
        (lambda: schedules.VE(sigma_min=0.0), "0 < sigma_min < sigma_max"),
        (lambda: schedules.EDM(sigma_min=2.0, sigma_max=1.0), "sigma_min = 2.0, sigma_max = 1.0; the rule is"),
        (lambda: schedules.EDM(rho=0.0), "rho = 0.0; the rule is rho > 0"),
        (lambda: schedules.Sigmoid(start=3.0), "start = 3.0, end = 3.0; the rule is start < end"),
        (lambda: schedules.Sigmoid(tau=0.0), "tau = 0.0 with start = -3.0, end = 3.0; the rule is tau > 0"),
        (lambda: schedules.Sigmoid(tau=0.01), "within ±80, where float32 still holds"),
        (lambda: schedules.Sigmoid(log_snr_min=-math.inf), "log_snr_min = -inf; the rule is −80 <= log_snr_min <= 80"),
        (lambda: schedules.learned(jax.random.key(0), hidden=0), "hidden = 0; the network needs at least 1 sigmoid"),
        (lambda: schedules.learned(jax.random.key(0), log_snr_min=20.0), "the rule is log_snr_min < log_snr_max"),
    ],
)
def test_a_wrong_argument_is_named(make: Callable[[], Schedule], message: str, unchecked: None) -> None:
    with pytest.raises(ValueError, match=message):
        make()
