"""The interface of a sampler: one step of one sample from t to s < t."""

import dataclasses
from typing import Any, Protocol, dataclass_transform, runtime_checkable

import jax

from jaxdiff.processes import Denoiser
from jaxdiff.schedules import check_times
from jaxdiff.typing import RandomKey, Sample, T, Time, checks_fields


@runtime_checkable
class Sampler(Protocol):
    """One step of one sample from t to s < t. A hashable value: equal samplers share a compilation.

    A frozen dataclass is one. If it keeps nothing between steps it can derive from `Stateless`:

        @dataclasses.dataclass(frozen=True)
        class Churned(jaxdiff.samplers.Stateless):  # by name "my_module:Churned" or "my_module:Churned:share=0.2"
            share: float = 0.1

            def advance(self, key, x_t, *, t, s, denoiser):  # one sample; t and s are traced scalars
                x0, noise = denoiser(x_t, t)[:2]
                fresh = denoiser.process.sample_noise(key, x_t.shape, s)
                mixed = (1 - self.share**2) ** 0.5 * noise + self.share * fresh
                return denoiser.process.corrupt(x0, mixed, s)  # α_s x0 + σ_s mixed

    A sampler that is wrong for some timesteps also has `check(times, process)`, which raises an `InputError` for them.
    """

    def init(self, x: Sample) -> Any:
        """Return the state that the sampler keeps between steps, for a start at x; None if it keeps none."""

    def step(
        self, key: RandomKey, x_t: Sample, state: Any, *, t: Time, s: Time, denoiser: Denoiser
    ) -> tuple[Sample, Any]:
        """Return x_s and the new state.

        `denoiser(x_t, t)` holds the condition, and the process with the sample's parameters. Raises an `InputError` if
        known times leave [0, 1] or s is not below t, or if the sampler can't reverse the process.
        """


@dataclass_transform(frozen_default=True)
def static_dataclass(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass that `jax.jit` treats as a constant, compared by value, and check its fields."""
    return jax.tree_util.register_static(dataclasses.dataclass(frozen=True)(checks_fields(cls)))


class Stateless:
    """Base class of samplers that keep nothing between steps: a subclass defines `advance`."""

    def init(self, x: Sample) -> None:
        """Return None."""

    def step(
        self, key: RandomKey, x_t: Sample, state: None, *, t: Time, s: Time, denoiser: Denoiser
    ) -> tuple[Sample, None]:
        check_times(t, s)
        return self.advance(key, x_t, t=t, s=s, denoiser=denoiser), None

    def advance(self, key: RandomKey, x_t: Sample, *, t: Time, s: Time, denoiser: Denoiser) -> Sample:
        """Return x_s; the times are checked."""
        raise NotImplementedError
