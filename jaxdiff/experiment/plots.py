"""Pictures: grids of images, latents, the ELBO over time, and the three-row figure of a diffusion in the plane."""

import io
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from jaxdiff import samplers
from jaxdiff.evaluation import NoisyAccuracy
from jaxdiff.likelihood import Elbo
from jaxdiff.processes import Denoiser, Process, for_sample
from jaxdiff.samplers.ancestral import posterior_variances, reverse_step
from jaxdiff.samplers.batching import Sampling
from jaxdiff.schedules import check_times
from jaxdiff.typing import HostSamples, InputError, RandomKey, Scalar

Pixels = UInt8[np.ndarray, "height width 3"]
Points = Float[Array, "n 2"]
HostPoints = Float[np.ndarray, "n 2"]


def image_grid(
    images: Float[np.ndarray, "n height width channels"], *, columns: int | None = None, least: int = 56
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Return uint8 pixels of the images in rows, the last row padded with black.

    Args:
      images: values in [−1, 1] (clipped), 1 or 3 channels.
      columns: images per row; None for about √n.
      least: small images are enlarged by an integer factor to at least this many pixels per side.

    Raises:
      InputError: if there are no images, or they have neither 1 nor 3 channels.
    """
    n, height, width, channels = images.shape
    if n < 1:
        raise InputError("images are empty; a picture needs at least 1")
    if channels not in (1, 3):
        raise InputError(f"images have {channels} channels; a picture needs 1 or 3")
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    pixels = np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    scale = max(1, math.ceil(least / min(height, width)))
    pixels = np.broadcast_to(pixels, (n, height, width, 3)).repeat(scale, axis=1).repeat(scale, axis=2)
    gap = 2
    tall, wide = height * scale + gap, width * scale + gap
    canvas = np.zeros((rows * tall + gap, columns * wide + gap, 3), np.uint8)
    for i, image in enumerate(pixels):
        top, left = gap + i // columns * tall, gap + i % columns * wide
        canvas[top : top + height * scale, left : left + width * scale] = image
    return canvas


def save(path: Path, pixels: Pixels) -> None:
    """Write a PNG atomically."""
    partial = path.with_name(path.name + ".part")
    Image.fromarray(pixels).save(partial, format="PNG")
    partial.rename(path)


def accuracy_by_noise(found: NoisyAccuracy, *, classes: int) -> Pixels:
    """Plot the accuracy of a classifier of noisy samples over t and log-SNR; chance is the dashed line."""
    figure = matplotlib.figure.Figure(figsize=(5, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(found.times, found.accuracy, marker="o", markersize=4)
    axis.axhline(1 / classes, color="grey", linestyle="--", linewidth=1)
    axis.set(xlabel="t", ylabel=f"accuracy of {found.n}", ylim=(0, 1.02))
    above = axis.secondary_xaxis("top")
    above.set_xticks(found.times[::2], [f"{snr:.0f}" if np.isfinite(snr) else "∞" for snr in found.log_snr[::2]])
    above.set_xlabel("log-SNR")
    axis.grid(alpha=0.3)
    return _pixels(figure)


def scatter(points: HostPoints) -> Pixels:
    """Plot points in the plane."""
    figure = matplotlib.figure.Figure(figsize=(4, 4), layout="constrained")
    axis = figure.subplots()
    axis.scatter(points[:, 0], points[:, 1], s=2, alpha=0.5, linewidths=0)
    axis.set(aspect="equal")
    return _pixels(figure)


def reconstructions(x0: HostSamples, x1: HostSamples, again: HostSamples) -> Pixels:
    """Plot samples, their latents in units of σ_1, and their reconstructions: rows of images, or panels of points.

    Latents range from −3 (black) to 3 (white). The colour of a point is the angle of its original in all panels.
    """
    if x0.ndim == 4:
        return image_grid(np.concatenate([x0, x1 / 3, again]), columns=len(x0))
    figure = matplotlib.figure.Figure(figsize=(9, 3.2), layout="constrained")
    colours = np.arctan2(x0[:, 1], x0[:, 0])
    for axis, points, name in zip(
        figure.subplots(1, 3), (x0, x1, again), ("original", "latent", "reconstruction"), strict=True
    ):
        axis.scatter(points[:, 0], points[:, 1], c=colours, cmap="hsv", s=3, linewidths=0)
        axis.set(aspect="equal", title=name)
    return _pixels(figure)


def elbo_over_time(elbo: Elbo) -> Pixels:
    """Plot L_{t−1} in nats per image over t, with a band of two standard errors, on logarithmic axes."""
    steps = np.asarray(elbo.steps, np.float64)
    mean, k = steps.mean(0), np.arange(2, steps.shape[1] + 2)
    figure = matplotlib.figure.Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    t = k / k[-1]
    axis.plot(t, mean, linewidth=1)
    if len(steps) > 1:
        spread = 2 * steps.std(0, ddof=1) / math.sqrt(len(steps))
        axis.fill_between(t, np.maximum(mean - spread, mean.min() / 2), mean + spread, alpha=0.3, linewidth=0)
    axis.set(xscale="log", yscale="log", xlabel="t", ylabel="$L_{t-1}$ in nats")
    axis.grid(alpha=0.3)
    return _pixels(figure)


def drift(denoiser: Denoiser, points: HostPoints | Points, times: Float[np.ndarray, "2"]) -> Points:
    """Return the drift of the reverse process: the mean of its step from time t to s < t, less x_t, over t − s.

    Raises:
      InputError: if the times are outside [0, 1] or in another order.
    """
    check_times(*times)
    return _drift(denoiser, points, times)


@jax.jit
def _drift(denoiser: Denoiser, points: Points, times: Float[Array, "2"]) -> Points:
    t, s = times
    denoiser = for_sample(denoiser, jax.random.key(0), points.shape[1:])
    process, zero = denoiser.process, jnp.zeros(())
    _, posterior = posterior_variances(process.schedule, t, s)

    def one(x: Float[Array, "2"]) -> Float[Array, "2"]:
        mean = reverse_step(denoiser(x, t), process, t=t, s=s, removed=posterior, added=zero, z=jnp.zeros_like(x))
        return (mean - x) / (t - s)

    return jax.vmap(one)(points)


@jax.jit
def _corrupt(denoiser: Denoiser, points: Points, key: RandomKey, t: Scalar) -> Points:
    """Return the points at time t, with the same noise for every t."""

    def one(x0: Float[Array, "2"], key: RandomKey) -> Float[Array, "2"]:
        process: Process = for_sample(denoiser, key, x0.shape).process
        return process.corrupt(x0, process.sample_noise(key, x0.shape, t), t)

    return jax.vmap(one)(points, jax.random.split(key, len(points)))


def diffusion_in_the_plane(
    key: RandomKey,
    denoiser: Denoiser,
    data: HostPoints,
    sampling: Sampling,
    *,
    times: tuple[float, ...] = (0.0, 0.02, 0.06, 0.2, 0.5, 1.0),
) -> Pixels:
    """Plot the forward process, the reverse process and its drift in three rows, over several times.

    Args:
      key: draws the noise.
      denoiser: the model.
      data: points of the data set; as many are sampled.
      sampling: the sampler and its timesteps.
      times: the columns, moved to the nearest timestep of the sampler.

    Source: Sohl-Dickstein et al. 2015, "Deep Unsupervised Learning using Nonequilibrium Thermodynamics" (figure 1).
    """
    key_noise, key_samples = jax.random.split(key)
    visited = sampling.times(denoiser.process.schedule)
    columns = sorted({int(np.abs(visited - time).argmin()) for time in times}, reverse=True)
    path = samplers.sample(
        key_samples, denoiser, sampling.sampler, n=len(data), shape=(2,), timesteps=visited, trajectory=True
    )

    figure = matplotlib.figure.Figure(figsize=(2.2 * len(columns), 6.8), layout="constrained")
    axes = figure.subplots(3, len(columns), squeeze=False)
    for column, index in enumerate(columns):
        t = float(visited[index])
        forward = np.asarray(_corrupt(denoiser, data, key_noise, t))
        reach = max(2.5, float(np.quantile(np.abs(forward), 0.995)) * 1.1)
        for row, points in enumerate((forward, path[:, index])):
            axes[row, column].scatter(*np.asarray(points).T, s=1, alpha=0.4, linewidths=0, color=f"C{row}")
        side = np.linspace(-reach, reach, 15, dtype=np.float32)
        field = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
        if index < len(visited) - 1:
            arrows = drift(denoiser, field, visited[index : index + 2])
            axes[2, column].quiver(*field.T, *np.asarray(arrows).T, angles="xy", color="C2", width=0.006)
        else:
            axes[2, column].set_frame_on(False)  # the process ends here
        axes[0, column].set_title(f"t = {t:.2f}")
        for axis in axes[:, column]:
            axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
    for row, name in enumerate(("forward", "reverse", "drift")):
        axes[row, 0].set_ylabel(name)
    return _pixels(figure)


def _pixels(figure: matplotlib.figure.Figure) -> Pixels:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return np.asarray(Image.open(buffer).convert("RGB"))
