"""What images of n levels cost under a model: the bound, term by term, and the ODE's likelihood, as one table.

Means over images, in nats an image and in bits/dim, each with its standard error: the standard deviation over the
images, divided by √n. (It holds the noise of the estimates too: each image has its own.) Of one image it is not known.

See `jaxdiff.bounds` and `jaxdiff.likelihood` for the equations, and for what is added for dequantisation.
"""

import dataclasses
import itertools
import math
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Integer, Key

from jaxdiff import bounds, likelihood, xla
from jaxdiff.bounds import Bound, ContinuousBound
from jaxdiff.probability_flow import Outcome, Solver, gaussian
from jaxdiff.processes import Gaussian, Process
from jaxdiff.samplers.batches import in_batches
from jaxdiff.samplers.loop import as_pytree, sample_keys
from jaxdiff.typing import Denoiser, PyTree

_SOLVER = Solver()
_DRAWS = 64  # of times for each image, for the continuous bound
_GROUPS = (0.0, 0.1, 0.25, 0.5, 1.0)  # of the table, in t: more lines where the terms are large


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Of n images of d numbers. Make one with `measure`."""

    d: int
    bound: Bound | ContinuousBound | None
    """The terms in nats, of the continuous bound where the schedule has no steps; None where it also has no noise at
    t = 0, at which that one starts."""
    ode: Float[np.ndarray, " n"]
    """The ODE's likelihood in bits/dim."""

    def bits_per_dim(self) -> dict[str, tuple[float, float]]:
        """{"bound": (mean, standard error), "ode": (mean, standard error)}, the former where there is one."""
        costs = {} if self.bound is None else {"bound": _exactly(self.bound).total() / self._nats}
        return {name: _mean_and_error(np.asarray(cost)) for name, cost in (costs | {"ode": self.ode}).items()}

    def table(self) -> str:
        """A line a term: the mean and its standard error in nats, and both in bits/dim."""
        rows = {} if self.bound is None else _rows(_exactly(self.bound))
        lines = [f"{'':24}{'nats':>10}{'±':>9}{'bits/dim':>12}{'±':>9}"]
        for name, nats in (rows | {"ODE": self.ode * self._nats}).items():
            mean, error = _mean_and_error(nats)
            bits = f"{mean / self._nats:12.4f}{error / self._nats:9.4f}"
            lines.append(f"{name:24}{mean:10.3f}{error:9.3f}{bits}")
        return "\n".join(lines)

    @property
    def _nats(self) -> float:
        """Of one bit/dim."""
        return self.d * math.log(2)


def measure(
    key: Key[Array, ""],
    denoiser: Denoiser,
    process: Process,
    x0: Float[np.ndarray, "n *shape"],
    *,
    levels: int,
    probes: int = 4,
    batch: int = 64,
    progress: bool = False,
) -> Costs:
    """The bound and the ODE's likelihood of images.

    Args:
      key: of image i draws noise, dequantisation and probes with fold_in(key, i): whatever the batch, the same.
      denoiser: the model.
      process: its process, which must be Gaussian.
      x0: images of values −1 + 2k/(levels − 1).
      levels: the number of values that a coordinate can take.
      probes: of Hutchinson's estimate of the ODE's divergence.
      batch: how many images at a time.
      progress: whether to show a progress bar.

    Raises:
      ValueError: for another process, no images, probes or batch < 1, and where the ODE's solver gives up.
    """
    process = gaussian(process, what="the cost in bits", instead="")
    if probes < 1:
        raise ValueError(f"probes = {probes}; the rule is 1 or more")
    denoiser, d = jax.tree.map(as_pytree, denoiser), math.prod(x0.shape[1:])
    one_batch = xla.outermost(_measure, "levels", "probes", "continuous")

    continuous = process.schedule.steps is None and math.isfinite(process.schedule.log_snr(0.0))

    def costs(indices: Integer[Array, " size"], x0: Float[Array, "size *shape"]) -> PyTree:
        return one_batch(key, indices, denoiser, process, x0, levels=levels, probes=probes, continuous=continuous)

    check = lambda found: _SOLVER.check(found[2])  # noqa: E731
    bound, log_density, _ = in_batches(costs, len(x0), rows=x0, check=check, batch=batch, progress=progress)
    return Costs(d=d, bound=bound, ode=np.asarray(likelihood.bits_per_dim(log_density, d, levels)))


def _measure(
    key: Key[Array, ""],
    indices: Integer[Array, " n"],
    denoiser: Denoiser,
    process: Gaussian,
    x0: Float[Array, "n *shape"],
    *,
    levels: int,
    probes: int,
    continuous: bool,
) -> tuple[Bound | ContinuousBound | None, Float[Array, " n"], Outcome]:
    key_bound, key_noise, key_probes = (sample_keys(key, indices) for key in jax.random.split(key, 3))
    bound: Bound | ContinuousBound | None = None
    if process.schedule.steps is not None:
        bound = bounds.bound_each(key_bound, denoiser, process, x0, None, levels=levels)
    elif continuous:
        bound = bounds.continuous_bound_each(key_bound, denoiser, process, x0, None, levels=levels, draws=_DRAWS)
    x = jax.vmap(partial(likelihood.dequantise, levels=levels))(key_noise, x0)
    found, outcome = likelihood.likelihood_each(
        key_probes, denoiser, process, x, None, probes=probes, probe="rademacher", solver=_SOLVER
    )
    return bound, found.log_density, outcome


def _rows(bound: Bound | ContinuousBound) -> dict[str, Float[np.ndarray, " n"]]:
    """Of the table, in nats."""
    if isinstance(bound, ContinuousBound):
        return {name: np.asarray(nats) for name, nats in (bound._asdict() | {"bound": bound.total()}).items()}
    steps = bound.steps
    times = np.arange(2, steps.shape[1] + 2) / (steps.shape[1] + 1)  # of L_1 … L_{T−1}, whose t is k/T
    rows = {"L_T": bound.prior}
    for low, high in reversed(list(itertools.pairwise(_GROUPS))):
        within = (times > low) & (times <= high)
        rows[f"L_t-1, {low:g} < t ≤ {high:g}"] = steps[:, within].sum(1)
    rows |= {"L_0": bound.decoder, "bound": bound.total()}
    return {name: np.asarray(nats) for name, nats in rows.items()}


def _exactly(bound: Bound | ContinuousBound) -> Bound | ContinuousBound:
    """In float64, for sums of many terms."""
    return type(bound)(*(np.asarray(term, np.float64) for term in bound))


def _mean_and_error(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """NaN for the standard error of one."""
    values = values.astype(np.float64)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)
