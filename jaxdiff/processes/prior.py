"""A distribution of x̃_0 in the prior, for transforms of which g_1(x_0) is still visible in x_1.

With the mean m and the covariance C of data, x̃_0 ~ N(m, C) and x_1 = α_1 g_1(x̃_0) + σ_1 n. If g is affine, g_1(x̃_0)
and g_1(x_0) have the same mean and covariance, for any random parameters. x̃_0 must be random: samples that start from
one point would all end at one (Bansal et al. 2022, "Cold Diffusion", section 5.2).
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
        """Return the normal distribution with the mean and covariance of data; a few thousand samples are enough.

        Raises:
          InputError: for fewer than 2 samples.
        """
        data = np.asarray(x0, np.float64)
        n, *shape = data.shape
        if n < 2:
            raise InputError(f"x0 has {n} samples; the rule is at least 2, for a covariance")
        mean = data.mean(0)
        _, scales, directions = np.linalg.svd((data - mean).reshape(n, -1) / np.sqrt(n - 1), full_matrices=False)
        return cls(mean=mean, factors=(scales[:, None] * directions).reshape(-1, *shape))

    def __call__(self, key: RandomKey) -> Sample:
        """Draw x̃_0."""
        z = jax.random.normal(key, (len(self.factors),))
        return jnp.asarray(self.mean, z.dtype) + jnp.tensordot(z, jnp.asarray(self.factors, z.dtype), 1)
