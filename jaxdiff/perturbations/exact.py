"""Transforms of images that only move pixels: samples of shape (height, width, ...), exactly invertible at every t.

    shift            by round(t k) pixels, what leaves on one side comes in on the other
    flip             from t = ½ on
    quarter_turns    round(t k) of them, of square images

They are orthogonal: with white normal noise x_t is g_t(y_t) of a Gaussian y_t, and exact denoisers say the same in
these coordinates. So is the fresh rule; a jump that keeps n̂ is the same only where g_t is g_s, as n̂ stays.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.perturbations.base import Transform
from jaxdiff.typing import Time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift(Transform):
    """Make one with `shift`."""

    pixels: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return self._rolled(x, t, 1)

    def inverse(self, y: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return self._rolled(y, t, -1)

    def _rolled(self, x: Float[Array, "*shape"], t: Time, sign: int) -> Float[Array, "*shape"]:
        if x.ndim < len(self.pixels):
            raise ValueError(f"shift of {len(self.pixels)} axes, but a sample has shape {x.shape}; give fewer")
        for axis, k in enumerate(self.pixels):
            x = jnp.roll(x, sign * _rounded(t * k), axis)
        return x


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Flip(Transform):
    """Make one with `flip`."""

    axis: int = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return jnp.where(jnp.asarray(t) >= 0.5, jnp.flip(x, self.axis), x)

    def inverse(self, y: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return self(y, t)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class QuarterTurns(Transform):
    """Make one with `quarter_turns`."""

    turns: int = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return self._turned(x, _rounded(t * self.turns))

    def inverse(self, y: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return self._turned(y, -_rounded(t * self.turns))

    def _turned(self, x: Float[Array, "*shape"], turns: Int[Array, ""]) -> Float[Array, "*shape"]:
        if x.ndim < 2 or x.shape[0] != x.shape[1]:
            raise ValueError(f"quarter turns of a sample of shape {x.shape}; the rule is height = width")
        return jax.lax.switch(turns % 4, [lambda x, k=k: jnp.rot90(x, k) for k in range(4)], x)


def shift(pixels: int | Sequence[int]) -> Shift:
    """A circular shift by up to so many pixels, one number for each of the first axes of a sample."""
    return Shift(pixels=tuple(pixels) if isinstance(pixels, Sequence) else (pixels,))


def flip(axis: int = 1) -> Flip:
    """A reflection, from t = ½ on; axis 1 of an image exchanges left and right."""
    return Flip(axis=axis)


def quarter_turns(turns: int = 1) -> QuarterTurns:
    """Turns by 90° anticlockwise, of square images."""
    return QuarterTurns(turns=turns)


def _rounded(number: Time) -> Int[Array, ""]:
    return jnp.floor(jnp.asarray(number) + 0.5).astype(jnp.int32)
