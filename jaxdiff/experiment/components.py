"""The components that the sections of a config can name, and the perturbed process made from names."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxdiff import models, registry, schedules
from jaxdiff.processes import FittedNormal, Gaussian, Perturbed
from jaxdiff.processes.noise import NOISES
from jaxdiff.processes.transforms import IDENTITY, TRANSFORMS, Compose, Transform
from jaxdiff.typing import HostSamples, InputError


def perturbed_process(
    schedule: schedules.Schedule,
    *,
    transform: Sequence[str | Mapping[str, Any]] = (),
    noise: str | Mapping[str, Any] = "normal",
    start: Literal["zeros", "fitted"] = "zeros",
    condition_on_transform: bool = False,
    examples: HostSamples | None = None,
) -> Perturbed:
    """Return the `Perturbed` process of named components: ("blur:width=4",), "gamma:shape=2".

    The transforms apply in order. `start` is x̃_0 of the prior: 0, or drawn from a normal distribution that is fitted
    to the examples, at least 2 of the data. Examples are needed only if `takes_examples`.
    """
    fitted = None
    if start == "fitted":
        if examples is None:
            raise InputError("start = 'fitted' is fitted to examples of the data; give examples, n samples")
        fitted = FittedNormal.fit(examples)
    return Perturbed(
        schedule,
        transform=named_transform(transform, examples),
        noise=registry.make("noise", noise, NOISES),
        start=fitted,
        condition_on_transform=condition_on_transform,
    )


def named_transform(names: Sequence[str | Mapping[str, Any]], examples: HostSamples | None = None) -> Transform:
    """Return the composition of named transforms; one with a parameter `others` gets the examples."""
    others = {} if examples is None else {"others": examples}
    parts = [registry.make("transform", name, TRANSFORMS, given=("others",), **others) for name in names]
    return Compose(tuple(parts)) if len(parts) > 1 else parts[0] if parts else IDENTITY


def takes_examples(section: Mapping[str, Any]) -> bool:
    """Return whether the process of a config is made from examples of the data."""
    if section["name"] != "perturbed":
        return registry.takes("process", section, PROCESSES, "examples")
    uses = [registry.takes("process.transform", name, TRANSFORMS, "others") for name in section.get("transform", ())]
    return section.get("start") == "fitted" or any(uses)


PROCESSES: registry.Names = {"gaussian": Gaussian, "perturbed": perturbed_process}

# What the trainer gives to the constructor of a network that takes it: see `jaxdiff.models`.
MODEL_ARGUMENTS = ("shape", "classes", "conditions", "dtype", "outputs", "remat")

# The registered names of each section, and the arguments that code gives instead of the config. `parent` and `name` are
# Flax's own; the others come from other fields of the config or from the data.
NAMES: dict[str, tuple[registry.Names, tuple[str, ...]]] = {
    "model": ({**models.MODELS, "given": lambda: None}, (*MODEL_ARGUMENTS, "parent", "name")),
    "schedule": (schedules.SCHEDULES, ("key",)),
    "process": (PROCESSES, ("schedule", "examples")),
}
