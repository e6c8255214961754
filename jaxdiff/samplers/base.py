"""The interface of a sampler: one step of one sample from t to s < t."""

from typing import Any, Protocol, runtime_checkable

from jaxdiff.processes import Denoiser
from jaxdiff.typing import RandomKey, Sample, Time


@runtime_checkable
class Sampler(Protocol):
    """One step of one sample from t to s < t. A hashable value: equal samplers share a compilation."""

    def init(self, x: Sample) -> Any:
        """Return the state that the sampler keeps between steps (None if it keeps none), for a start at x."""

    def step(
        self, key: RandomKey, x_t: Sample, state: Any, *, t: Time, s: Time, denoiser: Denoiser
    ) -> tuple[Sample, Any]:
        """Return x_s and the new state.

        Args:
          denoiser: called as `denoiser(x_t, t)`; it holds the condition, and the process with the sample's parameters.

        Raises:
          InputError: if the times are known and outside [0, 1], or s is not below t; if the sampler can't reverse the
            process.
        """


class Stateless:
    """Base class of samplers that keep nothing between steps."""

    def init(self, x: Sample) -> None:
        """Return None."""
