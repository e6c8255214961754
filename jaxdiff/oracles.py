r"""Data laws whose diffusion is known exactly: to test samplers, losses and likelihoods against the truth.

For data from a mixture of normal laws, Σ_j w_j N(m_j, C_j), the law of x_t = α x_0 + σ n is

    p_t = Σ_j w_j N(α m_j, V_j),       V_j = α² C_j + σ² I

and with the responsibilities r_j(x) = w_j N(x; α m_j, V_j)/p_t(x), all that a network could be trained to predict is

    x̂_0 = E[x_0|x_t] = Σ_j r_j (m_j + α C_j V_j⁻¹ (x_t − α m_j))
    n̂   = E[n|x_t]   = Σ_j r_j σ V_j⁻¹ (x_t − α m_j)                     so that x_t = α x̂_0 + σ n̂
    ∇ log p_t        = −Σ_j r_j V_j⁻¹ (x_t − α m_j) = −n̂/σ
    p(j|x_t)         = r_j

C_j = U_j diag(c_j) U_jᵀ is decomposed once, so that every t costs two products with U_j and V_j is never inverted: σ
may be 0, and so may variances of the data.

For a finite set of points a_i as the data, any g and any noise whose coordinates are independent with density f,

    x̂_0 = Σ_i r_i a_i,    r_i ∝ Π_coordinates f((x_t − α g_t(a_i))/σ),    n̂ = (x_t − α Σ_i r_i g_t(a_i))/σ
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from numpy.typing import ArrayLike

from jaxdiff.perturbations import NORMAL
from jaxdiff.processes import Perturbed, Process
from jaxdiff.schedules import Schedule
from jaxdiff.typing import Prediction, Time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)  # arrays have no hash, which `jax.jit` asks for
class Mixture:
    """A mixture of normal laws, before diffusion. Make one with `gaussian` or `mixture`.

    k components on samples of any shape, of d numbers together.
    """

    log_weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    variances: Float[Array, "k d"]  # the eigenvalues c_j
    bases: Float[Array, "k d d"]  # the eigenvectors U_j, as columns
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, "n *shape"]:
        """n exact draws of x_0."""
        return self.sample_with_classes(key, n)[0]

    def sample_with_classes(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, "n *shape"], Int[Array, " n"]]:
        """n exact draws of x_0, and the component that each came from."""
        key_class, key_noise = jax.random.split(key)
        classes = jax.random.categorical(key_class, self.log_weights, shape=(n,))
        z = jax.random.normal(key_noise, (n, self.means.shape[1]))
        z = z * jnp.sqrt(self.variances[classes])
        x = self.means[classes] + jnp.einsum("nij,nj->ni", self.bases[classes], z)
        return x.reshape(n, *self.shape), classes

    def mean(self) -> Float[Array, "*shape"]:
        """E[x_0]."""
        return (jnp.exp(self.log_weights) @ self.means).reshape(self.shape)

    def covariance(self) -> Float[Array, "d d"]:
        """Cov[x_0], of samples made flat."""
        weights = jnp.exp(self.log_weights)
        within = jnp.einsum("k,kij,kj,klj->il", weights, self.bases, self.variances, self.bases)
        centred = self.means - (weights @ self.means)[None]
        return within + jnp.einsum("k,ki,kj->ij", weights, centred, centred)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Oracle:
    """The exact denoiser of a mixture under a schedule: `(x_t, t, cond) -> Prediction(x0, noise)`.

    `cond` is the number of a component, of which alone the data then are; −1 or None for the whole mixture.
    """

    data: Mixture
    schedule: Schedule

    def __call__(self, x_t: Float[Array, "*shape"], t: Time, cond: Int[Array, ""] | None = None, /) -> Prediction:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        whitened, variances, log_joint = self._components(x_t, t, cond)
        r = jax.nn.softmax(log_joint)
        x0 = jnp.einsum("k,kij,kj->i", r, self.data.bases, alpha * self.data.variances * whitened / variances)
        noise = jnp.einsum("k,kij,kj->i", r, self.data.bases, sigma * whitened / variances)
        x0 = x0 + r @ self.data.means
        return Prediction(x0.reshape(x_t.shape), noise.reshape(x_t.shape))

    def log_density(self, x_t: Float[Array, "*shape"], t: Time, cond: Int[Array, ""] | None = None) -> Float[Array, ""]:
        """log p_t(x_t), in nats. At t = 0 of a schedule with σ_0 = 0 it is that of the data."""
        return jax.nn.logsumexp(self._components(x_t, t, cond)[2])

    def log_posterior(self, x_t: Float[Array, "*shape"], t: Time) -> Float[Array, " k"]:
        """log p(j|x_t) of each component j: what a perfect classifier of noisy samples says."""
        return jax.nn.log_softmax(self._components(x_t, t, None)[2])

    def score(self, x_t: Float[Array, "*shape"], t: Time, cond: Int[Array, ""] | None = None) -> Float[Array, "*shape"]:
        """∇ log p_t(x_t); finite at σ_t = 0 too, where the data have a density."""
        whitened, variances, log_joint = self._components(x_t, t, cond)
        r = jax.nn.softmax(log_joint)
        slopes = whitened / variances
        return -jnp.einsum("k,kij,kj->i", r, self.data.bases, slopes).reshape(x_t.shape)

    def _components(
        self, x_t: Float[Array, "*shape"], t: Time, cond: Int[Array, ""] | None
    ) -> tuple[Float[Array, "k d"], Float[Array, "k d"], Float[Array, " k"]]:
        """U_jᵀ(x_t − α m_j), the eigenvalues of V_j, and log w_j N(x_t; α m_j, V_j)."""
        if x_t.shape != self.data.shape:
            raise ValueError(f"x_t has shape {x_t.shape}; this oracle's samples have {self.data.shape}")
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        centred = x_t.reshape(-1)[None] - alpha * self.data.means
        whitened = jnp.einsum("kij,ki->kj", self.data.bases, centred)
        variances = alpha**2 * self.data.variances + sigma**2
        # Where both are 0 the law is a point mass, for which any variance stands that is small enough.
        variances = jnp.maximum(variances, jnp.finfo(variances.dtype).tiny ** 0.75)
        log_density = -0.5 * (whitened**2 / variances + jnp.log(2 * math.pi * variances)).sum(1)
        log_weights = self.data.log_weights
        if cond is not None:
            only = jnp.where(jnp.arange(len(log_weights)) == cond, 0.0, -jnp.inf)
            log_weights = jnp.where(cond < 0, log_weights, only)
        return whitened, variances, log_weights + log_density


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Empirical:
    """The exact denoiser of a finite set of points under a process. Make one with `empirical`."""

    points: Float[Array, "n *shape"]
    process: Process

    def __call__(self, x_t: Float[Array, "*shape"], t: Time, cond: None = None, /) -> Prediction:
        schedule = self.process.schedule
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        contents = jax.vmap(lambda point: self.process.signal(point, t))(self.points)
        left = (x_t[None] - alpha * contents) / jnp.where(sigma > 0, sigma, 1)
        coordinates = tuple(range(1, left.ndim))
        law = self.process.noise if isinstance(self.process, Perturbed) else NORMAL
        log_joint = law.log_density(left, t).sum(coordinates)
        # Where none of the points could have made x_t, the nearest one is taken; at σ = 0 too.
        possible = (log_joint.max() > -jnp.inf) & (sigma > 0)
        nearness = -1e6 * (left**2).sum(coordinates)
        r = jax.nn.softmax(jnp.where(possible, log_joint, nearness))
        x0, content = jnp.tensordot(r, self.points, 1), jnp.tensordot(r, contents, 1)
        return Prediction(x0, jnp.where(sigma > 0, (x_t - alpha * content) / jnp.where(sigma > 0, sigma, 1), 0))


def empirical(points: Float[Array | np.ndarray, "n *shape"], process: Process) -> Empirical:
    """The exact denoiser of data that are these points, each as probable as any other.

    Args:
      points: n samples of any shape; a call costs n evaluations of g and of the density.
      process: the process, with noise of independent coordinates and a known density (`log_density`): normal, laplace,
        uniform, exponential.

    Raises:
      ValueError: when called, for noise whose density is not known.
    """
    return Empirical(points=jnp.asarray(points), process=process)


def gaussian(mean: ArrayLike, covariance: ArrayLike, *, schedule: Schedule) -> Oracle:
    """The exact denoiser of normal data.

    Args:
      mean: of the shape of a sample.
      covariance: a variance for all coordinates, one for each (of the mean's shape), or a matrix over the flat sample.
      schedule: the noise schedule.

    Raises:
      ValueError: for shapes that don't fit, and for a covariance that is not symmetric with eigenvalues >= 0.
    """
    return mixture([1.0], np.asarray(mean)[None], np.asarray(covariance)[None], schedule=schedule)


def mixture(weights: ArrayLike, means: ArrayLike, covariances: ArrayLike, *, schedule: Schedule) -> Oracle:
    """The exact denoiser of a mixture of k normal laws.

    Args:
      weights: k positive numbers; made to sum to 1.
      means: (k, *shape).
      covariances: (k,) variances, (k, *shape) variances of coordinates, or (k, d, d) matrices over flat samples of d
        numbers.
      schedule: the noise schedule.

    Raises:
      ValueError: for shapes that don't fit, weights that are not positive, and covariances that are not symmetric
        with eigenvalues >= 0.
    """
    w, m, c = (np.asarray(value, np.float64) for value in (weights, means, covariances))
    k, shape = len(w), m.shape[1:]
    d = math.prod(shape)
    if w.ndim != 1 or m.ndim < 1 or len(m) != k:
        raise ValueError(f"weights has shape {w.shape} and means {m.shape}; give (k,) weights and (k, *shape) means")
    if not np.all(w > 0):
        raise ValueError(f"weights = {w.tolist()}; every weight must be above 0")
    if c.shape == (k, d, d) and c.shape != (k, *shape):
        if not np.allclose(c, c.swapaxes(1, 2), rtol=1e-8, atol=0):
            raise ValueError("covariances holds a matrix that is not symmetric")
        variances, bases = np.linalg.eigh(c)
        variances = np.where(np.abs(variances) < 1e-14 * np.abs(variances).max(initial=0), 0, variances)
    elif c.shape in ((k,), (k, *shape)):
        variances = np.broadcast_to(c.reshape(k, -1), (k, d))
        bases = np.broadcast_to(np.eye(d), (k, d, d))
    else:
        raise ValueError(
            f"covariances has shape {c.shape}; for {k} components of shape {shape} give {(k,)}, {(k, *shape)} "
            f"or {(k, d, d)}"
        )
    if variances.min() < 0:
        raise ValueError(f"covariances has an eigenvalue of {variances.min()}; the rule is >= 0")
    data = Mixture(
        log_weights=jnp.asarray(np.log(w / w.sum()), float),
        means=jnp.asarray(m.reshape(k, d), float),
        variances=jnp.asarray(variances, float),
        bases=jnp.asarray(bases, float),
        shape=shape,
    )
    return Oracle(data=data, schedule=schedule)
