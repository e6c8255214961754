"""Layers of the networks."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxdiff import typing
from jaxdiff.models.attention import attend
from jaxdiff.typing import InputError

Images = Float[Array, "n height width channels"]
Times = Float[Array, " n"]

group_norm = partial(nn.GroupNorm, epsilon=1e-5)
conv = partial(nn.Conv, kernel_size=(3, 3))
halve = partial(nn.Conv, kernel_size=(4, 4), strides=(2, 2), padding=1)


class LabelEmbedding(nn.Module):
    """Embed labels 0 … classes − 1 of shape (n,) as (n, dim). Label −1 and None share one extra vector.

    Labels ≥ classes give NaN. With 0 classes the embedding is zero, and a condition is refused.
    """

    classes: int
    dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, labels: Int[Array, " n"] | None, n: int) -> Float[Array, "n dim"] | float:
        if not self.classes:
            if labels is not None:
                raise InputError(f"this network has no labels, but was given the condition {labels!r}: pass None")
            return 0.0
        if labels is None:
            labels = jnp.full(n, -1)
        row = jnp.where(labels < 0, self.classes, jnp.where(labels < self.classes, labels, self.classes + 1))
        return nn.Embed(self.classes + 1, self.dim, dtype=self.dtype, name="table")(row)


def check_fields(module: Any, *names: str) -> None:
    """Raise an InputError unless the fields fit their annotations, these and `time_steps` are 1 or more, in every
    entry, and `time_dim` is even.
    """
    typing.check_fields(module)
    for name in (*names, "time_steps"):
        value = getattr(module, name)
        if min(value if isinstance(value, tuple) else (value,), default=1) < 1:
            raise InputError(f"{name} = {typing.shown(value)}; it must be 1 or more")
    if module.time_dim < 2 or module.time_dim % 2:
        raise InputError(f"time_dim = {module.time_dim}; it must be an even number: half sines, half cosines")


def check_depth(blocks: int, names: str) -> None:
    """Raise an InputError if the fields `names` ask for more blocks than can be built in reasonable time."""
    if blocks > 256:
        raise InputError(f"{names} make {blocks} blocks; make them fewer or shorter, for at most 256 blocks")


class TimeEmbedding(nn.Module):
    """Embed t in [0, 1] of shape (n,) as (n, dim): features of the position t·steps − 1, dense, SiLU, dense.

    The features are sin(position·ω_i), then cos(position·ω_i), with ω_i = 10000^(−2i/dim), i = 0 … dim/2 − 1. Step
    k = 1 … steps of a discrete process has t = k/steps, and so the position k − 1.
    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
    """

    dim: int
    steps: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, t: Times) -> Float[Array, "n dim"]:
        # In float32, as bfloat16 does not resolve the positions near 999.
        omega = 10000.0 ** (-2 * jnp.arange(self.dim // 2, dtype=jnp.float32) / self.dim)
        angle = (t * self.steps - 1).astype(jnp.float32)[:, None] * omega[None, :]
        h = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1).astype(self.dtype)
        h = nn.Dense(self.dim, dtype=self.dtype, name="dense1")(h)
        return nn.Dense(self.dim, dtype=self.dtype, name="dense2")(nn.silu(h))


def silu(h: Images) -> Images:
    """Apply SiLU; to a batch of one without its leading axis.

    Under a `jax.vmap` of single examples XLA would otherwise reshape between this product and a convolution, and on a
    CPU recompute the product for the kernel's gradient in a slow memory layout: 6% of a training step.
    """
    return nn.silu(h[0])[None] if len(h) == 1 else nn.silu(h)


def to_patches(x: Images, size: int) -> Float[Array, "n rows columns depth"]:
    """Space to depth: each square of size×size pixels becomes one pixel with all their channels."""
    n, height, width, channels = x.shape
    x = x.reshape(n, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, height // size, width // size, -1)


def from_patches(x: Float[Array, "n rows columns depth"], size: int) -> Images:
    """Depth to space, the inverse of `to_patches`."""
    n, rows, columns, depth = x.shape
    x = x.reshape(n, rows, columns, size, size, depth // size**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows * size, columns * size, -1)


class Double(nn.Module):
    """A transposed 4×4 convolution of stride 2 that keeps its channels: twice the size.

    Pixel i adds kernel[r]·x[i] to pixel 2i + r − 1 of the output, in both directions. It is computed as one dense layer
    from each square of 2×2 pixels to the 2×2 square in its middle, as XLA's gradient of a transposed convolution is ten
    times slower on a CPU. A pixel depends on 4·channels numbers, and the kernel is initialized with that fan-in.
    """

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "n 2*height 2*width channels"]:
        _, height, width, c = x.shape
        init = nn.initializers.variance_scaling(4.0, "fan_in", "truncated_normal")
        kernel = self.param("kernel", init, (4, 4, c, c))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        corners = [x[:, i : i + height + 1, j : j + width + 1] for i in (0, 1) for j in (0, 1)]
        # r = 2·(1 − corner) + pixel: axes (corner, pixel) of the rows, then those of the columns.
        square = kernel.reshape(2, 2, 2, 2, c, c)[::-1, :, ::-1]
        dense = square.transpose(0, 2, 4, 1, 3, 5).reshape(4 * c, 4 * c)
        y = from_patches(jnp.concatenate(corners, axis=-1) @ dense, 2)
        return y[:, 1:-1, 1:-1] + bias[None, None, None, :]


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, 3×3 convolution, + time; GroupNorm, SiLU, 3×3 convolution, + 1×1 of x.

    The time embedding passes through SiLU and a dense layer. The 1×1 convolution is always present, even if the number
    of channels does not change.
    """

    features: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Images, time: Float[Array, "n dim"]) -> Float[Array, "n height width features"]:
        h = silu(group_norm(self.groups, dtype=self.dtype, name="norm1")(x))
        h = conv(self.features, dtype=self.dtype, name="conv1")(h)
        h = h + nn.Dense(self.features, dtype=self.dtype, name="time")(nn.silu(time))[:, None, None, :]
        h = silu(group_norm(self.groups, dtype=self.dtype, name="norm2")(h))
        h = conv(self.features, dtype=self.dtype, name="conv2")(h)
        # A 1×1 convolution is a dense layer; XLA's gradient of it is several times faster on a CPU.
        return h + nn.Dense(self.features, dtype=self.dtype, name="skip")(x)


class SelfAttention(nn.Module):
    """x + attention of GroupNorm(x) among its pixels, with biases in all four projections."""

    heads: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Images) -> Images:
        n, height, width, channels = x.shape
        h = group_norm(self.groups, dtype=self.dtype, name="norm")(x).reshape(n, height * width, channels)
        h = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(h)
        h = h.reshape(n, height * width, 3, self.heads, channels // self.heads)
        h = attend(h[:, :, 0], h[:, :, 1], h[:, :, 2]).reshape(n, height * width, channels)
        return x + nn.Dense(channels, dtype=self.dtype, name="out")(h).reshape(x.shape)
