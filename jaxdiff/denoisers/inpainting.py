"""Denoisers for samples of which a part is known.

Let m be 1 where x_0 is known and 0 elsewhere. The denoiser predicts

    x̃_0 = m x_0 + (1 − m) x̂_0,        ñ = (x_t − α x̃_0)/σ

With an ancestral sampler the known part of x_s is then a draw from q(x_s|x_t, x_0), as if it were noised anew at every
step; with any sampler it ends at x_0. The rest sees the known part only through the noise of x_t, and so fits it
loosely. `jaxdiff.samplers.RePaint` corrects this.

Source: Lugmayr et al. 2022, "RePaint: Inpainting using Denoising Diffusion Probabilistic Models" (algorithm 1, which
puts the noised known part into x_s, with the same distribution).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdiff.processes import Denoiser, Wrapper
from jaxdiff.typing import InputError, Prediction, PyTree, Sample, Time, pytree


class Known(NamedTuple):
    """The known part of one sample: the condition of a denoiser made by `inpainting`."""

    x0: Float[Array | np.ndarray, "*shape"]  # the values outside the mask are ignored
    mask: Bool[Array | np.ndarray, "*shape"]  # where x0 is known
    cond: PyTree = None  # the condition of the inner denoiser


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
        x0 = jnp.where(cond.mask, cond.x0, prediction.x0)
        return prediction._replace(x0=x0, noise=self.process.infer_noise(x0, x_t, t))


def inpainting(denoiser: Denoiser) -> _Inpainting:
    """Return a denoiser whose condition is a `Known`; it raises an InputError if that lacks the shape of a sample."""
    return _Inpainting(inner=denoiser)
