"""RePaint: repeat every step, so that an inpainted part fits the known one.

After each step from t to s the sample is noised back to t, x_t ~ q(x_t|x_s), and the step is made again. It is for the
denoisers of `jaxdiff.inpainting`: in a single step the unknown part fits the known one only loosely.

Source: Lugmayr et al. 2022, "RePaint: Inpainting using Denoising Diffusion Probabilistic Models" (algorithm 1).
"""

from typing import Annotated

import jax
import jax.numpy as jnp

from jaxdiff.processes import Denoiser, require_gaussian
from jaxdiff.samplers.ancestral import posterior_variances
from jaxdiff.samplers.base import Sampler, Stateless, static_dataclass
from jaxdiff.typing import AtMost, InputError, RandomKey, Sample, Time


@static_dataclass
class RePaint(Stateless):
    """Make every step several times; between them the sample is noised back (Lugmayr et al. 2022, jump length 1).

    The sampler must keep no state, such as `DDPM`, `DDIM` or `Heun`; `times`, r in the source, multiplies its calls.
    """

    sampler: Sampler
    times: Annotated[int, AtMost(1000)] = 10

    def __post_init__(self) -> None:
        if self.times < 1:
            raise InputError(f"times = {self.times}; it must be 1 or more")

    def init(self, x: Sample) -> None:
        """Return None, or raise an `InputError` if the sampler keeps a state, which going back makes useless."""
        if self.sampler.init(x) is not None:
            raise InputError(
                f"sampler = {self.sampler!r} remembers earlier steps; resample with one that doesn't, such as ddpm"
            )

    def advance(self, key: RandomKey, x_t: Sample, *, t: Time, s: Time, denoiser: Denoiser) -> Sample:
        process = require_gaussian(denoiser.process, what="resampling", instead="set resample to 1")
        schedule = process.schedule
        transition, _ = posterior_variances(schedule, t, s)

        def step(key: RandomKey, x: Sample) -> Sample:
            return self.sampler.step(key, x, None, t=t, s=s, denoiser=denoiser)[0]

        def again(x_s: Sample, key: RandomKey) -> tuple[Sample, None]:
            key_back, key_step = jax.random.split(key)
            z = process.sample_noise(key_back, x_s.shape)
            back = schedule.alpha(t) / schedule.alpha(s) * x_s + jnp.sqrt(transition) * z
            return step(key_step, back), None

        key_first, key_more = jax.random.split(key)
        x_s = step(key_first, x_t)
        if self.times == 1:
            return x_s
        more = jax.random.split(key_more, self.times - 1)
        # The last step reaches the data: nothing is left to fit.
        return jax.lax.cond(s > 0, lambda: jax.lax.scan(again, x_s, more)[0], lambda: x_s)
