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
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Integer

from jaxdiff import xla
from jaxdiff.likelihood.elbo import ContinuousElbo, Elbo, continuous_elbo_each, elbo_each
from jaxdiff.likelihood.ode import log_likelihood_each
from jaxdiff.processes import Denoiser, require_gaussian
from jaxdiff.samplers.batching import in_batches
from jaxdiff.samplers.loop import sample_keys
from jaxdiff.samplers.probability_flow import Outcome, Solver
from jaxdiff.typing import HostSamples, InputError, PyTree, RandomKey, Samples

_SOLVER = Solver()
_DRAWS = 64  # times per image for the continuous bound
_GROUPS = (0.0, 0.1, 0.25, 0.5, 1.0)  # table rows, in t: finer where the terms are large


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitsPerDim:
    """Two estimates of the bits/dim of n images of d numbers, as `measure` returns them."""

    d: int
    elbo: Elbo | ContinuousElbo | None
    """The terms of the bound in nats: continuous if the schedule is, None if such a schedule has no noise at t = 0."""
    ode: Float[np.ndarray, " n"]
    """The bits/dim of the ODE likelihood."""

    def summary(self) -> dict[str, tuple[float, float]]:
        """Return {"elbo": (mean, standard error), "ode": (mean, standard error)} in bits/dim, "elbo" if it exists."""
        values = {} if self.elbo is None else {"elbo": _float64(self.elbo).total() / self._nats}
        return {name: _mean_and_error(np.asarray(value)) for name, value in (values | {"ode": self.ode}).items()}

    def table(self) -> str:
        """Return a text with one row per term: its mean and standard error in nats and in bits/dim."""
        rows = {} if self.elbo is None else _rows(_float64(self.elbo))
        lines = [f"{'':24}{'nats':>10}{'±':>9}{'bits/dim':>12}{'±':>9}"]
        for name, nats in (rows | {"ODE": self.ode * self._nats}).items():
            mean, error = _mean_and_error(nats)
            lines.append(f"{name:24}{mean:10.3f}{error:9.3f}{mean / self._nats:12.4f}{error / self._nats:9.4f}")
        return "\n".join(lines)

    @property
    def _nats(self) -> float:
        """The nats per image that make one bit/dim."""
        return self.d * math.log(2)


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
    """Return the variational bound and the ODE likelihood of images.

    Args:
      key: draws noise, dequantization and probes; fold_in(key, i) for image i, whatever the batch size.
      denoiser: the model, under a Gaussian process.
      x0: images with values −1 + 2k/(levels − 1).
      levels: the number of values of a coordinate.
      probes: the number of Hutchinson probes for the ODE's divergence.
      batch: the number of images at a time.
      progress: whether to show a progress bar.

    Raises:
      InputError: if the process is not Gaussian, there are no images, probes or batch < 1, or the ODE solver gives up.
    """
    schedule = require_gaussian(denoiser.process, what="bits/dim", instead="").schedule
    if probes < 1:
        raise InputError(f"probes = {probes}; the rule is 1 or more")
    continuous = schedule.num_timesteps is None and math.isfinite(schedule.log_snr(0.0))
    one_batch = xla.outermost(_measure, "levels", "probes", "continuous")

    def evaluate(indices: Integer[Array, " size"], x0: Float[Array, "size *shape"]) -> PyTree:
        return one_batch(key, indices, denoiser, x0, levels=levels, probes=probes, continuous=continuous)

    def check(found: Any) -> None:
        _SOLVER.check(found[2])

    bound, log_density, _ = in_batches(evaluate, len(x0), rows=x0, check=check, batch=batch, progress=progress)
    d = math.prod(x0.shape[1:])
    return BitsPerDim(d=d, elbo=bound, ode=np.asarray(from_log_density(log_density, d, levels)))


def _measure(
    key: RandomKey,
    indices: Integer[Array, " n"],
    denoiser: Denoiser,
    x0: Samples,
    *,
    levels: int,
    probes: int,
    continuous: bool,
) -> tuple[Elbo | ContinuousElbo | None, Float[Array, " n"], Outcome]:
    key_bound, key_noise, key_probes = (sample_keys(key, indices) for key in jax.random.split(key, 3))
    bound: Elbo | ContinuousElbo | None = None
    if denoiser.process.schedule.num_timesteps is not None:
        bound = elbo_each(key_bound, denoiser, x0, None, levels=levels)
    elif continuous:
        bound = continuous_elbo_each(key_bound, denoiser, x0, None, levels=levels, draws=_DRAWS)
    x = jax.vmap(partial(dequantize, levels=levels))(key_noise, x0)
    found, outcome = log_likelihood_each(
        key_probes, denoiser, x, None, probes=probes, probe="rademacher", solver=_SOLVER
    )
    return bound, found.log_density, outcome


def dequantize(key: RandomKey, x0: Samples, levels: int) -> Samples:
    """Spread values −1 + 2k/(levels − 1) uniformly over the width 2/(levels − 1) of a level."""
    return x0 + (2 * jax.random.uniform(key, x0.shape) - 1) / (levels - 1)


def from_log_density(
    log_density: Float[Array | np.ndarray, "*n"], d: int, levels: int
) -> Float[Array | np.ndarray, "*n"]:
    """Return −log₂ p(x)/d − log₂ w of dequantized samples of d numbers, from log p(x) in nats."""
    return -log_density / (d * math.log(2)) - math.log2(2 / (levels - 1))


def _rows(bound: Elbo | ContinuousElbo) -> dict[str, Float[np.ndarray, " n"]]:
    """Return the rows of the table, in nats."""
    if isinstance(bound, ContinuousElbo):
        return {name: np.asarray(nats) for name, nats in (bound._asdict() | {"ELBO": bound.total()}).items()}
    steps = bound.steps
    times = np.arange(2, steps.shape[1] + 2) / (steps.shape[1] + 1)  # t = k/T of L_1 … L_{T−1}
    rows = {"L_T": bound.prior}
    for low, high in reversed(list(itertools.pairwise(_GROUPS))):
        rows[f"L_t-1, {low:g} < t ≤ {high:g}"] = steps[:, (times > low) & (times <= high)].sum(1)
    rows |= {"L_0": bound.decoder, "ELBO": bound.total()}
    return {name: np.asarray(nats) for name, nats in rows.items()}


def _float64(bound: Elbo | ContinuousElbo) -> Elbo | ContinuousElbo:
    """Convert the terms to float64, for sums of many of them."""
    return type(bound)(*(np.asarray(term, np.float64) for term in bound))


def _mean_and_error(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    values = values.astype(np.float64)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)
