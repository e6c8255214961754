"""Affine transforms of points: samples of shape (..., d), a single point or a set of them.

    rotation       g_t(x) = R(t θ) x              in the plane, or about an axis in space (Rodrigues' formula)
    scale          g_t(x) = f^t x                 f one number, or one for each axis
    shear          g_t(x) = x + t k x_from e_to
    translation    g_t(x) = x + t τ

All have an inverse at every t, though that of a scale of 1e-4 is of no use. Numbers may be arrays, and belong to one
sample: `varied(rotation, -1.0, 1.0)`.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.perturbations.base import Transform
from jaxdiff.typing import Time

Number = float | Float[Array, "*n"]  # one; of many samples, where a vmap returns them
Numbers = float | Sequence[float] | Float[Array | np.ndarray, "*d"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rotation(Transform):
    """Make one with `rotation`."""

    angle: Number
    axis: tuple[float, float, float] | None = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return self._turned(x, t * self.angle)

    def inverse(self, y: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return self._turned(y, -t * self.angle)

    def _turned(self, x: Float[Array, "*shape"], angle: Number) -> Float[Array, "*shape"]:
        angle = jnp.asarray(angle, x.dtype)
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        if self.axis is None:
            _check_axes(x, 2, "rotation", "rotation(angle, axis=(0, 0, 1)) is for 3")
            return cosine * x + sine * jnp.stack([-x[..., 1], x[..., 0]], axis=-1)
        _check_axes(x, 3, "rotation about an axis", "leave axis out for 2")
        k = jnp.broadcast_to(jnp.asarray(self.axis, x.dtype), x.shape)
        along = (k * x).sum(-1, keepdims=True) * k
        return cosine * x + sine * jnp.cross(k, x) + (1 - cosine) * along


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scale(Transform):
    """Make one with `scale`."""

    factor: Numbers

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return x * self._spread(x, t)

    def inverse(self, y: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return y * self._spread(y, -t)

    def gain(self, t: Float[np.ndarray, " times"], /) -> Float[np.ndarray, " times"]:
        return np.min(known(self.factor)) ** -t

    def _spread(self, x: Float[Array, "*shape"], t: Time) -> Float[Array, "*shape"]:
        factor = jnp.asarray(self.factor, x.dtype) ** jnp.asarray(t, x.dtype)
        if factor.ndim:
            _check_axes(x, len(factor), "scale", "give one factor, or one for each axis")
        return jnp.broadcast_to(factor, x.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shear(Transform):
    """Make one with `shear`."""

    amount: Number
    to: int = dataclasses.field(metadata={"static": True})
    by: int = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return self._moved(x, t * self.amount)

    def inverse(self, y: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return self._moved(y, -t * self.amount)

    def gain(self, t: Float[np.ndarray, " times"], /) -> Float[np.ndarray, " times"]:
        half = np.abs(t * known(self.amount)) / 2  # the larger singular value of ((1, 2 half), (0, 1))
        return half + np.sqrt(half**2 + 1)

    def _moved(self, x: Float[Array, "*shape"], amount: Number) -> Float[Array, "*shape"]:
        if x.ndim < 1 or x.shape[-1] <= max(self.to, self.by):
            raise ValueError(f"shear of axis {self.to} by {self.by}, but a sample has shape {x.shape}; its last axis")
        return x.at[..., self.to].add(jnp.asarray(amount, x.dtype) * x[..., self.by])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Translation(Transform):
    """Make one with `translation`."""

    by: Float[Array | np.ndarray, "*n d"]  # (d,) of one sample

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return x + self._shift(x, t)

    def inverse(self, y: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return y - self._shift(y, t)

    def _shift(self, x: Float[Array, "*shape"], t: Time) -> Float[Array, "*shape"]:
        _check_axes(x, len(self.by), "translation", "give one number for each axis")
        return jnp.broadcast_to(jnp.asarray(t, x.dtype) * jnp.asarray(self.by, x.dtype), x.shape)


def rotation(angle: Number, *, axis: tuple[float, float, float] | None = None) -> Rotation:
    """A rotation by t·angle.

    Args:
      angle: in radians, anticlockwise in the plane and right-handed about the axis.
      axis: of any length, for points in space; None for points in the plane.

    Raises:
      ValueError: for an axis of length 0; when used, for points of another dimension.
    """
    if axis is None:
        return Rotation(angle=angle, axis=None)
    length = sum(a**2 for a in axis) ** 0.5
    if not (len(axis) == 3 and length > 0):
        raise ValueError(f"axis = {axis}; the rule is 3 numbers that are not all 0")
    return Rotation(angle=angle, axis=(axis[0] / length, axis[1] / length, axis[2] / length))


def scale(factor: Numbers) -> Scale:
    """A stretching by factor^t: one number, or one for each axis.

    Raises:
      ValueError: for a factor that is not above 0: it has no powers.
    """
    check_positive("factor", factor)
    return Scale(factor=_array(factor))


def shear(amount: Number, *, to: int = 0, by: int = 1) -> Shear:
    """Axis `to` is moved by t·amount times axis `by`.

    Raises:
      ValueError: where the two are the same axis, or below 0; when used, for an axis that points don't have.
    """
    if to == by or min(to, by) < 0:
        raise ValueError(f"to = {to}, by = {by}; the rule is two different axes from 0 on; scale stretches one alone")
    return Shear(amount=amount, to=to, by=by)


def translation(by: Numbers) -> Translation:
    """A shift by t·by, one number for each axis: x_1 then lies around α_1·by."""
    by = _array(by)
    return Translation(by=by if by.ndim else by[None])


def _array(numbers: Numbers) -> Array | np.ndarray:
    """Nothing is computed on a device: a config is made before devices are chosen."""
    return numbers if isinstance(numbers, jax.Array) else np.asarray(numbers, float)


def known(numbers: Numbers) -> Float[np.ndarray, "..."]:
    """Parameters as NumPy knows them; 1 while they are not known, under a transformation of JAX."""
    return np.asarray(1.0 if isinstance(numbers, jax.core.Tracer) else numbers, float)


def check_positive(name: str, numbers: Numbers) -> None:
    """Raises a ValueError where a parameter is known, and not above 0."""
    if not np.all(known(numbers) > 0):
        raise ValueError(f"{name} = {numbers}; the rule is {name} > 0")


def _check_axes(x: Array, d: int, what: str, hint: str) -> None:
    if x.ndim < 1 or x.shape[-1] != d:
        raise ValueError(f"{what} of points with {d} coordinates, but a sample has shape {x.shape}; {hint}")
