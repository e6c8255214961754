"""Layers of the networks.

Convolutional layers take a grid of positions in 1, 2 or 3 dimensions: signals, images or volumes. The rank of their
input says which.
"""

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff import typing
from jaxdiff.models.attention import attend
from jaxdiff.schedules import as_time
from jaxdiff.typing import InputError, Shape

Grids = Float[Array, "n *sizes channels"]
Times = Float[Array, " n"]

group_norm = partial(nn.GroupNorm, epsilon=1e-5)
GRIDS = {1: ("a signal", "lengths"), 2: ("an image", "height and width"), 3: ("a volume", "depth, height and width")}


def conv(features: int, dims: int, **options: Any) -> nn.Conv:
    """Return a convolution with a kernel of 3 positions in each of `dims` dimensions."""
    return nn.Conv(features, kernel_size=(3,) * dims, **options)


def halve(features: int, dims: int, **options: Any) -> nn.Conv:
    """Return a convolution that halves each of `dims` dimensions, with a kernel of 4 positions in each."""
    return nn.Conv(features, kernel_size=(4,) * dims, strides=(2,) * dims, padding=1, **options)


def check_fields(module: Any, *names: str) -> None:
    """Raise an InputError unless the fields fit their annotations, these and `time_steps` are 1 or more, in every
    entry, and `time_dim` is even.
    """
    typing.check_fields(module)
    if hasattr(module, "conditions"):
        if not isinstance(shapes := module.conditions, Mapping):
            raise InputError(f"conditions = {typing.shown(shapes)}; it must be a mapping of kinds to shapes")
        object.__setattr__(module, "conditions", FrozenDict(shapes))  # so that equal networks share programs
    for name in (*names, "time_steps"):
        value = getattr(module, name)
        if min(value if isinstance(value, tuple) else (value,), default=1) < 1:
            raise InputError(f"{name} = {typing.shown(value)}; it must be 1 or more")
    if module.time_dim < 2 or module.time_dim % 2:
        raise InputError(f"time_dim = {module.time_dim}; it must be an even number: half sines, half cosines")


def check_dims(dims: int) -> None:
    """Raise an InputError unless dims is 1, 2 or 3."""
    if dims not in GRIDS:
        raise InputError(f"dims = {dims}; it must be 1 for signals, 2 for images or 3 for volumes")


def check_rank(network: str, dims: int, shape: Shape, *, otherwise: str) -> None:
    """Raise an InputError unless a sample of this shape has `dims` dimensions and channels.

    `network` names the network in the message, and `otherwise` says what to do if no `dims` takes the shape.
    """
    if len(shape) != dims + 1:
        takes = f"{GRIDS[dims][0].split()[1]}s" + ("" if dims == 2 else f" if dims = {dims}")
        fix = f"set dims to {len(shape) - 1}" if len(shape) - 1 in GRIDS else otherwise
        raise InputError(f"{network} takes {takes}, but an example here has shape {shape}; {fix}")


def check_sizes(sizes: Shape, *, patch: int, halvings: int) -> None:
    """Raise an InputError unless a grid of these sizes can be cut into patches and then halved so often."""
    multiple = patch * 2**halvings
    if any(size % multiple for size in sizes):
        name, axes = GRIDS[len(sizes)]
        raise InputError(
            f"{name} of {'×'.join(map(str, sizes))} can't be halved {halvings} times after patches of {patch}: {axes} "
            f"must be multiples of {multiple}; pad or resize the {name.split()[1]}s, or use fewer levels"
        )


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
        angle = (as_time(t) * self.steps - 1).astype(jnp.float32)[:, None] * omega[None, :]
        h = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1).astype(self.dtype)
        h = nn.Dense(self.dim, dtype=self.dtype, name="dense1")(h)
        return nn.Dense(self.dim, dtype=self.dtype, name="dense2")(nn.silu(h))


def silu(h: Grids) -> Grids:
    """Apply SiLU; to a batch of one without its leading axis.

    Under a `jax.vmap` of single examples XLA would otherwise reshape between this product and a convolution, and on a
    CPU recompute the product for the kernel's gradient in a slow memory layout: 6% of a training step.
    """
    return nn.silu(h[0])[None] if len(h) == 1 else nn.silu(h)


def to_patches(x: Grids, size: int) -> Float[Array, "n *patches depth"]:
    """Space to depth: each patch, `size` long in every dimension, becomes one position with all its channels."""
    n, *sizes, channels = x.shape
    patches, dims = [length // size for length in sizes], len(sizes)
    x = x.reshape(n, *itertools.chain(*((count, size) for count in patches)), channels)
    axes = range(2 * dims + 2)
    return x.transpose(0, *axes[1:-1:2], *axes[2:-1:2], axes[-1]).reshape(n, *patches, -1)


def from_patches(x: Float[Array, "n *patches depth"], size: int) -> Grids:
    """Depth to space, the inverse of `to_patches`."""
    n, *patches, depth = x.shape
    dims = len(patches)
    x = x.reshape(n, *patches, *[size] * dims, depth // size**dims)
    pairs = itertools.chain(*((1 + i, 1 + dims + i) for i in range(dims)))  # the patch, and the position in it
    return x.transpose(0, *pairs, 2 * dims + 1).reshape(n, *(count * size for count in patches), -1)


class Double(nn.Module):
    """A transposed convolution of stride 2, with a kernel of 4 positions a dimension, that keeps its channels.

    Position i adds kernel[r]·x[i] to position 2i + r − 1 of the output, in every dimension. It is computed as one dense
    layer from each cube of 2 positions a dimension to the cube of 2 in its middle (squares, in an image), as XLA's
    gradient of a transposed convolution is ten times slower on a CPU. In d dimensions a position depends on
    2^d·channels numbers, and the kernel is initialized with that fan-in.
    """

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Grids) -> Float[Array, "n *doubled channels"]:
        _, *sizes, c = x.shape
        dims = len(sizes)
        init = nn.initializers.variance_scaling(2.0**dims, "fan_in", "truncated_normal")
        kernel = self.param("kernel", init, (*[4] * dims, c, c))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = jnp.pad(x, ((0, 0), *[(1, 1)] * dims, (0, 0)))
        corners = []
        for corner in itertools.product((0, 1), repeat=dims):
            shifted = tuple(slice(i, i + length + 1) for i, length in zip(corner, sizes, strict=True))
            corners.append(x[:, *shifted])
        # r = 2·(1 − corner) + position in the cube: two axes of the kernel for each dimension.
        cube = kernel.reshape(*[2] * (2 * dims), c, c)[(slice(None, None, -1), slice(None)) * dims]
        axes = range(2 * dims + 2)
        dense = cube.transpose(*axes[0:-2:2], axes[-2], *axes[1:-2:2], axes[-1]).reshape(2**dims * c, 2**dims * c)
        y = from_patches(jnp.concatenate(corners, axis=-1) @ dense, 2)
        return y[:, *[slice(1, -1)] * dims] + jnp.expand_dims(bias, range(dims + 1))


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, + time; GroupNorm, SiLU, convolution, + a 1×1 convolution of x.

    The time embedding passes through SiLU and a dense layer. The 1×1 convolution is always present, even if the number
    of channels does not change.
    """

    features: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Grids, time: Float[Array, "n dim"]) -> Float[Array, "n *sizes features"]:
        dims = x.ndim - 2
        h = silu(group_norm(self.groups, dtype=self.dtype, name="norm1")(x))
        h = conv(self.features, dims, dtype=self.dtype, name="conv1")(h)
        shift = nn.Dense(self.features, dtype=self.dtype, name="time")(nn.silu(time))
        h = h + jnp.expand_dims(shift, range(1, dims + 1))
        h = silu(group_norm(self.groups, dtype=self.dtype, name="norm2")(h))
        h = conv(self.features, dims, dtype=self.dtype, name="conv2")(h)
        # A 1×1 convolution is a dense layer; XLA's gradient of it is several times faster on a CPU.
        return h + nn.Dense(self.features, dtype=self.dtype, name="skip")(x)


class SelfAttention(nn.Module):
    """x + attention of GroupNorm(x) among its positions, with biases in all four projections."""

    heads: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Grids) -> Grids:
        n, channels = len(x), x.shape[-1]
        h = group_norm(self.groups, dtype=self.dtype, name="norm")(x).reshape(n, -1, channels)
        h = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(h)
        h = h.reshape(n, -1, 3, self.heads, channels // self.heads)
        h = attend(h[:, :, 0], h[:, :, 1], h[:, :, 2]).reshape(n, -1, channels)
        return x + nn.Dense(channels, dtype=self.dtype, name="out")(h).reshape(x.shape)
