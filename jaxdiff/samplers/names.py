"""Samplers by name."""

from collections.abc import Callable
from functools import partial

from jaxdiff import registry
from jaxdiff.samplers.adaptive import Adaptive
from jaxdiff.samplers.ancestral import DDIM, DDPM, Deterministic, Interpolated, Renoise
from jaxdiff.samplers.base import Sampler
from jaxdiff.samplers.multistep import DPMSolver, UniPC
from jaxdiff.samplers.ode import RK4, Euler, Heun, Midpoint
from jaxdiff.samplers.sde import EDM, Langevin, PredictorCorrector, ReverseSDE
from jaxdiff.typing import InputError, shown

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "renoise": Renoise,
    "interpolated": Interpolated,
    "deterministic": Deterministic,
    "residual": Deterministic,  # by the name of Bansal et al. 2022
    "euler": Euler,
    "midpoint": Midpoint,
    "heun": Heun,
    "rk4": RK4,
    "dpm++2m": DPMSolver,
    "dpm++3m": partial(DPMSolver, order=3),
    "dpm++2m_sde": partial(DPMSolver, stochastic=True),
    "unipc": UniPC,
    "edm": EDM,
    "reverse_sde": ReverseSDE,
    "predictor_corrector": PredictorCorrector,
    "langevin": Langevin,
    "adaptive": Adaptive,
}
# As other libraries spell them.
SAMPLERS |= {f"dpmpp_{kind}": SAMPLERS[f"dpm++{kind}"] for kind in ("2m", "3m", "2m_sde")}


def make(sampler: str | Sampler) -> Sampler:
    """Return a sampler as is, or make it from a name with options, "ddim:eta=0.5"; raises an `InputError` if wrong."""
    made = registry.make("sampler", sampler, SAMPLERS)
    kind = made if isinstance(made, type) else type(made)
    if isinstance(made, type) and issubclass(made, Sampler):  # a class has the methods too
        raise InputError(f"sampler is the class {kind.__name__}; give a sampler, {kind.__name__}(...)")
    if not isinstance(made, Sampler):
        missing = [name for name in ("init", "step") if not hasattr(made, name)]
        raise InputError(
            f"sampler = {shown(sampler)} lacks the method {' and '.join(missing)}; it must be a Sampler, such as "
            "jaxdiff.samplers.DDIM()"
        )
    fix = f"make {kind.__name__} a frozen dataclass whose fields are plain values"
    if kind.__hash__ is object.__hash__ and vars(made):
        # Programs are kept by the sampler's hash, which a change of its attributes would not change.
        raise InputError(f"sampler = {shown(sampler)} has attributes but no hash of their values; {fix}")
    try:
        hash(made)
    except TypeError as error:
        raise InputError(f"sampler = {shown(sampler)} has no hash ({error}); {fix}") from None
    return made
