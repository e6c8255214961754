"""Train a network of Flax NNX on two moons, by label, in your own loop: about half a minute on two cores.

    python examples/nnx_network.py moons.png

A denoiser takes any function of (weights, x, t, cond). So NNX's own split and merge are all that it takes; to hand the
network to `jaxdiff.train` instead, see `jaxdiff.models.from_nnx`.
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax
from flax import nnx

import jaxdiff as jd

PROCESS = jd.Gaussian(jd.schedules.Cosine())
NONE = 2  # the label that stands for none


class Net(nnx.Module):
    """A residual network on batches: x (n, 2), t (n,) and labels (n,) to (n, 2)."""

    def __init__(self, width: int, depth: int, *, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Linear(6, width, rngs=rngs)
        self.label = nnx.Embed(3, width, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.head = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        waves = [f(k * jnp.pi * t / 2)[:, None] for k in (1, 3) for f in (jnp.sin, jnp.cos)]
        h = self.stem(jnp.concatenate([x, *waves], axis=-1)) + self.label(label)
        for block in self.blocks:
            h = h + block(nnx.silu(h))
        return self.head(nnx.silu(h))


def train(x: np.ndarray, labels: np.ndarray, *, steps: int, batch_size: int = 512) -> jd.Denoiser:
    """Return the denoiser of a network that was trained for `steps` optimizer steps."""
    graph, weights = nnx.split(Net(128, 3, rngs=nnx.Rngs(0)))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, max(steps, 1)))
    state = optimizer.init(weights)

    def denoiser(weights: nnx.State) -> jd.Denoiser:
        apply = lambda weights, x, t, label: nnx.merge(graph, weights)(x, t, label)  # noqa: E731
        return jd.denoiser(apply, weights, PROCESS, predicts="v", null=NONE)

    @jax.jit
    def update(weights: nnx.State, state: optax.OptState, key: jax.Array) -> tuple:
        key_batch, key_loss = jax.random.split(key)
        chosen = jax.random.randint(key_batch, (batch_size,), 0, len(x))
        loss = lambda weights: jd.losses.batch(  # noqa: E731
            denoiser(weights), jnp.asarray(x)[chosen], key=key_loss, cond=jnp.asarray(labels)[chosen], p_uncond=0.1
        )
        value, gradient = jax.value_and_grad(loss)(weights)
        changes, state = optimizer.update(gradient, state)
        return optax.apply_updates(weights, changes), state, value

    for step in range(steps):
        weights, state, loss = update(weights, state, jax.random.fold_in(jax.random.key(1), step))
        if (step + 1) % 500 == 0:
            print(f"step {step + 1}  loss {loss:.3f}")
    return denoiser(weights)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train an NNX network on two moons and sample each of them.")
    parser.add_argument("out", help="the picture to write")
    parser.add_argument("--steps", type=int, default=2000, help="number of optimizer steps")
    parser.add_argument("--samples", help="an .npz file to write the samples and their labels to")
    arguments = parser.parse_args()

    moons = jd.data.load("moons")
    denoiser = jd.guidance.classifier_free(train(moons.x, moons.labels, steps=arguments.steps), 0.5)
    labels = np.arange(1000) % 2
    samples = jd.sample(jax.random.key(2), denoiser, "dpm++2m", steps=20, shape=(2,), n=1000, cond=labels)
    figure = matplotlib.figure.Figure(figsize=(4, 4), layout="constrained")
    figure.subplots().scatter(*np.asarray(samples).T, s=3, c=labels, cmap="coolwarm")
    figure.savefig(arguments.out)
    if arguments.samples:
        np.savez(arguments.samples, samples=samples, labels=labels)


if __name__ == "__main__":
    main()
