"""From samples to their latents and back, along the probability-flow ODE (see `jaxdiff.probability_flow`).

Between two latents one goes on the sphere (Shoemake 1985, "Animating Rotation with Quaternion Curves"): a straight line
would pass through points of smaller norm than noise has.

    slerp(a, b, w) = (sin((1 − w) θ) a + sin(w θ) b)/sin θ,        cos θ = a·b/(|a| |b|)

Source: Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models" (sections 4.3 and 5.3).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff import probability_flow
from jaxdiff.probability_flow import Outcome, Solver
from jaxdiff.processes import Process
from jaxdiff.samplers.loop import as_pytree
from jaxdiff.typing import Denoiser, PyTree


def encode(
    denoiser: Denoiser,
    process: Process,
    x0: Float[Array, "n *shape"],
    *,
    cond: PyTree = None,
    solver: Solver | None = None,
) -> Float[Array, "n *shape"]:
    """The latents x_1 of clean samples x_0; those of one sample depend on it alone.

    Args:
      denoiser: the model.
      process: its process, which must be Gaussian.
      x0: clean samples.
      cond: a pytree whose leaves have leading axis n; None if there is no condition.
      solver: how the ODE is solved; by default to 1e-5.

    Returns:
      x_1, of about the law N(0, σ_1² I), in the dtype of x0.

    Raises:
      ValueError: for another process.
      ValueError: where the solver gives up, with the time and the tolerance; within a `jax.jit` of the caller's, a
        jax.errors.JaxRuntimeError.

    Warns:
      UserWarning: where the dtype can't meet the tolerance.
    """
    return _carry(denoiser, process, x0, cond, t=0.0, s=1.0, solver=solver or Solver())


def decode(
    denoiser: Denoiser,
    process: Process,
    x1: Float[Array, "n *shape"],
    *,
    cond: PyTree = None,
    solver: Solver | None = None,
) -> Float[Array, "n *shape"]:
    """The inverse of `encode`: the samples x_0 of latents x_1. Arguments, errors and warnings as there."""
    return _carry(denoiser, process, x1, cond, t=1.0, s=0.0, solver=solver or Solver())


def _carry(
    denoiser: Denoiser,
    process: Process,
    x: Float[Array, "n *shape"],
    cond: PyTree,
    *,
    t: float,
    s: float,
    solver: Solver,
) -> Float[Array, "n *shape"]:
    end, outcome = carry_each(jax.tree.map(as_pytree, denoiser), process, x, cond, t=t, s=s, solver=solver)
    solver.check(outcome)
    return end


@partial(jax.jit, static_argnames=("t", "s", "solver"))
def carry_each(
    denoiser: Denoiser,
    process: Process,
    x: Float[Array, "n *shape"],
    cond: PyTree,
    *,
    t: float,
    s: float,
    solver: Solver,
) -> tuple[Float[Array, "n *shape"], Outcome]:
    """A batch carried from time t to time s: rows that are spread over devices make a sharded computation."""

    def one(x: Float[Array, "*shape"], cond: PyTree) -> tuple[Float[Array, "*shape"], Outcome]:
        return probability_flow.carry(denoiser, process, x, t=t, s=s, solver=solver, cond=cond)

    return jax.vmap(one)(x, cond)


def slerp(
    a: Float[Array, "*shape"], b: Float[Array, "*shape"], share: float | Float[Array, ""]
) -> Float[Array, "*shape"]:
    """The latent that lies at `share` in [0, 1] of the way from a to b, on the sphere."""
    cosine = (a * b).sum() / (jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel()))
    theta = jnp.arccos(jnp.clip(cosine, -1, 1))
    near = theta < 1e-4  # where sin θ is lost to rounding, the chord is the arc
    sine = jnp.where(near, 1, jnp.sin(theta))
    first = jnp.where(near, 1 - share, jnp.sin((1 - share) * theta) / sine)
    return first * a + jnp.where(near, share, jnp.sin(share * theta) / sine) * b
