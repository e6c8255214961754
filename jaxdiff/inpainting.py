"""Sampling given a part of the sample.

Let m be 1 where x_0 is known and 0 elsewhere. A denoiser that knows says

    x̃_0 = m x_0 + (1 − m) x̂_0,        ñ = (x_t − α x̃_0)/σ

so that under an ancestral sampler the known part of x_s is a draw of q(x_s|x_t, x_0), as if it were noised anew at
every step; under any sampler it ends at x_0. The rest sees the known part only through the noise of x_t, and so fits
it loosely. Resampling mends that: after each jump from t to s the sample is noised back to t, x_t ~ q(x_t|x_s), and
jumps again, several times over.

Source: Lugmayr et al. 2022, "RePaint: Inpainting using Denoising Diffusion Probabilistic Models" (algorithm 1, which
puts the noised known part into x_s; in law that is the same).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxdiff.processes import Process, gaussian, noise_left
from jaxdiff.samplers.jump import posterior_variances
from jaxdiff.samplers.loop import Sampler
from jaxdiff.typing import Denoiser, Prediction, PyTree, Time


class Known(NamedTuple):
    """What is known of one sample: the condition of the denoiser that `inpainting` makes."""

    x0: Float[Array | np.ndarray, "*shape"]
    """The sample, whatever it is where it is not known."""
    mask: Bool[Array | np.ndarray, "*shape"]
    """Where it is known."""
    cond: PyTree = None
    """The condition of the denoiser inside."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Inpainting:
    """Make one with `inpainting`."""

    inner: Denoiser
    process: Process

    def __call__(self, x_t: Float[Array, "*shape"], t: Time, known: PyTree = None, /) -> Prediction:
        if not isinstance(known, Known):
            raise ValueError(f"cond = {known!r}; inpainting takes a jaxdiff.inpainting.Known for each sample")
        if known.x0.shape != x_t.shape or known.mask.shape != x_t.shape:
            raise ValueError(
                f"known.x0 has shape {known.x0.shape} and known.mask {known.mask.shape}; a sample here has "
                f"{x_t.shape}: give both that shape (a leading axis for samples is mapped over)"
            )
        prediction = self.inner(x_t, t, known.cond)
        x0 = jnp.where(known.mask, known.x0, prediction.x0)
        return prediction._replace(x0=x0, noise=noise_left(self.process, x0, x_t, t))


def inpainting(denoiser: Denoiser, process: Process) -> Inpainting:
    """A denoiser that is told a part of the sample: its condition is a `Known`.

    Returns:
      A denoiser. It raises a ValueError where what is known has not the shape of a sample.
    """
    return Inpainting(inner=denoiser, process=process)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Resampled:
    """Make one with `resampled`."""

    inner: Sampler
    times: int

    def init(self, x: Float[Array, "*shape"]) -> None:
        """Nothing is carried: what a multistep sampler remembers is of no use after going back."""
        if self.inner.init(x) is not None:
            raise ValueError(
                f"sampler = {self.inner!r} remembers earlier steps; resample one that doesn't, such as ddpm"
            )

    def step(
        self,
        key: Key[Array, ""],
        x_t: Float[Array, "*shape"],
        state: None,
        *,
        t: Time,
        s: Time,
        denoise: Denoiser,
        process: Process,
    ) -> tuple[Float[Array, "*shape"], None]:
        # It is noised back as a Gaussian process goes on.
        schedule = gaussian(process, what="resampling", instead="set resample to 1").schedule
        transition, _ = posterior_variances(schedule, t, s)

        def jump(key: Key[Array, ""], x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
            return self.inner.step(key, x, None, t=t, s=s, denoise=denoise, process=process)[0]

        def again(x_s: Float[Array, "*shape"], key: Key[Array, ""]) -> tuple[Float[Array, "*shape"], None]:
            key_back, key_jump = jax.random.split(key)
            z = process.noise(key_back, x_s.shape)
            back = schedule.alpha(t) / schedule.alpha(s) * x_s + jnp.sqrt(transition) * z
            return jump(key_jump, back), None

        key_first, key_more = jax.random.split(key)
        x_s = jump(key_first, x_t)
        if self.times == 1:
            return x_s, None
        more = jax.random.split(key_more, self.times - 1)
        # Not from the data, which the last jump reaches: there is nothing left to fit.
        return jax.lax.cond(s > 0, lambda: jax.lax.scan(again, x_s, more)[0], lambda: x_s), None


def resampled(sampler: Sampler, times: int = 10) -> Resampled:
    """Every jump made several times: after each but the last the sample is noised back (Lugmayr et al. 2022).

    Args:
      sampler: what jumps, one without memory: `ddpm`, `ddim`, `heun`, …
      times: how often each jump is made, r in the source with a jump length of 1; that many network calls a step.

    Raises:
      ValueError: for times < 1; when sampling, for a sampler that remembers earlier steps, and a process that is not
        Gaussian.
    """
    if times < 1:
        raise ValueError(f"times = {times}; the rule is 1 or more")
    return Resampled(inner=sampler, times=times)
