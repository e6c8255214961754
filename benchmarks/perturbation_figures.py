"""Draw digits under every noise distribution and transform, and a set of points under several.

    python benchmarks/perturbation_figures.py

writes docs/pictures/perturbed_digits.png and docs/pictures/perturbed_points.png. Nothing is trained; 40 s on one core.
"""

from pathlib import Path

import jax
import matplotlib.figure
import numpy as np
from results import write_figure

import jaxdiff as jd
from jaxdiff import data, noise, parameterization, registry, transforms

PICTURES = Path("docs/pictures")
MUCH = jd.schedules.Cosine(num_timesteps=1000)
LITTLE, LEAST = (jd.schedules.VE(sigma_min=most / 10, sigma_max=most) for most in (0.5, 0.05))
NOISES = ("normal", "laplace", "uniform", "exponential", "gamma:shape=2", "poisson:rate=2", "bernoulli", "blue", "pink")
TRANSFORMS = (
    "shift:pixels=(3,4)",
    "flip",
    "quarter_turns:turns=2",
    "warp:angle=1.57",
    "warp:zoom=3",
    "blur:width=4",
    "mask",
    "pixelate:blocks=(2,4,8)",
)
TIMES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


def path(process: jd.Perturbed, x0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x_t of each sample at `TIMES`, with the same ε and parameters at all times, and the noise at the last."""

    @jax.jit
    @jax.vmap
    def one(x: jax.Array, key: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        of_sample = process.for_sample(jax.random.fold_in(key, 1), x.shape)
        noises = [of_sample.sample_noise(key, x.shape, t) for t in TIMES]
        return [of_sample.corrupt(x, n, t) for n, t in zip(noises, TIMES, strict=True)], noises[-1]

    found, last = one(x0, jax.random.split(jax.random.key(0), len(x0)))
    return np.stack(found), np.asarray(last)


def digits() -> matplotlib.figure.Figure:
    """Draw a row for each noise distribution and each transform: x_t over t, and the target of the network."""
    dataset = data.load("digits")
    images = np.asarray(data.normalize(dataset.x, dataset.levels))
    figure = matplotlib.figure.Figure(figsize=(14, 8))
    noises = {name: registry.make("noise", name, noise.NOISES) for name in NOISES}
    noises["laplace, then uniform"] = noise.Mixture(noise.Laplace(), noise.Uniform())
    named = {name: registry.make("transform", name, transforms.TRANSFORMS) for name in TRANSFORMS}
    named["overlap"] = transforms.RandomOverlap(images[10:])
    named["flip, then blur"] = transforms.Compose((transforms.Flip(), transforms.Blur(4.0)))
    blocks = [
        {name: jd.Perturbed(MUCH, noise=h) for name, h in noises.items()},
        {name: jd.Perturbed(LITTLE, transform=g) for name, g in named.items()},
    ]
    widths = {"width_ratios": [1.0] * len(TIMES) + [0.4, 1.0], "wspace": 0.06, "hspace": 0.06}
    for place, block in zip(figure.subfigures(1, 2), blocks, strict=True):
        axes = place.subplots(len(block), len(TIMES) + 2, gridspec_kw=widths)
        place.subplots_adjust(left=0.24, right=0.99, top=0.96, bottom=0.005)
        for row, (name, process) in zip(axes, block.items(), strict=True):
            x, last = path(process, images[3:4])
            eps = parameterization.natural(process.transform) == "eps"
            row[-2].set_axis_off()
            for axis, image in zip(np.delete(row, -2), [*x[:, 0], last[0] if eps else images[3]], strict=True):
                axis.imshow(image[..., 0], cmap="gray", vmin=-1.3, vmax=1.3, aspect="auto")
                axis.set(xticks=[], yticks=[])
            row[0].set_ylabel(f"{name} ", rotation=0, ha="right", va="center")
            row[-1].set_ylabel("n" if eps else "$x_0$", rotation=0, ha="right", va="center", color="C3")
        for axis, t in zip(axes[0], TIMES, strict=False):
            axis.set_title(f"t = {t:g}", fontsize=10)
        axes[0, -1].set_title("target", fontsize=10, color="C3")
    return figure


def points() -> matplotlib.figure.Figure:
    """Draw a swiss roll over t, a row for each process; every point keeps the color of its place on the roll."""
    roll = data.load("swissroll").x[:2000]
    others = data.load("moons").x[:2000]
    rotation = transforms.Rotation(np.pi)
    rotation_scale = transforms.Compose((rotation, transforms.Scale((0.4, 1.2))))
    processes = {
        "normal noise": jd.Perturbed(jd.schedules.VP()),
        "Laplace noise": jd.Perturbed(jd.schedules.VP(), noise=noise.Laplace()),
        "exponential noise": jd.Perturbed(jd.schedules.VP(), noise=noise.Exponential()),
        "overlap with moons": jd.Perturbed(LEAST, transform=transforms.RandomOverlap(others)),
        "rotation": jd.Perturbed(LEAST, transform=rotation),
        "rotation, scale\nand uniform noise": jd.Perturbed(LITTLE, transform=rotation_scale, noise=noise.Uniform()),
    }
    figure = matplotlib.figure.Figure(figsize=(2 * len(TIMES), 2 * len(processes)), layout="constrained")
    axes = figure.subplots(len(processes), len(TIMES))
    for axis, t in zip(axes[0], TIMES, strict=True):
        axis.set_title(f"t = {t:g}")
    for row, (name, process) in zip(axes, processes.items(), strict=True):
        x, _ = path(process, roll)
        for axis, at in zip(row, x, strict=True):
            axis.scatter(*at.T, c=np.hypot(*roll.T), cmap="turbo", s=2, linewidths=0)
            axis.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], aspect="equal")
        row[0].set_ylabel(name)
    return figure


def main() -> None:
    for name, figure in {"perturbed_digits": digits(), "perturbed_points": points()}.items():
        write_figure(PICTURES / f"{name}.png", figure, dpi=72)
        print(PICTURES / f"{name}.png")


if __name__ == "__main__":
    main()
