"""Classifiers of clean images, whose last hidden layer serves as features, and of noisy images."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.models.layers import ResidualBlock, TimeEmbedding, check_time, conv, group_norm, halve, to_patches
from jaxdiff.typing import InputError


class Classifier(nn.Module):
    """Squares of patch×patch pixels; a 3×3 convolution, one of stride 2, and a 3×3 one; dense features; dense logits.

    `apply(params, x)` takes images in [−1, 1], of sides divisible by 2·patch, and returns (features, logits), float32.
    The features are the input of the ReLU before the last layer, not its output: none of them is constant, and their
    distribution has no atom at 0.
    """

    patch: int
    width: int
    features: int
    classes: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n height width channels"]
    ) -> tuple[Float[Array, "n features"], Float[Array, "n classes"]]:
        x = nn.relu(nn.Conv(self.width, (3, 3), name="conv1")(to_patches(x, self.patch)))
        x = nn.relu(nn.Conv(self.width, (2, 2), strides=(2, 2), name="halve")(x))
        x = nn.relu(nn.Conv(self.width, (3, 3), name="conv2")(x))
        features = nn.Dense(self.features, name="features")(x.reshape(len(x), -1))
        return features, nn.Dense(self.classes, name="logits")(nn.relu(features))


class NoisyClassifier(nn.Module):
    """A classifier of noisy images: `model.apply(variables, x, t)` for x (n, height, width, channels), t (n,).

    The downward half of `jaxdiff.models.UNet` without attention, with the same time embedding; then GroupNorm, SiLU,
    the mean over pixels, and dense logits. The last layer starts at zero: every class is equally likely.

    Fields:
      channels: of each level; between two levels the image is halved.
      layers: residual blocks in each level.
      groups, time_dim, time_steps, patch, dtype: as of `jaxdiff.models.UNet`.
      classes: number of labels.

    Raises:
      InputError: if the fields do not fit together.
    """

    channels: Sequence[int] = (32, 64)
    layers: int = 1
    groups: int = 8
    time_dim: int = 128
    time_steps: int = 1000
    patch: int = 1
    classes: int = 0
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "groups", "patch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}; the rule is 1 or more")
        check_time(self.time_dim, self.time_steps)
        if not self.channels or any(width % self.groups for width in self.channels):
            raise InputError(
                f"channels = {tuple(self.channels)}; the rule is one or more multiples of groups = {self.groups}"
            )

    @nn.compact
    def __call__(
        self, x: Float[Array, "n height width channels"], t: Float[Array, " n"]
    ) -> Float[Array, "n {self.classes}"]:
        """Return the logits of a batch, float32.

        Raises:
          InputError: if x are no images, or of a size that can't be halved often enough.
        """
        multiple = self.patch * 2 ** (len(self.channels) - 1)
        if x.ndim != 4 or x.shape[1] % multiple or x.shape[2] % multiple:
            raise InputError(
                f"a classifier takes images whose sides are multiples of {multiple}, but an example here has shape "
                f"{x.shape[1:]}; take fewer channels or a smaller patch"
            )
        time = TimeEmbedding(self.time_dim, self.time_steps, self.dtype, name="time")(t)
        h = conv(self.channels[0], self.dtype, "stem")(to_patches(x, self.patch))
        for i, width in enumerate(self.channels):
            if i > 0:
                h = halve(width, self.dtype, f"halve{i}")(h)
            for j in range(self.layers):
                h = ResidualBlock(width, self.groups, self.dtype, name=f"block{i}_{j}")(h, time)
        h = nn.silu(group_norm(self.groups, self.dtype, "norm")(h)).mean(axis=(1, 2))
        return nn.Dense(self.classes, dtype=jnp.float32, kernel_init=nn.initializers.zeros, name="logits")(h)
