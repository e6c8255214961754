"""Gradients for a learned schedule, which is trained together with the network.

For the loss L = ½(−λ'_t) |n − n̂|² of one example, where x_t and n̂ are functions of λ_t alone,

    E_t[L] = ½ ∫ |n − n̂|² dλ        between the ends, whatever the path of λ from one to the other

So the shape of the schedule is free to minimise the variance of the estimate of E[L]. As E[L] does not depend on it,
the shape that minimises Var[L] = E[L²] − E[L]² minimises E[L²]. In each step, with means over the batch,

    network    g = mean_i ∇ L_i
    shape      g = mean_i ∇ L_i² = mean_i 2 L_i ∇ L_i
    ends       g = mean_i ∇ L_i,   where L_i includes the prior and the reconstruction term of the ELBO

from one backward pass: each example has its own copy of the schedule, with respect to which its loss is differentiated.
At the optimal shape E[L²|t] is the same at every t. The gradient of the network is that of E[L], as with any schedule.
Prior and reconstruction do not depend on the shape, and E[∇ L] = 0 for it, so that including them in L_i does not
change the expectation of its gradient.

Source: Kingma et al. 2021, "Variational Diffusion Models", section 5 and appendix I.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.schedules import Learned
from jaxdiff.typing import PyTree, Samples, Scalar

Loss = Callable[..., Float[Array, " n"]]  # called with parameters, a batch, its times, keys and conditions


def gradient(
    loss: Loss,
    params: dict[str, PyTree],
    x0: Samples,
    t: Float[Array, " n"],
    keys: Key[Array, " n"],
    cond: PyTree = None,
) -> tuple[Scalar, dict[str, PyTree], Float[Array, " n"]]:
    """Return the mean loss, a gradient for the optimizer, and the loss of each example.

    `params["schedule"]` is a `Learned`, the rest belongs to the network. The times t are uniform in (0, 1]. The
    result is a tree like `params`, but not the gradient of any one function.
    """
    rest = {name: part for name, part in params.items() if name != "schedule"}
    copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(t), *leaf.shape)), params["schedule"])

    def mean(rest: dict[str, PyTree], copies: Learned) -> tuple[Scalar, Float[Array, " n"]]:
        def one(schedule: Learned, *example: PyTree) -> Scalar:
            return loss({**rest, "schedule": schedule}, *jax.tree.map(lambda leaf: leaf[None], example))[0]

        losses = jax.vmap(one)(copies, x0, t, keys, cond)
        return losses.mean(), losses

    (value, losses), (network, each) = jax.value_and_grad(mean, argnums=(0, 1), has_aux=True)(rest, copies)
    ends = None if each.ends is None else each.ends.sum(0)
    shape = jax.tree.map(lambda leaf: 2 * losses @ leaf, dataclasses.replace(each, ends=None))
    return value, {**network, "schedule": dataclasses.replace(shape, ends=ends)}, losses
