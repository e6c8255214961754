"""The forward process: how a clean sample becomes a noisy one.

    x_t = α_t x_0 + σ_t n,    n ~ N(0, I)

(Ho et al. 2020, equation 4, for any α and σ.) The prior at t = 1 is taken to be σ_1·n: the mean that α_1 x_0
leaves (α_1 = 6e-3 for the linear schedule of 1000 steps) is neglected, as it is by every DDPM.
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.schedules import Schedule
from jaxdiff.typing import Time


@runtime_checkable
class Process(Protocol):
    """What losses and samplers need to know of a forward process. Everything is for one sample."""

    @property
    def schedule(self) -> Schedule: ...

    def signal(self, x0: Float[Array, "*shape"], t: Time) -> Float[Array, "*shape"]:
        """What of x_0 is in x_t."""

    def noise(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
        """Standardised noise: mean 0 and variance 1 in every coordinate."""

    def corrupt(self, x0: Float[Array, "*shape"], noise: Float[Array, "*shape"], t: Time) -> Float[Array, "*shape"]:
        """x_t from x_0 and the noise."""

    def prior(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
        """Where sampling starts: a draw of x_1."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussian:
    """x_t = α_t x_0 + σ_t n with white Gaussian noise n."""

    schedule: Schedule

    def signal(self, x0: Float[Array, "*shape"], t: Time) -> Float[Array, "*shape"]:
        """α_t x_0."""
        return self.schedule.alpha(t) * x0

    def noise(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
        """N(0, I) in the default float dtype."""
        return jax.random.normal(key, shape)

    def corrupt(self, x0: Float[Array, "*shape"], noise: Float[Array, "*shape"], t: Time) -> Float[Array, "*shape"]:
        """α_t x_0 + σ_t n."""
        return self.signal(x0, t) + self.schedule.sigma(t) * noise

    def prior(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
        """σ_1 n."""
        noise = self.noise(key, shape)
        return self.schedule.sigma(1.0) * noise

    def log_prior(self, x1: Float[Array, "*shape"]) -> Float[Array, ""]:
        """The log-density of the prior at x_1, in nats."""
        sigma = self.schedule.sigma(1.0)
        return -0.5 * ((x1 / sigma) ** 2).sum() - x1.size * (jnp.log(sigma) + 0.5 * math.log(2 * math.pi))
