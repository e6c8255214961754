"""The probability-flow ODE with as many steps from t to s as a tolerance needs."""

import dataclasses

import diffrax
import jax

from jaxdiff.processes import Denoiser
from jaxdiff.samplers import probability_flow
from jaxdiff.samplers.base import Stateless
from jaxdiff.samplers.probability_flow import Solver
from jaxdiff.schedules import check_times
from jaxdiff.typing import RandomKey, Sample, Time


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Adaptive(Stateless):
    """The probability-flow ODE by a solver of diffrax that chooses its steps: sample with `steps=1`.

    Args:
      rtol, atol: the relative and absolute error that one of its steps may make.
      method: any solver of diffrax with an error estimate; None for the fifth-order pair of Tsitouras.
      max_steps: the number of its steps after which it gives up.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    method: diffrax.AbstractAdaptiveSolver | None = None
    max_steps: int = 4096

    def __post_init__(self) -> None:
        _ = self.solver  # which validates the fields

    @property
    def solver(self) -> Solver:
        """The solver and its tolerance."""
        method = diffrax.Tsit5() if self.method is None else self.method
        return Solver(method=method, rtol=self.rtol, atol=self.atol, max_steps=self.max_steps)

    def step(
        self, key: RandomKey, x_t: Sample, state: None, *, t: Time, s: Time, denoiser: Denoiser
    ) -> tuple[Sample, None]:
        check_times(t, s)
        x_s, outcome = probability_flow.integrate(denoiser, x_t, t=t, s=s, solver=self.solver)
        self.solver.check(outcome)
        return x_s, None
