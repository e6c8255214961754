"""A distribution of x̃_0 in the prior, for transforms that leave g_1(x_0) visible in x_1.

x_1 = α_1 g_1(x̃_0) + σ_1 n with x̃_0 ~ N(m, C), where m and C are the mean and covariance of data. If g is affine,
g_1(x̃_0) and g_1(x_0) have the same mean and covariance, for any random parameters. x̃_0 must be random, since samples
that all start from one point all end at one point (Bansal et al. 2022, "Cold Diffusion", section 5.2).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.typing import InputError, RandomKey, Sample, pytree


@pytree(eq=False)
class FittedNormal:
    """N(mean, Σ_i f_i f_iᵀ) with the `factors` f_i."""

    mean: Float[Array | np.ndarray, "*shape"]
    factors: Float[Array | np.ndarray, "r *shape"]

    @classmethod
    def fit(cls, x0: Float[Array | np.ndarray, "n *shape"]) -> "FittedNormal":
        """Return the normal distribution with the mean and covariance of at least 2 samples; a few thousand suffice."""
        data = np.asarray(x0, np.float64)
        n, *shape = data.shape
        if n < 2:
            raise InputError(f"x0 has {n} samples; a covariance needs at least 2")
        mean = data.mean(0)
        _, scales, directions = np.linalg.svd((data - mean).reshape(n, -1) / np.sqrt(n - 1), full_matrices=False)
        return cls(mean=mean, factors=(scales[:, None] * directions).reshape(-1, *shape))

    def __call__(self, key: RandomKey) -> Sample:
        """Draw x̃_0."""
        z = jax.random.normal(key, (len(self.factors),))
        return jnp.asarray(self.mean, z.dtype) + jnp.tensordot(z, jnp.asarray(self.factors, z.dtype), 1)
