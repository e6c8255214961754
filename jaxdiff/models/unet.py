"""The U-Net of "Denoising Diffusion Probabilistic Models" (Ho, Jain and Abbeel 2020,
arXiv:2006.11239, appendix B), after Ronneberger et al. 2015 (arXiv:1505.04597).

With R a residual block, A self-attention, ↓ and ↑ halving and doubling of the image, and h_0 … h_{L−1} the inputs of
the L levels on the way down:

    h_0 = conv3×3(x)
    h_{i+1} = ↓ (A R)^layers (h_i)                             the last level does not halve
    m = M M h_L,   M = R A R A R
    u_i = (A R)^layers [↑ u_{i+1}, h_i],   u_L = m             the last level does not double
    output = conv3×3(SiLU(GroupNorm(u_0)))
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.models.layers import (
    Double,
    LabelEmbedding,
    ResidualBlock,
    SelfAttention,
    TimeEmbedding,
    check_time,
    conv,
    from_patches,
    group_norm,
    halve,
    silu,
    to_patches,
)
from jaxdiff.typing import InputError, PyTree


class UNet(nn.Module):
    """A U-Net on images: `model.apply(variables, x, t)` for x (n, height, width, channels).

    The defaults give the network of 10,188,081 parameters for 28×28×1 images. Kernels start with LeCun's normal
    initializer (variance 1/fan-in), biases and the last convolution at zero: an untrained network predicts zero.

    Fields:
      stem: channels of the first convolution.
      down: channels of each level on the way down; between two levels the image is halved.
      middle: channels of the blocks at the lowest resolution.
      up: channels of each level on the way up, the lowest resolution first.
      layers: pairs of a residual block and self-attention in each level.
      attention: which levels have self-attention, the highest resolution first. A level on the way up has it if its
        counterpart on the way down does; the middle always has it.
      heads: of the self-attention.
      groups: of GroupNorm, whose ε is 1e-5.
      time_dim: size of the time embedding.
      time_steps: t in [0, 1] is embedded as the position t·time_steps − 1.
      patch: 2 merges squares of 2×2 pixels into one with 4 times the channels: 28×28 becomes 14×14.
      classes, outputs, dtype: as of `jaxdiff.models.MLP`.

    Raises:
      InputError: if the fields do not fit together.
    """

    stem: int = 32
    down: Sequence[int] = (64, 128, 256)
    middle: Sequence[int] = (256, 128)
    up: Sequence[int] = (64, 32, 16)
    layers: int = 2
    attention: Sequence[bool] = (True, True, True)
    heads: int = 4
    groups: int = 8
    time_dim: int = 128
    time_steps: int = 1000
    patch: int = 1
    classes: int = 0
    outputs: int = 1
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = len(self.down)
        for name in ("up", "attention"):
            if levels != len(getattr(self, name)):
                raise InputError(
                    f"{name} = {tuple(getattr(self, name))} needs one entry for each of the "
                    f"{levels} levels of down = {tuple(self.down)}"
                )
        for name in ("layers", "patch", "heads", "groups", "outputs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}; the rule is 1 or more")
        check_time(self.time_dim, self.time_steps)
        for name, fields in {
            "groups": ("stem", "down", "middle", "up"),
            "heads": ("down", "middle", "up"),
        }.items():
            for field in fields:
                channels = np.atleast_1d(getattr(self, field))
                if (channels % getattr(self, name)).any():
                    raise InputError(
                        f"{field} = {channels.tolist()} has channels that {name} = "
                        f"{getattr(self, name)} does not divide; make them multiples of it"
                    )

    @property
    def size_multiple(self) -> int:
        """Height and width of its images are multiples of this: patch·2^(levels − 1)."""
        return self.patch * 2 ** (len(self.down) - 1)

    def check_size(self, height: int, width: int) -> None:
        """Raise an InputError if images of this size can't be halved often enough."""
        if height % self.size_multiple or width % self.size_multiple:
            raise InputError(
                f"an image of {height}×{width} can't be halved {len(self.down) - 1} times "
                f"after patches of {self.patch}: height and width must be multiples of "
                f"{self.size_multiple}; pad or resize the images, or use fewer levels"
            )

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n height width channels"],
        t: Float[Array, " n"],
        cond: PyTree = None,
    ) -> Float[Array, "n height width predicted"]:
        """Return the prediction for noisy images x at times t in [0, 1], in float32.

        Args:
          cond: labels of shape (n,), −1 for none; or None.

        Raises:
          InputError: if there is a condition but no classes, or x are no images or of an unsuitable size.
        """
        if x.ndim != 4:
            raise InputError(f"a unet takes images, but an example here has shape {x.shape[1:]}; use an mlp")
        height, width, channels = x.shape[1:]
        self.check_size(height, width)
        time = TimeEmbedding(self.time_dim, self.time_steps, self.dtype, name="time")(t)
        time = time + LabelEmbedding(self.classes, self.time_dim, self.dtype, name="label")(cond, len(x))

        def block(h: Array, features: int, name: str) -> Array:
            return ResidualBlock(features, self.groups, self.dtype, name=f"{name}_block")(h, time)

        def attention(h: Array, name: str) -> Array:
            return SelfAttention(self.heads, self.groups, self.dtype, name=f"{name}_attention")(h)

        def level(h: Array, features: int, with_attention: bool, name: str) -> Array:
            for i in range(self.layers):
                h = block(h, features, f"{name}_{i}")
                if with_attention:
                    h = attention(h, f"{name}_{i}")
            return h

        h = conv(self.stem, self.dtype, "stem")(to_patches(x, self.patch))
        inputs = []
        for i, features in enumerate(self.down):
            if i > 0:
                h = halve(h.shape[-1], self.dtype, f"down{i}_halve")(h)
            inputs.append(h)
            h = level(h, features, self.attention[i], f"down{i}")
        for i, features in enumerate(self.middle):
            h = block(h, features, f"middle{i}_0")
            for j in (1, 2):
                h = block(attention(h, f"middle{i}_{j}"), features, f"middle{i}_{j}")
        for i, features in enumerate(self.up):
            if i > 0:
                h = Double(self.dtype, name=f"up{i}_double")(h)
            h = jnp.concatenate([h, inputs.pop()], axis=-1)
            h = level(h, features, self.attention[-1 - i], f"up{i}")
        h = silu(group_norm(self.groups, self.dtype, "norm")(h))
        h = nn.Conv(
            self.outputs * channels * self.patch**2,
            (3, 3),
            dtype=jnp.float32,
            kernel_init=nn.initializers.zeros,
            name="head",
        )(h)
        return from_patches(h, self.patch)
