"""Transforms of images, (height, width, ...), that only move pixels; exactly invertible at every t.

    Shift           by round(t k) pixels, wrapping around
    Flip            from t = ½ on
    QuarterTurns    round(t k) turns by 90°, square images

They are orthogonal: with white normal noise x_t = g_t(y_t) with a Gaussian y_t. Exact denoisers agree in these
coordinates, and so does the sampler `Renoise`; a step that keeps n̂ agrees only if g_t = g_s.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdiff.processes.transforms.base import TwoSided
from jaxdiff.typing import InputError, Sample, Time, pytree, static


@pytree(kw_only=False)
class Shift(TwoSided):
    """Circular shift by t times `pixels`, rounded. `pixels` has one number for each leading axis; other axes stay."""

    pixels: int | Sequence[int] = static()

    def __post_init__(self) -> None:
        pixels = (self.pixels,) if isinstance(self.pixels, int) else self.pixels
        if not pixels:
            raise InputError("pixels = (); give one number, or one for each of the first axes")
        object.__setattr__(self, "pixels", pixels)

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        p: tuple[int, ...] = self.pixels  # type: ignore[assignment]
        if x.ndim < len(p):
            raise InputError(f"pixels = {p}, but a sample has shape {x.shape}; give at most one number per axis")
        for axis, k in enumerate(p):
            x = jnp.roll(x, _rounded(t, k), axis)
        return x


@pytree(kw_only=False)
class Flip(TwoSided):
    """Reflection from t = ½ on; axis 1 of an image swaps left and right."""

    axis: int = static(default=1)

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        if not -x.ndim <= self.axis < x.ndim:
            raise InputError(f"axis = {self.axis}, but a sample has shape {x.shape}; give one of its axes")
        return jnp.where(jnp.abs(t) >= 0.5, jnp.flip(x, self.axis), x)


@pytree(kw_only=False)
class QuarterTurns(TwoSided):
    """Turns of square images by 90° anticlockwise."""

    turns: int = static(default=1)

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        if x.ndim < 2 or x.shape[0] != x.shape[1]:
            raise InputError(f"QuarterTurns of a sample of shape {x.shape}; must satisfy height = width")
        turns = _rounded(t, self.turns) % 4
        return jax.lax.switch(turns, [lambda x, k=k: jnp.rot90(x, k) for k in range(4)], x)


def _rounded(t: Time, k: int) -> Int[Array, ""]:
    """Return t·k rounded to an integer; −t gives the opposite."""
    sign = jnp.sign(t)
    return (sign * jnp.floor(sign * (t * k) + 0.5)).astype(jnp.int32)
