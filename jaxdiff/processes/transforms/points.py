"""Affine transforms of points: samples of shape (..., d), a single point or a set of points.

    Rotation       g_t(x) = R(t θ) x              in the plane, or about an axis in space (Rodrigues' formula)
    Scale          g_t(x) = f^t x                 f a number, or one for each axis
    Shear          g_t(x) = x + t k x_by e_to
    Translation    g_t(x) = x + t τ

All have an inverse at every t, usable unless a scale is below 1e-3. Parameters may be arrays, drawn for each sample by
`Randomized(Rotation, -1.0, 1.0)`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.processes.transforms.base import TwoSided
from jaxdiff.typing import InputError, PyTree, Sample, Time, is_traced, pytree, shown, static

Number = float | Float[Array, "*n"]  # one number; (n,) for n samples, as returned by `jax.vmap`
Numbers = float | Sequence[float] | Float[Array | np.ndarray, "*d"]


@pytree(kw_only=False, eq=False)
class Rotation(TwoSided):
    """Rotation by t·angle in radians, anticlockwise in the plane or right-handed about an axis in space."""

    angle: Number
    axis: Sequence[float] | None = static(default=None)

    def __post_init__(self) -> None:
        check_scalar("angle", self.angle)
        if self.axis is not None and not (len(self.axis) == 3 and any(self.axis)):
            raise InputError(f"axis = {self.axis}; it must be 3 numbers, not all 0")

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        angle = jnp.asarray(t * self.angle, x.dtype)
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        if self.axis is None:
            _check_axes(x, 2, "Rotation", "Rotation(angle, axis=(0, 0, 1)) is for 3")
            return cosine * x + sine * jnp.stack([-x[..., 1], x[..., 0]], axis=-1)
        _check_axes(x, 3, "Rotation about an axis", "leave axis out for 2")
        k = jnp.broadcast_to(jnp.asarray([a / math.hypot(*self.axis) for a in self.axis], x.dtype), x.shape)
        along = (k * x).sum(-1, keepdims=True) * k
        return cosine * x + sine * jnp.cross(k, x) + (1 - cosine) * along


@pytree(kw_only=False, eq=False)
class Scale(TwoSided):
    """Scaling by factor^t, with one factor or one for each axis."""

    factor: Numbers

    def __post_init__(self) -> None:
        check_positive("factor", self.factor)
        object.__setattr__(self, "factor", _array("factor", self.factor))

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        factor = jnp.asarray(self.factor, x.dtype) ** jnp.asarray(t, x.dtype)
        if factor.ndim:
            _check_axes(x, len(factor), "Scale", "use one factor, or one for each axis")
        return x * jnp.broadcast_to(factor, x.shape)

    @property
    def invertible(self) -> bool:
        return is_traced(self.factor) or bool(np.min(self.factor) >= 1e-3)


@pytree(kw_only=False, eq=False)
class Shear(TwoSided):
    """Addition of t·amount times axis `by` to axis `to`."""

    amount: Number
    to: int = static(default=0)
    by: int = static(default=1)

    def __post_init__(self) -> None:
        check_scalar("amount", self.amount)
        to, by = self.to, self.by
        if to == by or min(to, by) < 0:
            raise InputError(
                f"to = {to}, by = {by}; they must be two different axes >= 0; Scale stretches a single one"
            )

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        to, by = self.to, self.by
        if x.ndim < 1 or x.shape[-1] <= max(to, by):
            raise InputError(
                f"to = {to}, by = {by}, but a sample has shape {x.shape}; both must be less than its last axis"
            )
        return x.at[..., to].add(jnp.asarray(t * self.amount, x.dtype) * x[..., by])


@pytree(kw_only=False, eq=False)
class Translation(TwoSided):
    """Translation by t times the vector `by`, with one number per axis. Data of mean 0 give x_1 the mean α_1 `by`."""

    by: Numbers

    def __post_init__(self) -> None:
        by = _array("by", self.by)
        object.__setattr__(self, "by", by if by.ndim else by[None])

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        by = jnp.asarray(self.by, x.dtype)
        _check_axes(x, len(by), "Translation", "give one number for each axis")
        return x + jnp.broadcast_to(jnp.asarray(t, x.dtype) * by, x.shape)


def check_positive(name: str, numbers: PyTree) -> None:
    """Raise an InputError unless the numbers are positive, also in float32, or traced."""
    if not (is_traced(numbers) or np.all(np.asarray(numbers, float) > 1e-18)):
        raise InputError(f"{name} = {shown(numbers)}; must satisfy {name} > 0, and not below 1e-18")


def check_scalar(name: str, value: Number) -> None:
    """Raise an InputError if the value is a list of numbers; an array may hold those of n samples."""
    if isinstance(value, Sequence):
        raise InputError(f"{name} = {shown(value)}; it must be one number")


def _array(name: str, numbers: Numbers) -> Array | np.ndarray:
    """NumPy unless on a device already: configs are made before devices are chosen."""
    if isinstance(numbers, jax.Array):
        return numbers
    if np.ndim(numbers) > 1 or not np.size(numbers):
        raise InputError(f"{name} = {shown(numbers)}; it must be one number, or one for each axis")
    return np.asarray(numbers, float)


def _check_axes(x: Sample, d: int, what: str, hint: str) -> None:
    if x.ndim < 1 or x.shape[-1] != d:
        raise InputError(f"{what} of points with {d} coordinates, but a sample has shape {x.shape}; {hint}")
