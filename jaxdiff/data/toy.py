"""Two-dimensional distributions whose samples can be judged by eye.

Each function draws n points from a NumPy generator. They lie about in [-2, 2]² with standard deviations of order one,
as a diffusion model expects its data. scikit-learn takes no NumPy generator, so its seed is drawn from one.
"""

import math

import numpy as np
from jaxtyping import Float32, Int32

Points = Float32[np.ndarray, "n 2"]
Labels = Int32[np.ndarray, "n"]


def swissroll(n: int, rng: np.random.Generator) -> tuple[Points, None]:
    """The Swiss roll, a rolled plane, seen from its side: a spiral with a little noise."""
    from sklearn.datasets import make_swiss_roll  # imported here, as below, because it is slow

    x, _ = make_swiss_roll(n, noise=0.5, random_state=int(rng.integers(2**32)))
    return (x[:, [0, 2]] / 8).astype(np.float32), None


def moons(n: int, rng: np.random.Generator) -> tuple[Points, Labels]:
    """Two interleaved half circles with a little noise; the label says which half circle."""
    from sklearn.datasets import make_moons

    x, labels = make_moons(n, noise=0.05, random_state=int(rng.integers(2**32)))
    return (x - [0.5, 0.25]).astype(np.float32), labels.astype(np.int32)


def checkerboard(n: int, rng: np.random.Generator) -> tuple[Points, None]:
    """Uniform on the 8 unit cells of [-2, 2)² whose corner coordinates have an even sum."""
    column = rng.integers(-2, 2, n)
    row = 2 * rng.integers(-1, 1, n) + column % 2
    # Multiples of 2^-22: the sum is exact in float32, so no point is rounded into the next cell.
    inside = rng.integers(2**22, size=(n, 2)) / 2**22
    return (np.stack([column, row], axis=1) + inside).astype(np.float32), None


def mixture(n: int, rng: np.random.Generator) -> tuple[Points, Labels]:
    """Eight equal Gaussians of deviation 0.1 with means 1.5 (cos(k π/4), sin(k π/4)); the label is k."""
    labels = rng.integers(8, size=n)
    angle = labels * (math.pi / 4)
    means = 1.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return (means + 0.1 * rng.normal(size=(n, 2))).astype(np.float32), labels.astype(np.int32)
