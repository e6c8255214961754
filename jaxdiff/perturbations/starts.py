"""A law of x_0 to start from, where g_1 leaves something of it in x_1.

With the mean m and the covariance C of data, x̃_0 ~ N(m, C) and x_1 = α_1 g_1(x̃_0) + σ_1 n. Of an affine g the mean and
the covariance of g_1(x̃_0) are those of g_1(x_0), whatever the random parameters of the sample. The noise matters: all
samples that start from one point would end at one (Bansal et al. 2022, "Cold Diffusion", section 5.2).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """N(mean, Σ_i f_i f_iᵀ). Make one with `fitted`."""

    mean: Float[Array | np.ndarray, "*shape"]
    factors: Float[Array | np.ndarray, "r *shape"]

    def __call__(self, key: Key[Array, ""]) -> Float[Array, "*shape"]:
        """A draw of x̃_0."""
        z = jax.random.normal(key, (len(self.factors),))
        return jnp.asarray(self.mean, z.dtype) + jnp.tensordot(z, jnp.asarray(self.factors, z.dtype), 1)


def fitted(x0: Float[Array | np.ndarray, "n *shape"]) -> Fitted:
    """The normal law with the mean and the covariance of data; a few thousand samples are enough.

    Raises:
      ValueError: for fewer than 2 samples.
    """
    data = np.asarray(x0, np.float64)
    n, *shape = data.shape
    if n < 2:
        raise ValueError(f"x0 has {n} samples; a covariance takes 2 at least")
    mean = data.mean(0)
    _, scales, directions = np.linalg.svd((data - mean).reshape(n, -1) / np.sqrt(n - 1), full_matrices=False)
    factors = (scales[:, None] * directions).reshape(-1, *shape)
    return Fitted(mean=mean, factors=factors)
