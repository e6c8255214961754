r"""Exact denoisers of known data distributions, to test samplers, losses and likelihoods against the truth.

For data from a mixture of normal distributions, Σ_j w_j N(m_j, C_j), the density of x_t = α x_0 + σ n is

    p_t = Σ_j w_j N(α m_j, V_j),       V_j = α² C_j + σ² I

and with the responsibilities r_j(x) = w_j N(x; α m_j, V_j)/p_t(x), the targets of a network have the expectations

    x̂_0 = E[x_0|x_t] = Σ_j r_j (m_j + α C_j V_j⁻¹ (x_t − α m_j))
    n̂   = E[n|x_t]   = Σ_j r_j σ V_j⁻¹ (x_t − α m_j)                     so that x_t = α x̂_0 + σ n̂
    ∇ log p_t        = −Σ_j r_j V_j⁻¹ (x_t − α m_j) = −n̂/σ
    p(j|x_t)         = r_j

C_j = U_j diag(c_j) U_jᵀ is decomposed once, so that every t costs two products with U_j and V_j is never inverted: σ
and variances of the data may be 0.

For data uniform on a finite set of points a_i, any g, and noise with independent coordinates of density f,

    x̂_0 = Σ_i r_i a_i,    r_i ∝ Π_coordinates f((x_t − α g_t(a_i))/σ),    n̂ = (x_t − α Σ_i r_i g_t(a_i))/σ
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from jaxdiff.processes import Denoiser, Gaussian, Process
from jaxdiff.processes.base import safe_divide
from jaxdiff.schedules import Schedule
from jaxdiff.typing import (
    InputError,
    Prediction,
    PyTree,
    RandomKey,
    Sample,
    Samples,
    Scalar,
    Time,
    check_key,
    pytree,
    static,
)

Component = Int[Array, ""] | None


@pytree(eq=False)
class _Mixture:
    """A mixture of k normal distributions on samples of any shape, with d coordinates."""

    log_weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    variances: Float[Array, "k d"]  # the eigenvalues c_j
    bases: Float[Array, "k d d"]  # the eigenvectors U_j, as columns
    shape: tuple[int, ...] = static()

    def sample(self, key: RandomKey, n: int) -> Samples:
        """Draw n exact samples of x_0."""
        return self.sample_with_classes(key, n)[0]

    def sample_with_classes(self, key: RandomKey, n: int) -> tuple[Samples, Int[Array, " n"]]:
        """Draw n exact samples of x_0 and their components."""
        check_key(key)
        key_class, key_noise = jax.random.split(key)
        classes = jax.random.categorical(key_class, self.log_weights, shape=(n,))
        z = jax.random.normal(key_noise, (n, self.means.shape[1])) * jnp.sqrt(self.variances[classes])
        x = self.means[classes] + jnp.einsum("nij,nj->ni", self.bases[classes], z)
        return x.reshape(n, *self.shape), classes

    def mean(self) -> Sample:
        """Return E[x_0]."""
        return (jnp.exp(self.log_weights) @ self.means).reshape(self.shape)

    def covariance(self) -> Float[Array, "d d"]:
        """Return Cov[x_0] of flattened samples."""
        weights = jnp.exp(self.log_weights)
        within = jnp.einsum("k,kij,kj,klj->il", weights, self.bases, self.variances, self.bases)
        centred = self.means - (weights @ self.means)[None]
        return within + jnp.einsum("k,ki,kj->ij", weights, centred, centred)


@pytree(eq=False)
class _MixtureDenoiser(Denoiser):
    """The exact denoiser of a mixture; `cond` is the component to condition on, −1 or None for the whole mixture."""

    data: _Mixture
    process: Gaussian
    null: ClassVar[int] = -1

    def __call__(self, x_t: Sample, t: Time, cond: Component = None, /) -> Prediction:
        alpha, sigma = self.process.schedule.alpha(t), self.process.schedule.sigma(t)
        whitened, variances, log_joint = self._components(x_t, t, cond)
        x0 = self._mean(log_joint, alpha * self.data.variances * whitened / variances)
        x0 = x0 + (jax.nn.softmax(log_joint) @ self.data.means).reshape(x_t.shape)
        return Prediction(x0, self._mean(log_joint, sigma * whitened / variances))

    def log_density(self, x_t: Sample, t: Time, cond: Component = None) -> Scalar:
        """Return log p_t(x_t), in nats; log p(x_0) at t = 0 of a schedule with σ_0 = 0."""
        return jax.nn.logsumexp(self._components(x_t, t, cond)[2])

    def log_posterior(self, x_t: Sample, t: Time) -> Float[Array, " k"]:
        """Return log p(j|x_t) of each component j, the output of a perfect classifier of noisy samples."""
        return jax.nn.log_softmax(self._components(x_t, t, None)[2])

    def score(self, x_t: Sample, t: Time, cond: Component = None) -> Sample:
        """Return ∇ log p_t(x_t), which is finite at σ_t = 0 if the data have a density."""
        whitened, variances, log_joint = self._components(x_t, t, cond)
        return -self._mean(log_joint, whitened / variances)

    def _mean(self, log_joint: Float[Array, " k"], values: Float[Array, "k d"]) -> Sample:
        """Return Σ_j r_j U_j v_j in the shape of a sample."""
        mean = jnp.einsum("k,kij,kj->i", jax.nn.softmax(log_joint), self.data.bases, values)
        return mean.reshape(self.data.shape)

    def _components(self, x_t: Sample, t: Time, cond: Component) -> tuple[Array, Array, Array]:
        """Return U_jᵀ(x_t − α m_j), the eigenvalues of V_j, and log w_j N(x_t; α m_j, V_j)."""
        if x_t.shape != self.data.shape:
            raise InputError(f"x_t has shape {x_t.shape}; the samples of this denoiser have {self.data.shape}")
        alpha, sigma = self.process.schedule.alpha(t), self.process.schedule.sigma(t)
        centred = x_t.reshape(-1)[None] - alpha * self.data.means
        whitened = jnp.einsum("kij,ki->kj", self.data.bases, centred)
        variances = alpha**2 * self.data.variances + sigma**2
        # A point mass at σ = 0 has the same prediction under any variance that is small enough.
        variances = jnp.maximum(variances, jnp.finfo(variances.dtype).tiny ** 0.75)
        log_density = -0.5 * (whitened**2 / variances + jnp.log(2 * math.pi * variances)).sum(1)
        log_weights = self.data.log_weights
        if cond is not None:
            only = jnp.where(jnp.arange(len(log_weights)) == cond, 0.0, -jnp.inf)
            log_weights = jnp.where(cond < 0, log_weights, only)
        return whitened, variances, log_weights + log_density


@pytree(eq=False)
class _Empirical(Denoiser):
    points: Samples
    process: Process

    def __call__(self, x_t: Sample, t: Time, cond: PyTree = None, /) -> Prediction:
        alpha, sigma = self.process.schedule.alpha(t), self.process.schedule.sigma(t)
        transformed = jax.vmap(lambda point: self.process.transform(point, t))(self.points)
        noises = (x_t[None] - alpha * transformed) / jnp.where(sigma > 0, sigma, 1)
        coordinates = tuple(range(1, noises.ndim))
        log_joint = self.process.noise.log_density(noises, t).sum(coordinates)
        # If no point can have become x_t, or σ = 0, take the nearest one.
        possible = (log_joint.max() > -jnp.inf) & (sigma > 0)
        r = jax.nn.softmax(jnp.where(possible, log_joint, -1e6 * (noises**2).sum(coordinates)))
        x0, mean = jnp.tensordot(r, self.points, 1), jnp.tensordot(r, transformed, 1)
        return Prediction(x0, safe_divide(x_t - alpha * mean, sigma))


def empirical(points: Float[Array | np.ndarray, "n *shape"], process: Process) -> _Empirical:
    """Return the exact denoiser of data that are uniform on these points; a call evaluates g and the density at each.

    The noise must have independent coordinates and a known density (`log_density`): normal, laplace, uniform or
    exponential. The denoiser raises an InputError for other noise.
    """
    return _Empirical(points=jnp.asarray(points), process=process)


def gaussian(mean: ArrayLike, covariance: ArrayLike, schedule: Schedule) -> _MixtureDenoiser:
    """Return the exact denoiser of normal data under Gaussian diffusion; raises as `mixture`.

    The covariance is one variance, one for each coordinate (in the mean's shape), or a matrix over the flat sample.
    """
    return mixture([1.0], np.asarray(mean)[None], np.asarray(covariance)[None], schedule)


def mixture(weights: ArrayLike, means: ArrayLike, covariances: ArrayLike, schedule: Schedule) -> _MixtureDenoiser:
    """Return the exact denoiser of a mixture of k normal distributions under Gaussian diffusion.

    Args:
      weights: k positive numbers; normalized to sum to 1.
      means: (k, *shape).
      covariances: (k,) variances, (k, *shape) variances of coordinates, or (k, d, d) matrices over flat samples.

    Raises:
      InputError: if shapes don't fit, a weight is not positive, or a covariance is not symmetric with eigenvalues >= 0.
    """
    w, m, c = (np.asarray(value, np.float64) for value in (weights, means, covariances))
    k, shape = len(w), m.shape[1:]
    d = math.prod(shape)
    if w.ndim != 1 or m.ndim < 1 or len(m) != k:
        raise InputError(f"weights has shape {w.shape} and means {m.shape}; give (k,) weights and (k, *shape) means")
    if not np.all(w > 0):
        raise InputError(f"weights = {w.tolist()}; every weight must be above 0")
    if c.shape == (k, d, d) and c.shape != (k, *shape):
        if not np.allclose(c, c.swapaxes(1, 2), rtol=1e-8, atol=0):
            raise InputError("covariances holds a matrix that is not symmetric")
        variances, bases = np.linalg.eigh(c)
        variances = np.where(np.abs(variances) < 1e-14 * np.abs(variances).max(initial=0), 0, variances)
    elif c.shape in ((k,), (k, *shape)):
        variances = np.broadcast_to(c.reshape(k, -1), (k, d))
        bases = np.broadcast_to(np.eye(d), (k, d, d))
    else:
        raise InputError(
            f"covariances has shape {c.shape}; for {k} components of shape {shape} give {(k,)}, {(k, *shape)} "
            f"or {(k, d, d)}"
        )
    if variances.min() < 0:
        raise InputError(f"covariances has an eigenvalue of {variances.min()}; eigenvalues must be >= 0")
    leaves = {"log_weights": np.log(w / w.sum()), "means": m.reshape(k, d), "variances": variances, "bases": bases}
    data = _Mixture(shape=shape, **{name: jnp.asarray(value, float) for name, value in leaves.items()})
    return _MixtureDenoiser(data=data, process=Gaussian(schedule))
