"""The forward process: how a clean sample becomes a noisy one.

    x_t = α_t g_t(x_0) + σ_t n_t,    n_t = h_t(ε),  ε ~ N(0, I)

with a schedule for α and σ, a transform g and a noise distribution h. Gaussian diffusion (Ho et al. 2020, "Denoising
Diffusion Probabilistic Models", equation 4) is the process in which g and h do nothing. Sampling starts at t = 1 from
the prior:

    Gaussian     σ_1 n. The mean α_1 x_0 is neglected, as in DDPM (α_1 = 6e-3 for the linear schedule).
    Perturbed    α_1 g_1(x̃_0) + σ_1 n, with x̃_0 = 0 or drawn from a distribution fitted to data.
"""

import abc
import copy
import functools
import math
import warnings
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.processes.noise import NORMAL, NoiseDistribution, Normal, check_standardized
from jaxdiff.processes.prior import FittedNormal
from jaxdiff.processes.transforms.base import IDENTITY, Identity, Transform
from jaxdiff.schedules import Schedule, check_times, known_log_snr
from jaxdiff.typing import (
    InputError,
    PyTree,
    RandomKey,
    Sample,
    Scalar,
    Shape,
    Time,
    check_component,
    check_key,
    is_traced,
    pytree,
    static,
)


class TransformCondition(NamedTuple):
    """The condition of a network that is given its sample's transform, with parameters such as `transform.angle`."""

    transform: Transform
    cond: PyTree


class Process(abc.ABC):
    """A forward process, for one sample: `Gaussian` or `Perturbed`, which describes the fields."""

    schedule: Schedule
    transform: Transform
    noise: NoiseDistribution
    start: FittedNormal | None
    condition_on_transform: bool

    def sample_noise(self, key: RandomKey, shape: Shape, t: Time = 1.0) -> Sample:
        """Draw noise at time t, of mean 0 and variance 1, in the default float dtype."""
        check_times(t)
        check_key(key)
        return self.noise(key, shape, t)

    def quantile_map(self, noise: Sample, t: Time, s: Time) -> Sample:
        """Map noise at time t to the same quantile at time s: h_s(h_t⁻¹(n))."""
        check_times(t)
        check_times(s)
        return self.noise.quantile_map(noise, t, s)

    def corrupt(self, x0: Sample, noise: Sample, t: Time) -> Sample:
        """Return x_t = α_t g_t(x_0) + σ_t n."""
        check_times(t)
        return self.schedule.alpha(t) * self.transform(x0, t) + self.schedule.sigma(t) * noise

    def infer_noise(self, x0: Sample, x_t: Sample, t: Time) -> Sample:
        """Return the noise that makes x_t from x_0, (x_t − α_t g_t(x_0))/σ_t; 0 if σ_t = 0."""
        check_times(t)
        return safe_divide(x_t - self.schedule.alpha(t) * self.transform(x0, t), self.schedule.sigma(t))

    def network_condition(self, cond: PyTree) -> PyTree:
        """Return what a network is conditioned on: `cond`, or a `TransformCondition` that holds it."""
        return TransformCondition(self.transform, cond) if self.condition_on_transform else cond

    @abc.abstractmethod
    def sample_prior(self, key: RandomKey, shape: Shape) -> Sample:
        """Draw x_1, where sampling starts."""

    def for_sample(self, key: RandomKey, shape: Shape) -> "Process":
        """Return the process with the random parameters of one sample drawn; itself if it has none."""
        return self


@pytree(kw_only=False)
class Gaussian(Process):
    """x_t = α_t x_0 + σ_t n with white Gaussian noise n."""

    schedule: Schedule
    transform: ClassVar[Transform] = IDENTITY  # type: ignore[misc]
    noise: ClassVar[NoiseDistribution] = NORMAL  # type: ignore[misc]
    start: ClassVar[None] = None  # type: ignore[misc]
    condition_on_transform: ClassVar[bool] = False  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_component("schedule", self.schedule, Schedule, "jaxdiff.schedules.Cosine()")

    def sample_prior(self, key: RandomKey, shape: Shape) -> Sample:
        """Draw σ_1 n. Warns if data of unit variance would show in x_1."""
        _warn_of_visible_data(self.schedule)
        return self.schedule.sigma(1.0) * self.sample_noise(key, shape)

    def log_prior(self, x1: Sample) -> Scalar:
        """Return the log-density of the prior at x_1, in nats."""
        sigma = self.schedule.sigma(1.0)
        return -0.5 * ((x1 / sigma) ** 2).sum() - x1.size * (jnp.log(sigma) + 0.5 * math.log(2 * math.pi))


@pytree(kw_only=False, eq=False)
class Perturbed(Process):
    """x_t = α_t g_t(x_0) + σ_t n_t with any transform g and any noise distribution h.

    Args:
      schedule: gives α and σ. To undo the transform rather than the noise, use one that keeps α at 1 with little
        noise, such as `VE(sigma_max=0.3)`.
      transform: g, one of `jaxdiff.transforms` or your own (docs/perturbations.md).
      noise: h, one of `jaxdiff.noise` or your own.
      start: the distribution of x̃_0 in the prior, `FittedNormal.fit(data)`. None, for x̃_0 = 0, is right if
        α_1 g_1(x_0) does not depend on x_0 or is hidden by the noise (discrete noise never hides it).
      condition_on_transform: whether networks are conditioned on the transform, by a `TransformCondition`.

    Raises:
      InputError: if the noise is not standardized, or, when a sample is drawn or a loss computed, if the transform
        changes the shape or is not the identity at t = 0. Values that `jax.jit` traces are not checked.
    """

    schedule: Schedule
    transform: Transform = IDENTITY
    noise: NoiseDistribution = NORMAL
    start: FittedNormal | None = None
    condition_on_transform: bool = static(default=False)

    def __post_init__(self) -> None:
        check_component("schedule", self.schedule, Schedule, "jaxdiff.schedules.Cosine()")
        check_component("transform", self.transform, Transform, "jaxdiff.transforms.Blur(4.0)")
        check_component("noise", self.noise, NoiseDistribution, "jaxdiff.noise.Laplace()")
        if not is_traced(self.noise):
            check_standardized(self.noise)

    def sample_prior(self, key: RandomKey, shape: Shape) -> Sample:
        """Draw α_1 g_1(x̃_0) + σ_1 n. Warns if x̃_0 is 0 and data of unit variance would show in x_1."""
        if self.start is None and isinstance(self.transform, Identity):
            _warn_of_visible_data(self.schedule)
        x0 = jnp.zeros(shape) if self.start is None else self.start(jax.random.fold_in(key, 1))
        return self.corrupt(x0, self.sample_noise(key, shape), 1.0)

    def for_sample(self, key: RandomKey, shape: Shape) -> "Perturbed":
        """Check the transform, and return the process with its random parameters drawn; itself if it has none."""
        transform = self.transform.sample_params(key, shape)
        _check_transform(self.transform, shape)
        if transform is self.transform:
            return self
        process = copy.copy(self)  # not dataclasses.replace, which would check the noise again
        object.__setattr__(process, "transform", transform)
        return process


_VISIBLE = 0.1  # α_1/σ_1 above which the mean that the prior neglects shows in samples


def _warn_of_visible_data(schedule: Schedule) -> None:
    """Warn if α_1/σ_1 is too large for x_1 to be noise. A traced schedule is not checked."""
    log_snr = known_log_snr(schedule, 1.0)
    if log_snr is not None and log_snr > 2 * math.log(_VISIBLE):
        snr = math.exp(log_snr)
        _warn_once(
            f"schedule = {type(schedule).__name__} ends at a signal-to-noise ratio α_1²/σ_1² of {snr:.3g} (ᾱ_T = "
            f"{snr / (1 + snr):.3g} if variance is preserved): data of unit variance still show in x_1, but samples "
            f"start from noise alone; use a schedule that ends below {_VISIBLE**2:g}"
        )


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def _check_transform(transform: Transform, shape: Shape) -> None:
    """Check that g keeps the shape and is the identity at t = 0; the latter only if its parameters are known."""
    if isinstance(transform, Identity):
        return
    name = type(transform).__name__
    found = jax.eval_shape(lambda: transform.sample_params(jax.random.key(1), shape)(jnp.zeros(shape), 1.0))
    if found.shape != shape:
        raise InputError(
            f"transform = {name} returns shape {found.shape} for a sample of shape {shape}; it must keep the shape at "
            "every t: pad its output"
        )
    if is_traced(transform):
        return
    with jax.ensure_compile_time_eval():
        x = jax.random.normal(jax.random.key(0), shape)
        error = float(jnp.abs(transform.sample_params(jax.random.key(1), shape)(x, 0.0) - x).max())
    if not error < 1e-3:
        raise InputError(
            f"transform = {name} changes a sample by {error:.3g} at t = 0, where it must be the identity, "
            "since sampling ends there: make its effect zero at t = 0"
        )


def require_gaussian(
    process: Process,
    *,
    what: str = "this sampler",
    instead: str = "use the sampler deterministic, interpolated, renoise, ddim or ddpm",
) -> Gaussian:
    """Return the process as a `Gaussian`; a `Perturbed` with no transform, normal noise and no start is one, too.

    Raises:
      InputError: for any other process. It says that `what` needs a Gaussian one and suggests `instead`, unless empty.
    """
    if isinstance(process, Gaussian):
        return process
    if isinstance(process.transform, Identity) and isinstance(process.noise, Normal) and process.start is None:
        return Gaussian(process.schedule)
    parts = f"{type(process.transform).__name__}, {type(process.noise).__name__}"
    raise InputError(
        f"process = {type(process).__name__}({parts}); {what} needs a Gaussian process, the only one with a known "
        f"probability-flow ODE, score and likelihood; {instead and f'{instead}, or '}train with jd.Gaussian(schedule)"
    )


def safe_divide(numerator: Sample, denominator: Scalar) -> Sample:
    """Return numerator/denominator, and 0 where the denominator is 0, with finite gradients there."""
    zero = denominator == 0
    return jnp.where(zero, 0, numerator / jnp.where(zero, 1, denominator))
