"""Transforms of images that only move pixels: samples of shape (height, width, ...), exactly invertible at every t.

    Shift           by round(t k) pixels, wrapping around
    Flip            from t = ½ on
    QuarterTurns    round(t k) of them, square images

They are orthogonal: with white normal noise x_t is g_t(y_t) of a Gaussian y_t, and exact denoisers agree in these
coordinates. So does the sampler `Renoise`; a step that keeps n̂ agrees only if g_t = g_s.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdiff.processes.transforms.base import Transform
from jaxdiff.typing import InputError, Sample, Time, pytree, static


@pytree(kw_only=False)
class Shift(Transform):
    """Circular shift by up to `pixels`, one number for each of the first axes of a sample."""

    pixels: int | Sequence[int] = static()

    def __post_init__(self) -> None:
        pixels = (self.pixels,) if isinstance(self.pixels, int) else tuple(self.pixels)
        object.__setattr__(self, "pixels", pixels)

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        return self._roll(x, t, 1)

    def inverse(self, y: Sample, t: Time, /) -> Sample:
        return self._roll(y, t, -1)

    def _roll(self, x: Sample, t: Time, sign: int) -> Sample:
        pixels: tuple[int, ...] = self.pixels  # type: ignore[assignment]
        if x.ndim < len(pixels):
            raise InputError(
                f"pixels = {pixels}, but a sample has shape {x.shape}; the rule is one number an axis, or fewer"
            )
        for axis, k in enumerate(pixels):
            x = jnp.roll(x, sign * _round(t * k), axis)
        return x


@pytree(kw_only=False)
class Flip(Transform):
    """Reflection from t = ½ on; axis 1 of an image swaps left and right."""

    axis: int = static(default=1)

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        return jnp.where(jnp.asarray(t) >= 0.5, jnp.flip(x, self.axis), x)

    def inverse(self, y: Sample, t: Time, /) -> Sample:
        return self(y, t)


@pytree(kw_only=False)
class QuarterTurns(Transform):
    """Turns of square images by 90° anticlockwise."""

    turns: int = static(default=1)

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        return self._turn(x, _round(t * self.turns))

    def inverse(self, y: Sample, t: Time, /) -> Sample:
        return self._turn(y, -_round(t * self.turns))

    def _turn(self, x: Sample, turns: Int[Array, ""]) -> Sample:
        if x.ndim < 2 or x.shape[0] != x.shape[1]:
            raise InputError(f"QuarterTurns of a sample of shape {x.shape}; the rule is height = width")
        return jax.lax.switch(turns % 4, [lambda x, k=k: jnp.rot90(x, k) for k in range(4)], x)


def _round(number: Time) -> Int[Array, ""]:
    return jnp.floor(jnp.asarray(number) + 0.5).astype(jnp.int32)
