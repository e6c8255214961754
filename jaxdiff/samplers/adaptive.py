"""The probability-flow ODE with as many steps from t to s as a tolerance needs."""

from typing import Any

from jaxdiff.processes import Denoiser
from jaxdiff.samplers import probability_flow
from jaxdiff.samplers.base import Stateless, static_dataclass
from jaxdiff.samplers.probability_flow import Solver
from jaxdiff.typing import RandomKey, Sample, Time


@static_dataclass
class Adaptive(Stateless):
    """The probability-flow ODE by a diffrax solver that chooses its own steps: sample with `steps=1`.

    The fields are those of `probability_flow.Solver`; the method None is diffrax.Tsit5().
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    method: Any = None
    max_steps: int = 4096

    def __post_init__(self) -> None:
        _ = self.solver  # which validates the fields

    @property
    def solver(self) -> Solver:
        """The solver with these fields."""
        method = {} if self.method is None else {"method": self.method}
        return Solver(**method, rtol=self.rtol, atol=self.atol, max_steps=self.max_steps)

    def advance(self, key: RandomKey, x_t: Sample, *, t: Time, s: Time, denoiser: Denoiser) -> Sample:
        x_s, outcome = probability_flow.integrate(denoiser, x_t, t=t, s=s, solver=self.solver)
        self.solver.check(outcome)
        return x_s
