"""Train a network of Equinox on a checkerboard, in your own loop: about half a minute on two cores.

    python examples/equinox_network.py checkerboard.png

An Equinox module is a pytree, so it is its own weights. It takes one example, and `jax.vmap` makes that a batch. To
hand the network to `jaxdiff.train` instead, see `jaxdiff.models.from_equinox`.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax

import jaxdiff as jd

PROCESS = jd.Gaussian(jd.schedules.Cosine())


class Net(eqx.Module):
    """A network on one example: x (2,) and t () to (2,)."""

    mlp: eqx.nn.MLP

    def __init__(self, *, key: jax.Array) -> None:
        self.mlp = eqx.nn.MLP(in_size=22, out_size=2, width_size=192, depth=4, activation=jax.nn.silu, key=key)

    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        angles = jnp.pi * jnp.array([0.5, 1.0, 2.0])[:, None] * jnp.append(x, t)
        return self.mlp(jnp.concatenate([x, jnp.sin(angles).ravel(), jnp.cos(angles).ravel(), t[None], 1 - t[None]]))


def denoiser_of(net: Net) -> jd.Denoiser:
    """Return the network as a denoiser. It predicts v."""
    return jd.denoiser(lambda net, x, t: jax.vmap(net)(x, t), net, PROCESS, predicts="v")


def train(x: np.ndarray, *, steps: int, batch_size: int = 512) -> jd.Denoiser:
    """Return the denoiser of a network that was trained for `steps` optimizer steps."""
    net = Net(key=jax.random.key(0))
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, max(steps, 1)))
    state = optimizer.init(eqx.filter(net, eqx.is_inexact_array))

    @eqx.filter_jit
    def update(net: Net, state: optax.OptState, key: jax.Array) -> tuple:
        key_batch, key_loss = jax.random.split(key)
        x0 = jnp.asarray(x)[jax.random.randint(key_batch, (batch_size,), 0, len(x))]
        loss = lambda net: jd.losses.batch(denoiser_of(net), x0, key=key_loss)  # noqa: E731
        value, gradient = eqx.filter_value_and_grad(loss)(net)
        changes, state = optimizer.update(gradient, state)
        return eqx.apply_updates(net, changes), state, value

    for step in range(steps):
        net, state, loss = update(net, state, jax.random.fold_in(jax.random.key(1), step))
        if (step + 1) % 500 == 0:
            print(f"step {step + 1}  loss {loss:.3f}")
    arrays, rest = eqx.partition(net, eqx.is_array)  # a denoiser that samplers compile holds arrays alone
    apply = lambda arrays, x, t: jax.vmap(eqx.combine(arrays, rest))(x, t)  # noqa: E731
    return jd.denoiser(apply, arrays, PROCESS, predicts="v")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train an Equinox network on a checkerboard and sample from it.")
    parser.add_argument("out", help="the picture to write")
    parser.add_argument("--steps", type=int, default=3000, help="number of optimizer steps")
    parser.add_argument("--samples", help="an .npy file to write the samples to")
    arguments = parser.parse_args()

    denoiser = train(jd.data.load("checkerboard").x, steps=arguments.steps)
    samples = np.asarray(jd.sample(jax.random.key(2), denoiser, "heun", steps=25, shape=(2,), n=4000))
    figure = matplotlib.figure.Figure(figsize=(4, 4), layout="constrained")
    figure.subplots().scatter(*samples.T, s=2)
    figure.savefig(arguments.out)
    if arguments.samples:
        np.save(arguments.samples, samples)


if __name__ == "__main__":
    main()
