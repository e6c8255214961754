"""Train a diffusion model of a swiss roll and sample from it, without the trainer, in about half a minute on two cores.

    python examples/minimal.py swissroll.png

The picture shows the data, the samples on their way from noise, and the samples.
"""

import argparse
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax

import jaxdiff as jd
from jaxdiff.models import MLP

# The forward process: x_t = α_t x_0 + σ_t n with Gaussian noise n, from the data at t = 0 to noise at t = 1.
PROCESS = jd.Gaussian(jd.schedules.VP())


def make_denoiser(model: MLP, params: dict) -> jd.Denoiser:
    """Return the network as a denoiser. It predicts the noise, and the denoiser makes (x̂_0, n̂) of that."""
    return jd.denoiser(model.apply, params, PROCESS, predicts="eps")


def batches(points: np.ndarray, size: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield random batches of the points, forever."""
    rng = np.random.default_rng(seed)
    while True:
        yield points[rng.integers(len(points), size=size)]


def train(points: np.ndarray, *, steps: int, batch_size: int = 512, learning_rate: float = 2e-3) -> jd.Denoiser:
    """Return a denoiser that was trained for `steps` optimizer steps."""
    model = MLP(width=128, depth=3)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, max(steps, 1)))
    opt_state = optimizer.init(params)

    def batch_loss(params: dict, x0: jax.Array, key: jax.Array) -> jax.Array:
        """Return the mean over the batch of |n − n̂|² at random times."""
        return jd.losses.batch(make_denoiser(model, params), x0, key=key, times="antithetic")

    @jax.jit
    def update(params: dict, opt_state: optax.OptState, x0: jax.Array, key: jax.Array) -> tuple:
        loss, gradient = jax.value_and_grad(batch_loss)(params, x0, key)
        changes, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, changes), opt_state, loss

    for step, x0 in zip(range(steps), batches(points, batch_size), strict=False):
        params, opt_state, loss = update(params, opt_state, x0, jax.random.fold_in(jax.random.key(1), step))
        if (step + 1) % 500 == 0:
            print(f"step {step + 1}  loss {loss:.3f}")
    return make_denoiser(model, params)


def draw(panels: dict[str, np.ndarray], path: str) -> None:
    """Save scatter plots of points side by side."""
    figure = matplotlib.figure.Figure(figsize=(4 * len(panels), 4), layout="constrained")
    for axis, (name, points) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axis.scatter(*points.T, s=2, linewidths=0)
        axis.set(title=name, xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a diffusion model of a swiss roll and sample from it.")
    parser.add_argument("out", help="the picture to write")
    parser.add_argument("--steps", type=int, default=2000, help="number of optimizer steps")
    parser.add_argument("--samples", help="an .npy file to write the samples to")
    arguments = parser.parse_args()

    points = jd.data.load("swissroll").x
    denoiser = train(points, steps=arguments.steps)
    # The spiral is thin, so that most of its detail is drawn at small t: "karras" puts more of the steps there.
    options = {"steps": 25, "timesteps": "karras", "shape": (2,), "n": 2000}
    samples = np.asarray(jd.sample(jax.random.key(2), denoiser, "heun", **options, trajectory=True))
    draw({"data": points[:2000], "step 18 of 25": samples[:, 18], "samples": samples[:, -1]}, arguments.out)
    if arguments.samples:
        np.save(arguments.samples, samples[:, -1])


if __name__ == "__main__":
    main()
