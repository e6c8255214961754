"""Denoisers for samples of which a part is known.

Let the mask m be 1 where x_0 is known, 0 where it is not, and between them at a soft edge. The denoiser predicts

    x̃_0 = m x_0 + (1 − m) x̂_0,        ñ = (x_t − α x̃_0)/σ

With an ancestral sampler the known part of x_s is then a draw from q(x_s|x_t, x_0), as if it were noised anew at every
step; with any sampler it ends at x_0. The rest sees the known part only through the noise of x_t, and so fits it
loosely. `jaxdiff.samplers.RePaint` corrects this.

Source: Lugmayr et al. 2022, "RePaint: Inpainting using Denoising Diffusion Probabilistic Models" (algorithm 1, which
puts the noised known part into x_s, with the same distribution).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from jaxdiff.processes import Denoiser, Wrapper
from jaxdiff.typing import InputError, Prediction, PyTree, Sample, Shape, Time, is_traced, pytree

AnyArray = Array | np.ndarray
AnyMask = Bool[AnyArray, "..."] | Float[AnyArray, "..."] | Integer[AnyArray, "..."]  # of values in [0, 1]


@pytree(kw_only=False, eq=False, checks=False)  # x0 may hold anything where it is not known
class Known:
    """The known part of one sample: the condition of a denoiser made by `inpainting`.

    Raises:
      InputError: if the mask is not numeric, has values outside [0, 1], or is above 0 where x0 is not finite.
    """

    x0: Float[AnyArray, "..."]  # the values where the mask is 0 are ignored
    mask: AnyMask  # how far x0 is known, of the same shape: booleans, or numbers in [0, 1]
    cond: PyTree = None  # the condition of the inner denoiser

    def __post_init__(self) -> None:
        check_mask(self.mask)
        if is_traced((self.x0, self.mask)) or self.x0.shape != self.mask.shape:
            return
        if not np.isfinite(np.asarray(self.x0)[np.asarray(self.mask) > 0]).all():
            raise InputError("x0 has values that are not finite where the mask is above 0; set the mask to 0 there")


@pytree(eq=False)
class _Inpainting(Wrapper):
    inner: Denoiser

    def __call__(self, x_t: Sample, t: Time, cond: PyTree = None, /) -> Prediction:
        if not isinstance(cond, Known):
            raise InputError(f"cond = {cond!r}; inpainting takes a jaxdiff.inpainting.Known for each sample")
        if cond.x0.shape != x_t.shape or cond.mask.shape != x_t.shape:
            raise InputError(
                f"known.x0 has shape {cond.x0.shape} and known.mask {cond.mask.shape}; a sample here has "
                f"{x_t.shape}: give both that shape (a leading axis for samples is mapped over)"
            )
        prediction = self.inner(x_t, t, cond.cond)
        x0 = _blend(jnp.asarray(cond.mask), cond.x0, prediction.x0)
        return prediction._replace(x0=x0, noise=self.process.infer_noise(x0, x_t, t))


def inpainting(denoiser: Denoiser) -> _Inpainting:
    """Return a denoiser whose condition is a `Known`; it raises an InputError if that lacks the shape of a sample."""
    return _Inpainting(inner=denoiser)


def check_mask(mask: AnyMask) -> None:
    """Raise an InputError unless a mask holds booleans, or numbers in [0, 1]. Traced values aren't checked."""
    fix = "give booleans, or numbers from 0, where x0 is unknown, to 1, where x0 is kept"
    if not any(jnp.issubdtype(mask.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)):
        raise InputError(f"mask has the dtype {mask.dtype}; {fix}")
    if not is_traced(mask):
        values = np.asarray(mask)
        if not ((values >= 0) & (values <= 1)).all():
            raise InputError(f"mask has values in [{values.min()}, {values.max()}]; {fix}")


def fit_mask(mask: AnyMask, shape: Shape) -> Bool[np.ndarray, "..."] | Float[np.ndarray, "..."]:
    """Return a checked mask as booleans or float32 of the shape (n, ..., channels).

    The first axis of the mask, the last or both may be missing. Raises an InputError if the mask does not fit.
    """
    mask = np.asarray(mask)
    check_mask(mask)
    if mask.dtype != bool:
        mask = mask.astype(np.float32)
    fits = all(size in (1, whole) for size, whole in zip(mask.shape[::-1], shape[::-1], strict=False))
    if mask.ndim == len(shape) - 2 or (mask.ndim == len(shape) - 1 and not fits):
        mask = mask[..., None]  # the last axis is left out
    try:
        return np.broadcast_to(mask, shape)
    except ValueError:
        raise InputError(f"mask has shape {mask.shape}; samples have {shape}: give one value per position") from None


def _blend(mask: Array, x0: AnyArray, predicted: Sample) -> Sample:
    """m x_0 + (1 − m) x̂_0, in which neither side counts, or passes a NaN to a gradient, where its weight is 0."""
    if mask.dtype == bool:
        return jnp.where(mask, x0, predicted)
    known, unknown = mask > 0, mask < 1
    mask = mask.astype(predicted.dtype)
    return mask * jnp.where(known, x0, 0) + (1 - mask) * jnp.where(unknown, predicted, 0)
