"""A small convolutional classifier of clean images, whose last hidden layer serves as features."""

import flax.linen as nn
from jaxtyping import Array, Float

from jaxdiff.models.layers import to_patches


class Classifier(nn.Module):
    """Squares of patch×patch pixels; a 3×3 convolution, one of stride 2, and a 3×3 one; dense features; dense logits.

    `apply(params, x)` takes images in [−1, 1], of sides divisible by 2·patch, and returns (features, logits), float32.
    The features are what the ReLU before the last layer is given, not what it lets through: none is constant, and their
    law has no atom at 0.
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
