"""Transforms that lose content; samples are images of shape (height, width, ...) unless noted.

    Warp           rotated by t θ and magnified by f^t, bilinear between pixels     no inverse: pixels are averaged
    ColorMatrix    channels times (1 − t) I + t M                                   inverse if regular at every t
    Blur           each frequency k times exp(−(t w |k|)²/2), periodic              usable inverse if w ≤ 0.84 pixels
    Mask           each pixel is 0 from its own random time on                      no inverse
    Pixelate       means of blocks that grow with t, linear between their sizes     no inverse from the first size on
    Overlap        (1 − t) x + t y with a random y                                  no inverse at t = 1

The inverse of `Blur` enlarges the highest frequency, |k|² = 2π², by exp((t w π)²), which `Transform.invertible` bounds.

Sources: Bansal et al. 2022, "Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise" (all but `Warp` and
`ColorMatrix`); Rissanen, Heinonen & Solin 2023, "Generative Modelling with Inverse Heat Dissipation" (blur).
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

from jaxdiff.processes.transforms.base import RandomTransform, Transform, TwoSided
from jaxdiff.processes.transforms.points import Number, check_positive, check_scalar
from jaxdiff.typing import InputError, RandomKey, Sample, Shape, Time, pytree, shown, static


@pytree(kw_only=False, eq=False)
class Warp(Transform):
    """Rotation by t·angle (radians, anticlockwise) and magnification by zoom^t about the center; edges are extended."""

    angle: Number = 0.0
    zoom: Number = 1.0

    def __post_init__(self) -> None:
        check_scalar("angle", self.angle)
        check_scalar("zoom", self.zoom)
        check_positive("zoom", self.zoom)

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        _check_image(x, "Warp")
        height, width = x.shape[:2]
        angle = jnp.asarray(t * self.angle, x.dtype)
        shrink = jnp.asarray(self.zoom, x.dtype) ** jnp.asarray(-t, x.dtype)
        rows, columns = jnp.meshgrid(jnp.arange(height, dtype=float), jnp.arange(width, dtype=float), indexing="ij")
        middle, center = (height - 1) / 2, (width - 1) / 2
        down, right = shrink * (rows - middle), shrink * (columns - center)
        row = middle + jnp.cos(angle) * down + jnp.sin(angle) * right  # where each pixel comes from: rotated back
        column = center - jnp.sin(angle) * down + jnp.cos(angle) * right
        bilinear = functools.partial(map_coordinates, coordinates=(row, column), order=1, mode="nearest")
        return jax.vmap(bilinear, in_axes=-1, out_axes=-1)(x.reshape(height, width, -1)).reshape(x.shape)


@pytree(kw_only=False)
class ColorMatrix(Transform):
    """The last axis of a sample times (1 − t) I + t·matrix: ((⅓, ⅓, ⅓),) * 3 removes the colors."""

    matrix: Sequence[Sequence[float]] = static()

    def __post_init__(self) -> None:
        if not self.matrix or any(len(row) != len(self.matrix) for row in self.matrix):
            raise InputError(f"matrix = {shown(self.matrix)}; it must be square, with a row for each color")

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        return x @ self._at(x, t).T

    def inverse(self, y: Sample, t: Time, /) -> Sample:
        return y @ jnp.linalg.inv(self._at(y, t)).T

    @property
    def invertible(self) -> bool:
        return _smallest_singular_value(self.matrix) >= 1e-3

    def _at(self, x: Sample, t: Time) -> Float[Array, "c c"]:
        c = len(self.matrix)
        if x.ndim < 1 or x.shape[-1] != c:
            raise InputError(f"matrix of {c} colors, but a sample has shape {x.shape}; the last axis must be {c}")
        t = jnp.asarray(t, x.dtype)
        return (1 - t) * jnp.eye(c, dtype=x.dtype) + t * jnp.asarray(self.matrix, x.dtype)


@functools.cache
def _smallest_singular_value(matrix: Sequence[Sequence[float]]) -> float:
    """The smallest one of (1 − t) I + t M over t that are 1e-4 apart; 0 if it is 0 at any t."""
    M, t = np.array(matrix), np.linspace(0, 1, 10_001)[:, None, None]
    eigenvalues = np.linalg.eigvals(M)
    # An eigenvalue μ < 0 makes (1 − t) + t μ = 0 at t = 1/(1 − μ), which may lie between two of these t.
    if np.any((np.abs(eigenvalues.imag) < 1e-9) & (eigenvalues.real < 0)):
        return 0.0
    return float(np.linalg.svd((1 - t) * np.eye(len(M)) + t * M, compute_uv=False).min())


@pytree(kw_only=False)
class Blur(TwoSided):
    """Gaussian blur of standard deviation t·width, in pixels; a few times the image's side leaves only its mean."""

    width: float = static()

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise InputError(f"width = {self.width}; must satisfy width > 0, in pixels")

    @property
    def invertible(self) -> bool:
        return (self.width * math.pi) ** 2 <= math.log(1e3)

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        _check_image(x, "Blur")
        t = jnp.asarray(t, x.dtype)
        k = jnp.meshgrid(*(2 * math.pi * jnp.fft.fftfreq(n) for n in x.shape[:2]), indexing="ij")
        squared = (k[0] ** 2 + k[1] ** 2).reshape(*x.shape[:2], *[1] * (x.ndim - 2)).astype(x.dtype)
        response = jnp.exp(jnp.sign(t) * -0.5 * (t * self.width) ** 2 * squared)
        spectrum = jnp.fft.fft2(x, axes=(0, 1))
        return jnp.fft.ifft2(response.astype(spectrum.dtype) * spectrum, axes=(0, 1)).real.astype(x.dtype)


@pytree(kw_only=False, eq=False)
class Mask(Transform):
    """A mask, drawn by `RandomMask`: each coordinate is 0 from its time `hidden_from` in (0, 1] on."""

    hidden_from: Sample

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        return jnp.where(jnp.asarray(t) < jnp.broadcast_to(self.hidden_from, x.shape), x, 0)


@pytree
class RandomMask(RandomTransform):
    """Pixels vanish one by one, each at a time uniform in (0, 1]: at t a fraction t of them is 0."""

    def sample_params(self, key: RandomKey, shape: Shape) -> Mask:
        return Mask(1 - jax.random.uniform(key, (*shape[:2], *[1] * (len(shape) - 2))))


@pytree(kw_only=False)
class Pixelate(Transform):
    """Means over blocks of these sides in pixels, at equal distances in t."""

    blocks: Sequence[int] = static()

    def __post_init__(self) -> None:
        if not self.blocks or any(b <= a for a, b in zip((1, *self.blocks), self.blocks, strict=False)):
            raise InputError(
                f"blocks = {shown(self.blocks)}; it must be rising sizes above 1, as in Pixelate((2, 4, 8))"
            )

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        position = jnp.asarray(t, x.dtype) * len(self.blocks)
        step = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, len(self.blocks) - 1)
        pairs = zip((1, *self.blocks), self.blocks, strict=False)
        ends = [lambda x, a=a, b=b: (self._means(x, a), self._means(x, b)) for a, b in pairs]
        finer, coarser = jax.lax.switch(step, ends, x)
        return finer + (position - step.astype(x.dtype)) * (coarser - finer)

    def _means(self, x: Sample, block: int) -> Sample:
        _check_image(x, "Pixelate")
        height, width = x.shape[:2]
        if height % block or width % block:
            raise InputError(f"blocks = {self.blocks}, but a sample has shape {x.shape}; use divisors of both sides")
        tiles = x.reshape(height // block, block, width // block, block, -1)
        return jnp.broadcast_to(tiles.mean((1, 3), keepdims=True), tiles.shape).reshape(x.shape)


@pytree(kw_only=False, eq=False)
class Overlap(Transform):
    """A fade into another sample, drawn by `RandomOverlap`."""

    other: Sample

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        t = jnp.asarray(t, x.dtype)
        return (1 - t) * x + t * self.other.astype(x.dtype)


@pytree(kw_only=False, eq=False)
class RandomOverlap(RandomTransform):
    """A fade into a random one of `others`, n samples. They are part of the process: use a few thousand at most."""

    others: Float[Array | np.ndarray, "n *shape"]

    def __post_init__(self) -> None:
        others = self.others if isinstance(self.others, jax.Array) else np.asarray(self.others, float)
        if others.ndim < 1 or not len(others):
            raise InputError(f"others has shape {others.shape}; it must be (n, *shape) with n >= 1 samples")
        object.__setattr__(self, "others", others)

    def sample_params(self, key: RandomKey, shape: Shape) -> Overlap:
        if self.others.shape[1:] != shape:
            raise InputError(f"others has shape {self.others.shape}, but a sample {shape}; it must be (n, *{shape})")
        return Overlap(jnp.asarray(self.others)[jax.random.randint(key, (), 0, len(self.others))])


def _check_image(x: Sample, what: str) -> None:
    if x.ndim < 2:
        raise InputError(f"{what} of a sample of shape {x.shape}; it must be an image, (height, width, ...)")
