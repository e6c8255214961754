"""Bits/dim of images under a model: the variational bound, term by term, and the ODE likelihood.

Images of n levels, −1 + 2k/(n − 1), are dequantized with noise that is uniform over the width w = 2/(n − 1) of a level:

    bits/dim = −log₂ p(x)/d − log₂ w        its mean over the noise is at least −log₂ P(k)/d

where −log₂ w, 7.0 for n = 256, is the offset between a density on [−1, 1] and a mass on levels. A variational bound in
nats (`jaxdiff.likelihood.elbo`) is divided by d log 2.

All figures are means over images. Their standard error is the standard deviation over images divided by √n, NaN for
one image; it includes the noise of the estimates, which is independent for each image.

Source: Theis, van den Oord & Bethge 2016, "A Note on the Evaluation of Generative Models" (dequantization).
"""

import dataclasses
import itertools
import math
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Integer

from jaxdiff import xla
from jaxdiff.likelihood.elbo import ContinuousElbo, Elbo, Nats, continuous_elbo_each, elbo_each
from jaxdiff.likelihood.ode import log_likelihood_each
from jaxdiff.processes import Denoiser, require_gaussian
from jaxdiff.samplers.batching import in_batches
from jaxdiff.samplers.loop import sample_keys
from jaxdiff.samplers.probability_flow import Outcome, Solver
from jaxdiff.typing import HostSamples, RandomKey, Samples, check_key, check_whole

_DRAWS = 64  # times per image for the continuous bound
_GROUPS = (0.0, 0.1, 0.25, 0.5, 1.0)  # table rows, in t: finer where the terms are large


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitsPerDim:
    """Two estimates of the bits/dim of n images of d numbers, as `measure` returns them."""

    d: int
    elbo: Elbo | ContinuousElbo | None
    """The terms of the bound in nats: continuous if the schedule is, None if such a schedule has no noise at t = 0."""
    ode: Float[np.ndarray, " n"]  # bits/dim

    def summary(self) -> dict[str, tuple[float, float]]:
        """Return {"elbo": (mean, standard error), "ode": (mean, standard error)} in bits/dim, "elbo" if it exists."""
        values = {} if self.elbo is None else {"elbo": self._rows()["ELBO"] / (self.d * math.log(2))}
        return {name: _mean_and_error(value) for name, value in (values | {"ode": self.ode}).items()}

    def table(self) -> str:
        """Return a table as a text, one row per term: its mean and standard error in nats and in bits/dim."""
        lines, bit = [f"{'':24}{'nats':>10}{'±':>9}{'bits/dim':>12}{'±':>9}"], self.d * math.log(2)
        for name, nats in (self._rows() | {"ODE": self.ode * bit}).items():
            mean, error = _mean_and_error(nats)
            lines.append(f"{name:24}{mean:10.3f}{error:9.3f}{mean / bit:12.4f}{error / bit:9.4f}")
        return "\n".join(lines)

    def _rows(self) -> dict[str, Nats]:
        """Return the rows of the bound in the table, in nats, summed in float64."""
        if self.elbo is None:
            return {}
        bound = type(self.elbo)(*(np.asarray(term, np.float64) for term in self.elbo))
        if isinstance(bound, ContinuousElbo):
            return bound._asdict() | {"ELBO": bound.total()}
        num_timesteps = bound.steps.shape[1] + 1
        times = np.arange(2, num_timesteps + 1) / num_timesteps  # t = k/T of L_1 … L_{T−1}
        rows = {"L_T": bound.prior}
        for low, high in reversed(list(itertools.pairwise(_GROUPS))):
            rows[f"L_t-1, {low:g} < t ≤ {high:g}"] = bound.steps[:, (times > low) & (times <= high)].sum(1)
        return rows | {"L_0": bound.decoder, "ELBO": bound.total()}


def measure(
    key: RandomKey,
    denoiser: Denoiser,
    x0: HostSamples,
    *,
    levels: int,
    probes: int = 4,
    batch: int = 64,
    progress: bool = False,
) -> BitsPerDim:
    """Return the variational bound and the ODE likelihood of images with values −1 + 2k/(levels − 1).

    Args:
      key: draws noise, dequantization and probes; fold_in(key, i) for image i, whatever the batch size.
      denoiser: the model, under a Gaussian process.
      probes: the number of Hutchinson probes for the ODE's divergence.
      batch: the number of images at a time.

    Raises:
      InputError: if the process is not Gaussian, there are no images, probes or batch < 1, or the ODE solver gives up.
    """
    schedule = require_gaussian(denoiser.process, what="bits/dim", instead="").schedule
    check_key(key)
    check_whole("probes", probes)
    draws = _DRAWS if schedule.num_timesteps is None and math.isfinite(schedule.log_snr(0.0)) else 0
    static = {"levels": levels, "probes": probes, "draws": draws}
    evaluate = partial(xla.outermost(_measure, *static), key, denoiser, **static)
    bound, log_density, _ = in_batches(
        evaluate, len(x0), rows=x0, check=lambda found: Solver().check(found[2]), batch=batch, progress=progress
    )
    d = math.prod(x0.shape[1:])
    return BitsPerDim(d=d, elbo=bound, ode=np.asarray(from_log_density(log_density, d, levels)))


def _measure(
    key: RandomKey, denoiser: Denoiser, indices: Integer[Array, " n"], x0: Samples, levels: int, probes: int, draws: int
) -> tuple[Elbo | ContinuousElbo | None, Float[Array, " n"], Outcome]:
    key_bound, key_noise, key_probes = (sample_keys(key, indices) for key in jax.random.split(key, 3))
    bound: Elbo | ContinuousElbo | None = None
    if denoiser.process.schedule.num_timesteps is not None:
        bound = elbo_each(key_bound, denoiser, x0, None, levels=levels)
    elif draws:
        bound = continuous_elbo_each(key_bound, denoiser, x0, None, levels=levels, draws=draws)
    x = jax.vmap(partial(dequantize, levels=levels))(key_noise, x0)
    found, outcome = log_likelihood_each(
        key_probes, denoiser, x, None, probes=probes, probe="rademacher", solver=Solver()
    )
    return bound, found.log_density, outcome


def dequantize(key: RandomKey, x0: Samples, levels: int) -> Samples:
    """Spread values −1 + 2k/(levels − 1) uniformly over the width 2/(levels − 1) of a level."""
    return x0 + (2 * jax.random.uniform(key, x0.shape) - 1) / (levels - 1)


def from_log_density(log_density: Nats, d: int, levels: int) -> Float[Array | np.ndarray, " n"]:
    """Return −log₂ p(x)/d − log₂ w of dequantized samples of d numbers, from log p(x) in nats."""
    return -log_density / (d * math.log(2)) - math.log2(2 / (levels - 1))


def _mean_and_error(values: Nats) -> tuple[float, float]:
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)
