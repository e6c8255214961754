"""Transforms that lose content: samples are images of shape (height, width, ...) unless said otherwise.

    warp        turned by t θ and magnified by f^t, bilinear between pixels      no inverse: pixels are averaged
    colours     channels times (1 − t) I + t M                                   inverse while that is regular
    blur        each frequency k times exp(−(t w |k|)²/2), periodic              inverse until its gain is 10³
    mask        each pixel is 0 from a time of its own on, drawn for each sample no inverse
    pixelate    means of blocks that grow with t, linear between their sizes     inverse until the first size
    overlap     (1 − t) x + t y, y drawn for each sample                         inverse but for t = 1

The gain of an inverse is the most that it enlarges an error by. Blur's is exp((t w |k|)²/2) at the highest frequency:
where it is 10³, at t w = 0.84 pixels, float32 can still undo it, and soon after no more. Pixelation's is
1/(1 − t·sizes), overlap's 1/(1 − t).

Sources: Bansal et al. 2022, "Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise" (blur, masks,
pixels, overlap with another image); Rissanen, Heinonen & Solin 2023, "Generative Modelling with Inverse Heat
Dissipation" (blur as a process).
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Key

from jaxdiff.perturbations.base import Drawn, Transform
from jaxdiff.perturbations.points import Number, check_positive
from jaxdiff.typing import Time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Warp(Transform):
    """Make one with `warp`."""

    angle: Number
    zoom: Number

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        _check_image(x, "warp")
        height, width = x.shape[:2]
        angle, shrink = (
            jnp.asarray(t * self.angle, x.dtype),
            jnp.asarray(self.zoom, x.dtype) ** jnp.asarray(-t, x.dtype),
        )
        rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
        middle = (height - 1) / 2, (width - 1) / 2
        down, right = shrink * (rows - middle[0]), shrink * (columns - middle[1])
        # Where each pixel comes from: turned back.
        source = (
            middle[0] + jnp.cos(angle) * down + jnp.sin(angle) * right,
            middle[1] - jnp.sin(angle) * down + jnp.cos(angle) * right,
        )
        channels = x.reshape(height, width, -1)
        bilinear = jax.vmap(lambda c: map_coordinates(c, source, order=1, mode="nearest"), in_axes=-1, out_axes=-1)
        return bilinear(channels).reshape(x.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Colours(Transform):
    """Make one with `colours`."""

    matrix: tuple[tuple[float, ...], ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return x @ self._matrix(x, t).T

    def inverse(self, y: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return y @ jnp.linalg.inv(self._matrix(y, t)).T

    def gain(self, t: Float[np.ndarray, " times"], /) -> Float[np.ndarray, " times"]:
        t = t[:, None, None]
        matrices = (1 - t) * np.eye(len(self.matrix)) + t * np.array(self.matrix)
        with np.errstate(divide="ignore"):
            return 1 / np.linalg.svd(matrices, compute_uv=False)[:, -1]

    @property
    def singular_from(self) -> float:
        # The gain may be large for less time than lies between those at which it is looked at.
        eigenvalues = np.linalg.eigvals(np.array(self.matrix))
        real = eigenvalues.real[np.abs(eigenvalues.imag) < 1e-9]  # (1 − t) + t μ is 0 at t = 1/(1 − μ)
        return min(super().singular_from, *(1 / (1 - mu) for mu in real if mu < 0), math.inf)

    def _matrix(self, x: Array, t: Time) -> Float[Array, "c c"]:
        if x.ndim < 1 or x.shape[-1] != len(self.matrix):
            raise ValueError(f"a matrix of {len(self.matrix)} colours, but a sample has shape {x.shape}; its last axis")
        t = jnp.asarray(t, x.dtype)
        return (1 - t) * jnp.eye(len(self.matrix), dtype=x.dtype) + t * jnp.asarray(self.matrix, x.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Blur(Transform):
    """Make one with `blur`."""

    width: float = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return self._filtered(x, t, -1)

    def inverse(self, y: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return self._filtered(y, t, 1)

    def gain(self, t: Float[np.ndarray, " times"], /) -> Float[np.ndarray, " times"]:
        with np.errstate(over="ignore"):
            return np.exp((t * self.width * math.pi) ** 2)  # |k|² is 2π² at most

    def _filtered(self, x: Float[Array, "*shape"], t: Time, sign: int) -> Float[Array, "*shape"]:
        _check_image(x, "blur")
        k = jnp.meshgrid(*(2 * math.pi * jnp.fft.fftfreq(n) for n in x.shape[:2]), indexing="ij")
        squared = (k[0] ** 2 + k[1] ** 2).reshape(*x.shape[:2], *[1] * (x.ndim - 2)).astype(x.dtype)
        gain = jnp.exp(sign * 0.5 * (jnp.asarray(t, x.dtype) * self.width) ** 2 * squared)
        return jnp.fft.ifft2(gain * jnp.fft.fft2(x, axes=(0, 1)), axes=(0, 1)).real.astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Mask(Transform):
    """The mask of one sample, any shape: what is hidden at time t. `mask` draws it."""

    hidden_from: Float[Array, "*shape"]
    """The time in (0, 1] from which on each coordinate is 0."""

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return jnp.where(jnp.asarray(t) < jnp.broadcast_to(self.hidden_from, x.shape), x, 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RandomMask(Drawn):
    """Make one with `mask`."""

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Mask:
        pixels = (*shape[:2], *[1] * (len(shape) - 2))
        return Mask(hidden_from=1 - jax.random.uniform(key, pixels))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixelate(Transform):
    """Make one with `pixelate`."""

    blocks: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        place = jnp.asarray(t, x.dtype) * len(self.blocks)
        step = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, len(self.blocks) - 1)
        pairs = zip((1, *self.blocks), self.blocks, strict=False)
        ends = [lambda x, a=a, b=b: (self._means(x, a), self._means(x, b)) for a, b in pairs]
        finer, coarser = jax.lax.switch(step, ends, x)
        return finer + (place - step) * (coarser - finer)

    def inverse(self, y: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        means = self._means(y, self.blocks[0])
        return means + (y - means) / (1 - jnp.asarray(t, y.dtype) * len(self.blocks))

    def gain(self, t: Float[np.ndarray, " times"], /) -> Float[np.ndarray, " times"]:
        return _one_over(1 - t * len(self.blocks))

    def _means(self, x: Float[Array, "*shape"], block: int) -> Float[Array, "*shape"]:
        _check_image(x, "pixelate")
        height, width = x.shape[:2]
        if height % block or width % block:
            raise ValueError(f"blocks of {block} pixels in a sample of shape {x.shape}; take divisors of both")
        tiles = x.reshape(height // block, block, width // block, block, -1)
        return jnp.broadcast_to(tiles.mean((1, 3), keepdims=True), tiles.shape).reshape(x.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Overlap(Transform):
    """What one sample turns into, any shape. `overlap` draws it."""

    other: Float[Array, "*shape"]

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        t = jnp.asarray(t, x.dtype)
        return (1 - t) * x + t * self.other.astype(x.dtype)

    def inverse(self, y: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        t = jnp.asarray(t, y.dtype)
        return (y - t * self.other.astype(y.dtype)) / (1 - t)

    def gain(self, t: Float[np.ndarray, " times"], /) -> Float[np.ndarray, " times"]:
        return _one_over(1 - t)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RandomOverlap(Drawn):
    """Make one with `overlap`."""

    others: Float[Array | np.ndarray, "n *shape"]

    def gain(self, t: Float[np.ndarray, " times"], /) -> Float[np.ndarray, " times"]:
        return _one_over(1 - t)

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Overlap:
        if self.others.shape[1:] != shape:
            raise ValueError(f"others has shape {self.others.shape}, but samples have {shape}; give it (n, *{shape})")
        return Overlap(other=jnp.asarray(self.others)[jax.random.randint(key, (), 0, len(self.others))])


def warp(angle: Number = 0.0, *, zoom: Number = 1.0) -> Warp:
    """Images turned by t·angle (in radians, anticlockwise) and magnified by zoom^t about their middle.

    Beyond the edge the pixels at the edge go on.

    Raises:
      ValueError: for a zoom that is not above 0.
    """
    check_positive("zoom", zoom)
    return Warp(angle=angle, zoom=zoom)


def colours(matrix: Sequence[Sequence[float]]) -> Colours:
    """The last axis of a sample times a matrix: ((⅓, ⅓, ⅓),)*3 takes the colours away.

    Raises:
      ValueError: for a matrix that is not square.
    """
    rows = tuple(tuple(float(value) for value in row) for row in matrix)
    if not rows or any(len(row) != len(rows) for row in rows):
        raise ValueError(f"matrix = {rows}; the rule is as many rows as columns, one for each colour")
    return Colours(matrix=rows)


def blur(width: float) -> Blur:
    """A Gaussian blur whose standard deviation is t·width, in pixels; a few times the image's side leaves its mean.

    Raises:
      ValueError: for a width that is not above 0.
    """
    if not width > 0:
        raise ValueError(f"width = {width}; the rule is width > 0, in pixels")
    return Blur(width=float(width))


def mask() -> RandomMask:
    """Pixels vanish one after the other, each at a time that is uniform in (0, 1]: at t a share t of them is gone."""
    return RandomMask()


def pixelate(blocks: Sequence[int]) -> Pixelate:
    """Blocks of these sizes in pixels take the place of pixels, one size after the other at equal times.

    Raises:
      ValueError: for sizes that do not rise from above 1; when used, for one that does not divide the image's sides.
    """
    blocks = tuple(blocks)
    if not blocks or any(b <= a for a, b in zip((1, *blocks), blocks, strict=False)):
        raise ValueError(f"blocks = {blocks}; the rule is sizes above 1 that rise, as in pixelate((2, 4, 8))")
    return Pixelate(blocks=blocks)


def overlap(others: Float[Array | np.ndarray, "n *shape"]) -> RandomOverlap:
    """Every sample turns into another one: x_1 is α_1 y + σ_1 n with y drawn from these.

    Args:
      others: n samples; they are part of the process, so let them be a few thousand at most.

    Raises:
      ValueError: for no samples.
    """
    if not isinstance(others, jax.Array):
        others = np.asarray(others, float)
    if others.ndim < 1 or not len(others):
        raise ValueError(f"others has shape {others.shape}; give it (n, *shape), n samples from 1 on")
    return RandomOverlap(others=others)


def _one_over(share: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
    """1/share, inf where nothing is left."""
    return np.divide(1, share, out=np.full_like(share, math.inf), where=share > 0)


def _check_image(x: Array, what: str) -> None:
    if x.ndim < 2:
        raise ValueError(f"{what} of a sample of shape {x.shape}; it takes images, (height, width, ...)")
