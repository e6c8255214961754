"""Conversions between the output of a network and the pair (x̂_0, n̂), for one sample and scalar α, σ.

With x = α g(x_0) + σ n, where g is the identity in Gaussian diffusion, α' = dα/dt and σ' = dσ/dt, a network may predict

    eps        n
    x0         x_0
    v          α n − σ g(x_0)             (Salimans & Ho 2022, "Progressive Distillation")
    score      −n/σ = ∇log q(x_t|x_0)     (Song et al. 2021)
    velocity   dx/dt = α' g(x_0) + σ' n   (Liu et al. 2023; Lipman et al. 2023, "Flow Matching"), at fixed g

All but x0 determine g(x_0), from which the inverse of g gives x_0. So if g has no usable inverse, only x0 works.

At the ends of the path x may determine one half of the pair only. The other is then its expectation for centred data:

    α = 0 (pure noise)    eps and score determine n̂ only; x̂_0 = 0
    σ = 0 (pure data)     x0 and score determine x̂_0 only; n̂ = 0. So does velocity if σ' is infinite.

v and velocity otherwise determine both halves at both ends. The score at σ = 0 and the velocity at infinite σ' are
infinite; targets omit their noise term there. Near an end, division by α or σ enlarges the network's error: choose a
parameterization that suits the schedule (v or velocity where α_1 = 0).
"""

from typing import Literal, get_args

import jax.numpy as jnp

from jaxdiff.processes.base import Process, safe_divide
from jaxdiff.processes.transforms.base import Transform
from jaxdiff.schedules import rates
from jaxdiff.typing import InputError, Prediction, Sample, Time, near

Kind = Literal["eps", "x0", "v", "score", "velocity"]
KINDS: tuple[str, ...] = get_args(Kind)
_SPELLINGS = {"epsilon": "eps", "noise": "eps", "sample": "x0", "x_0": "x0", "v_prediction": "v", "flow": "velocity"}


def canonical(kind: str, *, what: str = "predicts") -> Kind:
    """Return the name in `KINDS` for a kind in any library's spelling, or raise an InputError about `what`."""
    found = _SPELLINGS.get(kind, kind)
    if found not in KINDS:
        raise InputError(f"{what} = {kind!r}; it must be one of {', '.join(KINDS)}{near(kind, {*KINDS, *_SPELLINGS})}")
    return found  # type: ignore[return-value]


def to_prediction(kind: Kind, output: Sample, x_t: Sample, *, t: Time, process: Process) -> Prediction:
    """Convert a network's output of this kind for one sample x_t into (x̂_0, n̂); raises as `check`."""
    schedule, transform = process.schedule, process.transform
    check(kind, transform)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if kind == "x0":
        return Prediction(output, process.infer_noise(output, x_t, t))
    if kind in ("eps", "score"):
        noise = output if kind == "eps" else -sigma * output
        x0 = transform.inverse(safe_divide(x_t - sigma * noise, alpha), t)
        return Prediction(jnp.where(alpha == 0, 0, x0), noise)
    if kind == "v":
        power = alpha**2 + sigma**2  # 1 where variance is preserved
        content = (alpha * x_t - sigma * output) / power
        return Prediction(transform.inverse(content, t), (sigma * x_t + alpha * output) / power)
    d_alpha, d_sigma = rates(schedule, t)
    # σ' may be infinite at σ = 0: there g(x_0) is x/α, and the noise formula gives 0 by itself.
    det = alpha * d_sigma - sigma * d_alpha
    finite = jnp.where(sigma > 0, d_sigma, 1)
    content = (finite * x_t - sigma * output) / jnp.where(sigma > 0, det, alpha)
    return Prediction(transform.inverse(content, t), (alpha * output - d_alpha * x_t) / det)


def from_prediction(kind: Kind, prediction: Prediction, *, t: Time, process: Process) -> Sample:
    """Convert (x_0, n) into a network's output of this kind, or the true pair into its target; raises as `check`."""
    schedule, transform = process.schedule, process.transform
    check(kind, transform)
    x0, noise = prediction.x0, prediction.noise
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if kind == "eps":
        return noise
    if kind == "x0":
        return x0
    if kind == "v":
        return alpha * noise - sigma * transform(x0, t)
    if kind == "score":
        return -safe_divide(noise, sigma)
    d_alpha, d_sigma = rates(schedule, t)
    return d_alpha * transform(x0, t) + jnp.where(jnp.isinf(d_sigma), 0, d_sigma) * noise


def natural(transform: Transform) -> Kind:
    """Return the default parameterization for a transform: eps, or x0 if it has no usable inverse."""
    return "eps" if transform.invertible else "x0"


def check(kind: str, transform: Transform, *, what: str = "kind") -> None:
    """Raise an InputError about the argument `what` unless `kind` is known and can be used with this transform."""
    if kind not in KINDS:
        raise InputError(f"{what} = {kind!r}; write {canonical(kind, what=what)!r}")
    if kind != "x0" and not transform.invertible:
        raise InputError(
            f"{what} = {kind!r} estimates g_t(x_0), but transform = {type(transform).__name__} has no usable inverse "
            f"at some t, so that x_0 can't be computed from it; set {what} to 'x0'"
        )
