"""Samplers: how one sample moves from t to s < t, and the loop that runs them."""

from collections.abc import Callable
from functools import partial

from jaxdiff import registry
from jaxdiff.samplers import grids
from jaxdiff.samplers.adaptive import adaptive
from jaxdiff.samplers.jump import ddim, ddpm, fresh, mixed, residual, transported
from jaxdiff.samplers.loop import Sampler, sample
from jaxdiff.samplers.multistep import dpmpp, unipc
from jaxdiff.samplers.ode import euler, heun, midpoint, rk4
from jaxdiff.samplers.stochastic import edm, langevin, predictor_corrector, reverse_sde

__all__ = [
    "REGISTRY",
    "Sampler",
    "adaptive",
    "ddim",
    "ddpm",
    "dpmpp",
    "edm",
    "euler",
    "fresh",
    "grids",
    "heun",
    "langevin",
    "make",
    "midpoint",
    "mixed",
    "predictor_corrector",
    "residual",
    "reverse_sde",
    "rk4",
    "sample",
    "transported",
    "unipc",
]

REGISTRY: dict[str, Callable[..., Sampler]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "fresh": fresh,
    "mixed": mixed,
    "transported": transported,
    "residual": residual,
    "euler": euler,
    "midpoint": midpoint,
    "heun": heun,
    "rk4": rk4,
    "dpm++2m": dpmpp,
    "dpm++3m": partial(dpmpp, 3),
    "dpm++2m_sde": partial(dpmpp, stochastic=True),
    "unipc": unipc,
    "edm": edm,
    "reverse_sde": reverse_sde,
    "predictor_corrector": predictor_corrector,
    "langevin": langevin,
    "adaptive": adaptive,
}


def make(text: str) -> Sampler:
    """A sampler from its name and options, as written on a command line: "ddim", "ddim:eta=0.5", "ddpm:variance=large".

    Raises:
      ValueError: for a name that is not in `REGISTRY`, an option that the sampler does not have or that is given
        twice, and a value that the sampler does not take.
    """
    return registry.make("sampler", text, REGISTRY)
