"""The U-Net of DDPM.

With R a residual block, A self-attention, ↓ and ↑ halving and doubling of every size, and h_0 … h_{L−1} the inputs of
the L levels on the way down:

    h_0 = conv(x)                                              its kernel is 3×3, or 3 in each of other dimensions
    h_{i+1} = ↓ (A R)^layers (h_i)                             the last level does not halve
    m = M M h_L,   M = R A R A R
    u_i = (A R)^layers [↑ u_{i+1}, h_i],   u_L = m             the last level does not double
    output = conv(SiLU(GroupNorm(u_0)))

Source: Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239, appendix B), after
Ronneberger et al. 2015 (arXiv:1505.04597).
"""

from collections.abc import Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.models import conditions, layers
from jaxdiff.models.layers import Grids, Times
from jaxdiff.typing import Count, InputError, Layers, PyTree, Shape, Width, check_whole


class UNet(nn.Module):
    """A U-Net on signals, images or volumes: `model.apply(variables, x, t, cond)` returns the prediction, in float32.

    The defaults give the network of 10,188,081 parameters for 28×28×1 images. `cond` and the initial weights are as
    for `jaxdiff.models.MLP`: an untrained network predicts zero. Labels and vectors are added to the time embedding,
    images join the channels of x, and attention to tokens follows every self-attention.

    Fields:
      stem: channels of the first convolution.
      down: channels of each level on the way down; between two levels every size is halved.
      middle: channels of the blocks at the lowest resolution.
      up: channels of each level on the way up, the lowest resolution first.
      layers: pairs of a residual block and self-attention in each level.
      attention: which levels have self-attention, the highest resolution first. A level on the way up has it if its
        counterpart on the way down does; the middle always has it.
      heads: of the self-attention.
      groups: of GroupNorm, whose ε is 1e-5.
      patch: 2 merges squares of 2×2 pixels into one with 4 times the channels: 28×28 becomes 14×14.
      dims: 1 for signals (length, channels), 2 for images (height, width, channels), or 3 for volumes
        (depth, height, width, channels). Attention is among all positions.
      time_dim, time_steps, classes, outputs, dtype: as for `jaxdiff.models.MLP`.
      conditions: the shapes of other conditions than labels: vector, image and tokens.
      remat: whether the backward pass computes the insides of each block again instead of keeping them.

    Raises:
      InputError: if the fields do not fit together, x have other dimensions or an unsuitable size, or there is a
        condition without a place.
    """

    stem: Width = 32
    down: Sequence[Width] = (64, 128, 256)
    middle: Sequence[Width] = (256, 128)
    up: Sequence[Width] = (64, 32, 16)
    layers: Layers = 2
    attention: Sequence[bool] = (True, True, True)
    heads: Width = 4
    groups: Width = 8
    time_dim: Width = 128
    time_steps: int = 1000
    patch: Width = 1
    classes: Count = 0
    outputs: Width = 1
    dtype: DTypeLike = jnp.float32
    dims: int = 2
    conditions: Mapping[str, Shape] = FrozenDict()
    remat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        layers.check_fields(self, "stem", "down", "middle", "up", "layers", "patch", "heads", "groups", "outputs")
        levels = len(self.down)
        layers.check_depth(2 * levels * self.layers + 3 * len(self.middle), "layers, down and middle")
        for name in ("up", "attention"):
            entries = tuple(getattr(self, name))
            if len(entries) != levels:
                raise InputError(
                    f"{name} = {entries} needs one entry for each of the {levels} levels of down = {tuple(self.down)}"
                )
        if "tokens" in self.conditions and not (any(self.attention) or self.middle):
            raise InputError(
                f"attention = {tuple(self.attention)} and middle = (): a unet that attends nowhere has no place for "
                "the condition 'tokens'; give a level attention"
            )
        layers.check_dims(self.dims)
        for name, fields in {"groups": ("stem", "down", "middle", "up"), "heads": ("down", "middle", "up")}.items():
            divisor = getattr(self, name)
            for field in fields:
                channels = np.atleast_1d(getattr(self, field))
                if (channels % divisor).any():
                    raise InputError(
                        f"{field} = {channels.tolist()} has channels that {name} = {divisor} does not divide; make "
                        "them multiples of it"
                    )

    @property
    def size_multiple(self) -> int:
        """The sizes of its samples are multiples of this: patch·2^(levels − 1)."""
        return self.patch * 2 ** (len(self.down) - 1)

    def check_size(self, *sizes: int) -> None:
        """Raise an InputError if samples of this size, such as height and width, can't be halved often enough."""
        layers.check_sizes(sizes, patch=self.patch, halvings=len(self.down) - 1)

    @nn.compact
    def __call__(self, x: Grids, t: Times, cond: PyTree = None) -> Float[Array, "n *sizes predicted"]:
        layers.check_rank("a unet", self.dims, x.shape[1:], otherwise="use an mlp")
        self.check_size(*x.shape[1:-1])
        time = layers.TimeEmbedding(self.time_dim, self.time_steps, self.dtype, name="time")(t)
        labels, given = conditions.unpack(cond, len(x), self.classes, self.conditions)
        embed = conditions.LabelEmbedding(self.classes, self.time_dim, self.dtype, name="label")
        time = time + embed(labels, len(x))
        if "vector" in self.conditions:
            embed_vector = conditions.VectorEmbedding(self.time_dim, self.dtype, name="vector")
            time = time + embed_vector(given["vector"], given["vector_mask"])
        predicted = self.outputs * x.shape[-1] * self.patch**self.dims
        if "image" in self.conditions:
            x = conditions.join_image(x, given["image"], given["image_mask"])

        kinds = [layers.ResidualBlock, layers.SelfAttention, conditions.CrossAttention]
        residual, attentive, cross_attentive = map(nn.remat, kinds) if self.remat else kinds
        block = partial(residual, groups=self.groups, dtype=self.dtype)

        def attention(h: Array, name: str) -> Array:
            h = attentive(self.heads, self.groups, self.dtype, name=name)(h)
            if "tokens" not in self.conditions:
                return h
            attend_tokens = cross_attentive(self.heads, self.groups, self.dtype, name=f"{name}_tokens")
            return attend_tokens(h, given["tokens"], given["tokens_mask"])

        def level(h: Array, features: int, with_attention: bool, name: str) -> Array:
            for i in range(self.layers):
                h = block(features, name=f"{name}_{i}_block")(h, time)
                if with_attention:
                    h = attention(h, f"{name}_{i}_attention")
            return h

        h = layers.conv(self.stem, self.dims, dtype=self.dtype, name="stem")(layers.to_patches(x, self.patch))
        inputs = []
        for i, features in enumerate(self.down):
            if i > 0:
                h = layers.halve(h.shape[-1], self.dims, dtype=self.dtype, name=f"down{i}_halve")(h)
            inputs.append(h)
            h = level(h, features, self.attention[i], f"down{i}")
        for i, features in enumerate(self.middle):
            h = block(features, name=f"middle{i}_0_block")(h, time)
            for j in (1, 2):
                h = attention(h, f"middle{i}_{j}_attention")
                h = block(features, name=f"middle{i}_{j}_block")(h, time)
        for i, features in enumerate(self.up):
            if i > 0:
                h = layers.Double(self.dtype, name=f"up{i}_double")(h)
            h = jnp.concatenate([h, inputs.pop()], axis=-1)
            h = level(h, features, self.attention[-1 - i], f"up{i}")
        h = layers.silu(layers.group_norm(self.groups, dtype=self.dtype, name="norm")(h))
        zeros = nn.initializers.zeros
        h = layers.conv(predicted, self.dims, dtype=jnp.float32, kernel_init=zeros, name="head")(h)
        return layers.from_patches(h, self.patch)


_WIDEST = 2**14  # so that four times as many channels are few enough


def sized_unet(
    *,
    width: Width = 32,
    layers: Layers = 1,
    heads: Width = 4,
    groups: Width = 8,
    shape: Shape | None = None,
    classes: Count = 0,
    outputs: Width = 1,
    dtype: DTypeLike = jnp.float32,
    conditions: Mapping[str, Shape] = FrozenDict(),
    remat: bool = False,
) -> UNet:
    """Return a U-Net whose depth follows from the size of the samples.

    Sizes are halved down to 8 or less, 4 at least. Levels have 1, 2, 4, 4, … times `width` channels, and self-attention
    at sizes up to 16. `shape` is that of a sample, by default (64, 64, 3); other arguments are as for `UNet`.

    Raises:
      InputError: if the sizes can't be halved down to 16, or fields do not fit together.
    """
    if not check_whole("width", width) <= _WIDEST:
        raise InputError(f"width = {width}; it must be at most {_WIDEST}")
    sizes = (shape or (64, 64, 3))[:-1]
    if not sizes:
        raise InputError(f"a sized_unet takes signals, images or volumes, not samples of shape {shape}; use an mlp")
    halvings = 0
    while min(sizes) >> halvings > 8 or (halvings == 0 and min(sizes) == 8):
        if any(size % 2 ** (halvings + 1) for size in sizes):
            break
        halvings += 1
    if max(sizes) >> halvings > 16 * max(sizes) / min(sizes):
        unit = 2 ** max((min(sizes) // 8).bit_length() - 1, 1)
        raise InputError(
            f"samples of size {' × '.join(map(str, sizes))} can be halved only {halvings} times; set data.size to "
            f"multiples of {unit}"
        )
    channels = [width * min(2**level, 4) for level in range(halvings + 1)]
    return UNet(
        stem=width,
        down=tuple(channels),
        middle=(channels[-1],),
        up=tuple(reversed(channels)),
        layers=layers,
        attention=tuple(min(sizes) >> level <= 16 for level in range(halvings + 1)),
        heads=heads,
        groups=groups,
        dims=len(sizes),
        classes=classes,
        outputs=outputs,
        dtype=dtype,
        conditions=conditions,
        remat=remat,
    )
