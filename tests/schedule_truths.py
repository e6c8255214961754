"""The schedules under test, their formulas in float64 NumPy, and everything that they compute, compiled once."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import schedules
from jaxdiff.schedules import Learned, Schedule, log_snr_rate, rates


def bent(*, learn_ends: bool) -> Learned:
    """A learned schedule far from linear, with its ends moved if they are learned."""
    schedule = Learned.init(jax.random.key(3), hidden=16, learn_ends=learn_ends)
    ends = jnp.array([1.7, -2.3], jnp.float32) if learn_ends else None
    return dataclasses.replace(schedule, heights=4 * schedule.heights + 6, ends=ends)


# Every registered schedule with its defaults, and some with other arguments.
CASES: dict[str, Callable[[], Schedule]] = {
    **schedules.SCHEDULES,
    "linear-10": lambda: schedules.Linear(10, beta_first=1e-4, beta_last=0.009),
    "linear-1": lambda: schedules.Linear(1, beta_first=5e-4),
    "linear-7000": lambda: schedules.Linear(7000, beta_last=0.021),
    "cosine-20": lambda: schedules.Cosine(20, offset=0.02, beta_max=0.9),
    "discrete-3": lambda: schedules.Discrete(np.array([0.1, 0.5, 0.2])),
    "vp-mild": lambda: schedules.VP(beta_min=0.5, beta_max=5.0),
    "truncated_cosine-lopsided": lambda: schedules.TruncatedCosine(log_snr_max=12.0, log_snr_min=-6.0),
    "ve-wide": lambda: schedules.VE(sigma_min=0.002, sigma_max=348.0),
    "sigmoid-lopsided": lambda: schedules.Sigmoid(start=0.0, end=3.0, tau=0.3, log_snr_min=-9.0),
    "edm-cubic": lambda: schedules.EDM(sigma_min=0.01, sigma_max=20.0, rho=3.0),
    "learned-bent": lambda: bent(learn_ends=False),
    "learned-ends": lambda: bent(learn_ends=True),
}
BETAS = {
    "linear": np.linspace(1e-4, 0.02, 1000),
    "linear-10": np.linspace(0.1, 9, 10) / 10,
    "linear-1": np.array([0.5]),
    "linear-7000": np.linspace(1e-4, 0.021, 7000) / 7,
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
    """γ̃ and its derivative as Kingma et al. print them, and both ends, in NumPy."""
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
    """(log ᾱ)'/(1 − ᾱ), as for every variance-preserving schedule."""
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
    cells = schedule.num_timesteps or 1000
    k = np.linspace(0, cells - 1, 24).astype(int)
    return ((k + OFFSETS[kind]) / cells).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Values:
    """Everything that a schedule computes at some times, as NumPy arrays of one precision."""

    alpha: np.ndarray
    sigma: np.ndarray
    log_snr: np.ndarray
    time: np.ndarray  # of log_snr
    d_alpha: np.ndarray  # by `rates`
    d_sigma: np.ndarray
    d_log_snr: np.ndarray  # by `log_snr_rate`
    slopes: np.ndarray  # reverse-mode derivatives of alpha, sigma, log_snr and of time after log_snr
    beyond: np.ndarray  # times of log-SNRs given by themselves


@jax.jit
def everything(schedule: Schedule, t: jax.Array, beyond: jax.Array) -> dict[str, jax.Array]:
    def round_trip(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = schedule.time(jnp.concatenate([schedule.log_snr(t), beyond]))
        return found[: len(t)], found[len(t) :]

    functions = {"alpha": schedule.alpha, "sigma": schedule.sigma, "log_snr": schedule.log_snr}
    out, slopes = {}, []
    for name, function in functions.items():
        out[name], pullback = jax.vjp(function, t)
        slopes.append(pullback(jnp.ones_like(t))[0])
    out["time"], pullback, out["beyond"] = jax.vjp(round_trip, t, has_aux=True)
    slopes.append(pullback(jnp.ones_like(t))[0])
    d_alpha, d_sigma = rates(schedule, t)
    d_log_snr = log_snr_rate(schedule, t)
    return out | {"d_alpha": d_alpha, "d_sigma": d_sigma, "d_log_snr": d_log_snr, "slopes": jnp.stack(slopes)}


@functools.cache
def values(name: str, kind: Kind | float, dtype: str, beyond: tuple[float, ...] = (0.0,) * 6) -> Values:
    schedule = CASES[name]()
    with jax.enable_x64(dtype == "float64"):
        found = everything(schedule, np.asarray(times(schedule, kind), dtype), np.asarray(beyond, dtype))
        return Values(**jax.device_get(found))
