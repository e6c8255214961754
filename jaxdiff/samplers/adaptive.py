"""A jump from t to s along the probability-flow ODE, with as many steps as a tolerance asks for."""

import dataclasses

import diffrax
import jax
from jaxtyping import Array, Float, Key

from jaxdiff import probability_flow
from jaxdiff.probability_flow import Solver
from jaxdiff.processes import Process
from jaxdiff.schedules import check_times
from jaxdiff.typing import Denoiser, Time


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptive:
    """An ODE solver as a sampler. Make one with `adaptive`."""

    solver: Solver

    def init(self, x: Float[Array, "*shape"]) -> None:
        """It carries no state."""

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
        check_times(t, s)
        x_s, outcome = probability_flow.carry(denoise, process, x_t, t=t, s=s, solver=self.solver)
        self.solver.check(outcome)
        return x_s, None


def adaptive(
    rtol: float = 1e-5,
    atol: float = 1e-5,
    *,
    method: diffrax.AbstractAdaptiveSolver | None = None,
    max_steps: int = 4096,
) -> Adaptive:
    """The probability-flow ODE by a solver of diffrax that chooses its steps: sample with `steps=1`.

    Args:
      rtol, atol: the relative and absolute error that one of its steps may make.
      method: the solver; that of Tsitouras, of fifth order, if left out.
      max_steps: give up after as many.

    Raises:
      ValueError: for tolerances that are not above 0, and max_steps < 1.
    """
    return Adaptive(solver=Solver(method=method or diffrax.Tsit5(), rtol=rtol, atol=atol, max_steps=max_steps))
