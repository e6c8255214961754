"""Data of several shapes, and a network that takes any of them, named in configs as in `shaped:signals`."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np


def _normal(shape: tuple[int, ...], split: str) -> tuple[np.ndarray, None]:
    return np.random.default_rng(len(split)).normal(size=(32, *shape)).astype(np.float32), None


def _levels(shape: tuple[int, ...], split: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(len(split))
    return rng.integers(256, size=(32, *shape)).astype(np.uint8), np.arange(32) % 2


numbers = partial(_normal, (1,))
points = partial(_normal, (3,))
levels_in_the_plane = partial(_levels, (2,))
signals = partial(_levels, (16, 2))
two_channels = partial(_normal, (8, 8, 2))
four_channels = partial(_levels, (8, 8, 4))
volumes = partial(_levels, (4, 4, 8, 1))
films = partial(_normal, (2, 2, 2, 2, 1))
nothing = partial(_normal, (8, 0, 1))


class Scale(nn.Module):
    """x times a number."""

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: Any = None) -> jax.Array:
        return x * self.param("scale", nn.initializers.ones, ())
