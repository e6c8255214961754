"""Affine transforms of points: samples of shape (..., d), a single point or a set of points.

    Rotation       g_t(x) = R(t θ) x              in the plane, or about an axis in space (Rodrigues' formula)
    Scale          g_t(x) = f^t x                 f a number, or one for each axis
    Shear          g_t(x) = x + t k x_by e_to
    Translation    g_t(x) = x + t τ

All have an inverse at every t, usable unless a scale is below 1e-3. Parameters may be arrays that belong to one sample:
`Randomized(Rotation, -1.0, 1.0)`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.processes.transforms.base import Transform
from jaxdiff.typing import InputError, PyTree, Sample, Time, is_traced, pytree, static

Number = float | Float[Array, "*n"]  # one number; (n,) for n samples, as returned by `jax.vmap`
Numbers = float | Sequence[float] | Float[Array | np.ndarray, "*d"]


@pytree(kw_only=False, eq=False)
class Rotation(Transform):
    """Rotation by t·angle.

    Args:
      angle: in radians, anticlockwise in the plane and right-handed about the axis.
      axis: direction of the axis for points in space, of any length; None for points in the plane.
    """

    angle: Number
    axis: Sequence[float] | None = static(default=None)

    def __post_init__(self) -> None:
        if self.axis is None:
            return
        axis = tuple(map(float, self.axis))
        if not (len(axis) == 3 and any(axis)):
            raise InputError(f"axis = {axis}; the rule is 3 numbers, not all 0")
        object.__setattr__(self, "axis", axis)

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        return self._rotate(x, t * self.angle)

    def inverse(self, y: Sample, t: Time, /) -> Sample:
        return self._rotate(y, -t * self.angle)

    def _rotate(self, x: Sample, angle: Number) -> Sample:
        angle = jnp.asarray(angle, x.dtype)
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        if self.axis is None:
            _check_axes(x, 2, "Rotation", "Rotation(angle, axis=(0, 0, 1)) is for 3")
            return cosine * x + sine * jnp.stack([-x[..., 1], x[..., 0]], axis=-1)
        _check_axes(x, 3, "Rotation about an axis", "leave axis out for 2")
        k = jnp.broadcast_to(jnp.asarray([a / math.hypot(*self.axis) for a in self.axis], x.dtype), x.shape)
        along = (k * x).sum(-1, keepdims=True) * k
        return cosine * x + sine * jnp.cross(k, x) + (1 - cosine) * along


@pytree(kw_only=False, eq=False)
class Scale(Transform):
    """Scaling by factor^t; the factor is a number, or one for each axis."""

    factor: Numbers

    def __post_init__(self) -> None:
        check_positive("factor", self.factor)
        object.__setattr__(self, "factor", _array(self.factor))

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        return x * self._power(x, t)

    def inverse(self, y: Sample, t: Time, /) -> Sample:
        return y * self._power(y, -t)

    @property
    def invertible(self) -> bool:
        return is_traced(self.factor) or bool(np.min(self.factor) >= 1e-3)

    def _power(self, x: Sample, t: Time) -> Sample:
        factor = jnp.asarray(self.factor, x.dtype) ** jnp.asarray(t, x.dtype)
        if factor.ndim:
            _check_axes(x, len(factor), "Scale", "use one factor, or one for each axis")
        return jnp.broadcast_to(factor, x.shape)


@pytree(kw_only=False, eq=False)
class Shear(Transform):
    """Adds t·amount times axis `by` to axis `to`."""

    amount: Number
    to: int = static(default=0)
    by: int = static(default=1)

    def __post_init__(self) -> None:
        if self.to == self.by or min(self.to, self.by) < 0:
            raise InputError(
                f"to = {self.to}, by = {self.by}; the rule is two different axes >= 0; Scale stretches a single one"
            )

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        return self._shear(x, t * self.amount)

    def inverse(self, y: Sample, t: Time, /) -> Sample:
        return self._shear(y, -t * self.amount)

    def _shear(self, x: Sample, amount: Number) -> Sample:
        if x.ndim < 1 or x.shape[-1] <= max(self.to, self.by):
            raise InputError(
                f"to = {self.to}, by = {self.by}, but a sample has shape {x.shape}; the rule is both < its last axis"
            )
        return x.at[..., self.to].add(jnp.asarray(amount, x.dtype) * x[..., self.by])


@pytree(kw_only=False, eq=False)
class Translation(Transform):
    """Translation by t·by, one number for each axis: x_1 is centered on α_1·by if the data are on 0."""

    by: Numbers

    def __post_init__(self) -> None:
        by = _array(self.by)
        object.__setattr__(self, "by", by if by.ndim else by[None])

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        return x + self._offset(x, t)

    def inverse(self, y: Sample, t: Time, /) -> Sample:
        return y - self._offset(y, t)

    def _offset(self, x: Sample, t: Time) -> Sample:
        by = jnp.asarray(self.by, x.dtype)
        _check_axes(x, len(by), "Translation", "give one number for each axis")
        return jnp.broadcast_to(jnp.asarray(t, x.dtype) * by, x.shape)


def check_positive(name: str, numbers: PyTree) -> None:
    """Raise an InputError unless the numbers are positive or traced."""
    if not (is_traced(numbers) or np.all(np.asarray(numbers) > 0)):
        raise InputError(f"{name} = {numbers}; the rule is {name} > 0")


def _array(numbers: Numbers) -> Array | np.ndarray:
    """In NumPy unless on a device already: a config is made before devices are chosen."""
    return numbers if isinstance(numbers, jax.Array) else np.asarray(numbers, float)


def _check_axes(x: Sample, d: int, what: str, hint: str) -> None:
    if x.ndim < 1 or x.shape[-1] != d:
        raise InputError(f"{what} of points with {d} coordinates, but a sample has shape {x.shape}; {hint}")
