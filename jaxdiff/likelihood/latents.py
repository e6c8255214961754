"""From samples to their latents and back, along the probability-flow ODE (see `jaxdiff.samplers.probability_flow`).

Latents are interpolated on the sphere, since a straight line passes through points of smaller norm than noise has:

    slerp(a, b, w) = (sin((1 − w) θ) a + sin(w θ) b)/sin θ,        cos θ = a·b/(|a| |b|)

Sources: Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models" (sections 4.3 and 5.3); Shoemake 1985,
"Animating Rotation with Quaternion Curves" (slerp).
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxdiff.processes import Denoiser
from jaxdiff.samplers.loop import check_samples
from jaxdiff.samplers.probability_flow import Outcome, Solver, check_solver, integrate
from jaxdiff.typing import PyTree, Sample, Samples, Scalar


def encode(denoiser: Denoiser, x0: Samples, *, cond: PyTree = None, solver: Solver | None = None) -> Samples:
    """Return the latents x_1 of clean samples x_0, each computed from its own sample alone.

    The latents are distributed approximately as N(0, σ_1² I), and have the dtype of x0. The leaves of `cond` have
    leading axis n. The default solver has the tolerance 1e-5; if the dtype can't meet it, there is a UserWarning.

    Raises:
      InputError: if the process is not Gaussian, x0 holds no finite numbers, or the solver gives up; inside your own
        `jax.jit` the latter is a jax.errors.JaxRuntimeError.
    """
    return _integrate(denoiser, x0, cond, solver, t=0.0, s=1.0)


def decode(denoiser: Denoiser, x1: Samples, *, cond: PyTree = None, solver: Solver | None = None) -> Samples:
    """Return the samples x_0 of latents x_1: the inverse of `encode`, with the same arguments and errors."""
    return _integrate(denoiser, x1, cond, solver, t=1.0, s=0.0)


def _integrate(denoiser: Denoiser, x: Samples, cond: PyTree, solver: Solver | None, *, t: float, s: float) -> Samples:
    name = "x0" if t == 0 else "x1"
    solver, x = check_solver(solver), check_samples(name, x, cond)
    end, outcome = integrate_each(denoiser, x, cond, t=t, s=s, solver=solver)
    solver.check(outcome)
    return end


@partial(jax.jit, static_argnames=("t", "s", "solver"))
def integrate_each(
    denoiser: Denoiser, x: Samples, cond: PyTree, *, t: float, s: float, solver: Solver
) -> tuple[Samples, Outcome]:
    """Integrate a batch from time t to time s; inputs sharded over devices give a sharded computation."""
    return jax.vmap(lambda x, cond: integrate(denoiser, x, t=t, s=s, solver=solver, cond=cond))(x, cond)


def slerp(a: Sample, b: Sample, w: float | Scalar) -> Sample:
    """Return the latent at the fraction w in [0, 1] of the way from a to b, on the sphere.

    Between opposite latents, and from or to 0, where no arc is the shortest, the way is straight.
    """
    lengths = jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel())
    cosine = jnp.where(lengths > 0, (a * b).sum() / jnp.where(lengths > 0, lengths, 1), 1)
    theta = jnp.arccos(jnp.clip(cosine, -1, 1))
    straight = jnp.sin(theta) < 1e-4  # for small θ the chord equals the arc, and sin θ is lost to rounding
    sine = jnp.where(straight, 1, jnp.sin(theta))
    first = jnp.where(straight, 1 - w, jnp.sin((1 - w) * theta) / sine)
    return first * a + jnp.where(straight, w, jnp.sin(w * theta) / sine) * b
