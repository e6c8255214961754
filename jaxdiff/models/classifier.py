"""Classifiers of clean images, whose last hidden layer serves as features, and of noisy samples."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.models import layers
from jaxdiff.models.layers import Grids, Times
from jaxdiff.typing import Count, InputError, Layers, Width


class Classifier(nn.Module):
    """Squares of patch×patch pixels; a 3×3 convolution, one of stride 2, and a 3×3 one; dense features; dense logits.

    `apply(params, x)` takes images in [−1, 1], of sides divisible by 2·patch, and returns (features, logits), float32.
    The features are those before the last ReLU, so that none is constant and their distribution has no atom at 0.
    """

    patch: int
    width: int
    features: int
    classes: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n height width channels"]
    ) -> tuple[Float[Array, "n features"], Float[Array, "n classes"]]:
        x = nn.relu(nn.Conv(self.width, (3, 3), name="conv1")(layers.to_patches(x, self.patch)))
        x = nn.relu(nn.Conv(self.width, (2, 2), strides=(2, 2), name="halve")(x))
        x = nn.relu(nn.Conv(self.width, (3, 3), name="conv2")(x))
        features = nn.Dense(self.features, name="features")(x.reshape(len(x), -1))
        return features, nn.Dense(self.classes, name="logits")(nn.relu(features))


class NoisyClassifier(nn.Module):
    """A classifier of noisy signals, images or volumes: `model.apply(variables, x, t)` returns float32 logits.

    It is the downward half of `jaxdiff.models.UNet` without attention, with `layers` residual blocks in each level and
    the same time embedding; then GroupNorm, SiLU, the mean over positions, and dense logits. The last layer starts at
    zero: every class is equally likely. `channels` has one entry per level; the other fields are those of the U-Net.

    Raises:
      InputError: if the fields do not fit together, or x have other dimensions or an unsuitable size.
    """

    channels: Sequence[Width] = (32, 64)
    layers: Layers = 1
    groups: Width = 8
    time_dim: Width = 128
    time_steps: int = 1000
    patch: Width = 1
    classes: Count = 0
    dtype: DTypeLike = jnp.float32
    dims: int = 2
    remat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        layers.check_fields(self, "channels", "layers", "groups", "patch")
        layers.check_dims(self.dims)
        layers.check_depth(self.layers * len(self.channels), "layers and channels")
        if not self.channels or any(width % self.groups for width in self.channels):
            raise InputError(
                f"channels = {tuple(self.channels)}; it must be one or more multiples of groups = {self.groups}"
            )

    @nn.compact
    def __call__(self, x: Grids, t: Times) -> Float[Array, "n {self.classes}"]:
        layers.check_rank("a classifier", self.dims, x.shape[1:], otherwise="use another network")
        layers.check_sizes(x.shape[1:-1], patch=self.patch, halvings=len(self.channels) - 1)
        time = layers.TimeEmbedding(self.time_dim, self.time_steps, self.dtype, name="time")(t)
        h = layers.conv(self.channels[0], self.dims, dtype=self.dtype, name="stem")(layers.to_patches(x, self.patch))
        block = nn.remat(layers.ResidualBlock) if self.remat else layers.ResidualBlock
        for i, width in enumerate(self.channels):
            if i > 0:
                h = layers.halve(width, self.dims, dtype=self.dtype, name=f"halve{i}")(h)
            for j in range(self.layers):
                h = block(width, self.groups, self.dtype, name=f"block{i}_{j}")(h, time)
        h = nn.silu(layers.group_norm(self.groups, dtype=self.dtype, name="norm")(h))
        h = h.mean(axis=tuple(range(1, self.dims + 1)))
        return nn.Dense(self.classes, dtype=jnp.float32, kernel_init=nn.initializers.zeros, name="logits")(h)
