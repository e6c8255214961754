"""Pictures: samples of any shape, latents, the ELBO over time, and the three-row figure of a diffusion in the plane."""

import io
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jaxdiff.evaluation import NoisyAccuracy
from jaxdiff.likelihood import Elbo
from jaxdiff.processes import Denoiser, Process, for_sample
from jaxdiff.samplers.ancestral import posterior_variances, reverse_step
from jaxdiff.samplers.batching import Sampling, sample_at
from jaxdiff.schedules import check_times
from jaxdiff.storage import AnyPath, replacing
from jaxdiff.typing import HostSamples, InputError, RandomKey, Scalar, Shape

Pixels = UInt8[np.ndarray, "height width 3"]
Points = Float[Array, "n 2"]
HostPoints = Float[np.ndarray, "n 2"]


def has_picture(shape: Shape) -> bool:
    """Return whether `draw` has a picture of samples of this shape: if they have at most 4 axes."""
    return len(shape) <= 4


def draw(samples: HostSamples, *, columns: int | None = None) -> Pixels | None:
    """Draw samples of any shape; return None if `has_picture` is False.

    Points (d,) give the scatter plot of their first two coordinates, or a histogram if d = 1. Signals (length,
    channels) are lines in a grid, with one colour for each channel and one scale for all. Images (height, width,
    channels) are tiles of `image_grid`; of other than 1 or 3 channels, each is a grey tile beside the others. A volume
    (depth, height, width, channels) is drawn as three images side by side: its middle slices across the depth, the
    height and the width.

    A row of the grid has `columns` samples, None for about √n. If `columns` is given, each row of points has its own
    colour, and points of one number lie at the height of their row.

    Raises:
      InputError: if there are no samples, or a sample has no values.
    """
    if not samples.size:
        raise InputError(f"samples have shape {samples.shape}; a picture needs at least 1 value")
    if not has_picture(samples.shape[1:]):
        return None
    if samples.ndim <= 2:
        return scatter(samples.reshape(len(samples), -1), columns=columns)
    if samples.ndim == 3:
        return _lines(samples, columns)
    if samples.ndim == 5:
        samples = _side_by_side([samples.take(size // 2, axis) for axis, size in enumerate(samples.shape[1:4], 1)])
    if samples.shape[-1] not in (1, 3):
        samples = _side_by_side(np.split(samples, samples.shape[-1], axis=-1))
    return image_grid(samples, columns=columns)


def _side_by_side(images: list[Float[np.ndarray, "n _ _ channels"]]) -> Float[np.ndarray, "n _ _ channels"]:
    """Each sample's images in one, with a grey column between them and black below the lower ones."""
    height, parts = max(image.shape[1] for image in images), []
    for image in images:
        image = np.pad(image, ((0, 0), (0, height - image.shape[1]), (0, 0), (0, 0)), constant_values=-1)
        parts.append(np.pad(image, ((0, 0), (0, 0), (0, 1), (0, 0))))
    return np.concatenate(parts, axis=2)[:, :, :-1]


def _lines(signals: Float[np.ndarray, "n length channels"], columns: int | None) -> Pixels:
    """Plot each signal in a cell of a grid, all with the same scale."""
    from matplotlib.collections import LineCollection

    n, length, channels = signals.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows, pitch = math.ceil(n / columns), 1.1  # of cells of size 1
    finite = signals[np.isfinite(signals)].astype(np.float64)
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    left, top = np.arange(n) % columns * pitch, np.arange(n) // columns * -pitch
    x = left[:, None] + np.linspace(0, 1, length)
    y = top[:, None, None] + (signals.astype(np.float64) - low) / ((high - low) or 1.0)
    # An upper limit in inches, as Matplotlib refuses pictures of 2^16 pixels.
    figure, axis = _figure(min(max(3, 1.2 * columns), 40), min(max(1.5, 0.9 * rows), 40))
    for channel in range(channels):
        lines = np.stack([x, y[:, :, channel]], axis=-1)
        color = f"C{channel % 10}"
        axis.add_collection(LineCollection(list(lines), colors=color, linewidths=0.8))
        if length == 1:
            axis.scatter(x, y[:, :, channel], s=4, color=color)
    edges = (pitch - 1) / 2
    axis.set(xlim=(-edges, columns * pitch - edges), ylim=(1 + edges - rows * pitch, 1 + edges))
    axis.set_xticks(np.arange(columns + 1) * pitch - edges, [])
    axis.set_yticks(np.arange(rows + 1) * -pitch + 1 + edges, [])
    axis.set_xlabel(f"{length} positions, values from {low:.3g} to {high:.3g}")
    axis.grid(alpha=0.5)
    return _pixels(figure)


def image_grid(
    images: Float[np.ndarray, "n height width channels"], *, columns: int | None = None, least: int = 56
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Return the images in rows as uint8 pixels, the last row padded with black.

    Values are clipped to [−1, 1], and NaN is black. A row has `columns` images, None for about √n. Small images are
    enlarged by an integer factor to at least `least` pixels per side. Raises an InputError if there are no images, or
    their channels are neither 1 nor 3.
    """
    n, height, width, channels = images.shape
    if n < 1:
        raise InputError("images are empty; a picture needs at least 1")
    if channels not in (1, 3):
        raise InputError(f"images have {channels} channels; a picture needs 1 or 3")
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    pixels = np.round((np.clip(np.nan_to_num(images, nan=-1), -1, 1) + 1) * 127.5).astype(np.uint8)
    scale = max(1, math.ceil(least / min(height, width)))
    pixels = np.broadcast_to(pixels, (n, height, width, 3)).repeat(scale, axis=1).repeat(scale, axis=2)
    gap = 2
    tall, wide = height * scale + gap, width * scale + gap
    canvas = np.zeros((rows * tall + gap, columns * wide + gap, 3), np.uint8)
    for i, image in enumerate(pixels):
        top, left = gap + i // columns * tall, gap + i % columns * wide
        canvas[top : top + height * scale, left : left + width * scale] = image
    return canvas


def save(path: AnyPath, pixels: Pixels, *, software: str | None = None) -> None:
    """Write a PNG whole or not at all; `software` becomes its text of that name."""
    text = PngInfo()
    if software is not None:
        text.add_text("Software", software)
    with replacing(path) as file:
        Image.fromarray(pixels).save(file, format="PNG", pnginfo=text)


def accuracy_by_noise(found: NoisyAccuracy, *, classes: int) -> Pixels:
    """Plot the accuracy of a classifier of noisy samples over t and log-SNR; chance is the dashed line."""
    figure, axis = _figure(5, 3.2)
    axis.plot(found.times, found.accuracy, marker="o", markersize=4)
    axis.axhline(1 / classes, color="grey", linestyle="--", linewidth=1)
    axis.set(xlabel="t", ylabel=f"accuracy of {found.n}", ylim=(0, 1.02))
    above = axis.secondary_xaxis("top")
    above.set_xticks(found.times[::2], [f"{snr:.0f}" if np.isfinite(snr) else "∞" for snr in found.log_snr[::2]])
    above.set_xlabel("log-SNR")
    axis.grid(alpha=0.3)
    return _pixels(figure)


def scatter(points: Float[np.ndarray, "n d"], *, columns: int | None = None) -> Pixels:
    """Plot points by their first two coordinates, or as a histogram if they have only one; see `draw`."""
    figure, axis = _figure(4, 4)
    if columns is None:
        _points(axis, points, s=2, alpha=0.5)
    else:
        row = np.arange(len(points)) // columns
        points = points if points.shape[1] > 1 else np.stack([points[:, 0], -row.astype(points.dtype)], axis=1)
        axis.scatter(points[:, 0], points[:, 1], c=row, cmap="turbo", s=8, linewidths=0)
    return _pixels(figure)


def reconstructions(x0: HostSamples, x1: HostSamples, again: HostSamples) -> Pixels | None:
    """Plot samples, their latents in units of σ_1, and their reconstructions: rows of samples, or panels of points.

    Latents of images and volumes range from −3 (black) to 3 (white). The colour of a point is the angle of its original
    in all panels. The picture is None if `draw` has none.
    """
    if x0.ndim > 2:
        return draw(np.concatenate([x0, x1 / 3 if x0.ndim > 3 else x1, again]), columns=len(x0))
    figure, axes = _figure(9, 3.2, columns=3)
    x0, x1, again = (points.reshape(len(points), -1) for points in (x0, x1, again))
    colours = np.arctan2(x0[:, min(1, x0.shape[1] - 1)], x0[:, 0])
    panels = {"original": x0, "latent": x1, "reconstruction": again}
    for axis, (name, points) in zip(axes, panels.items(), strict=True):
        _points(axis, points, c=colours, cmap="hsv", s=3)
        axis.set(title=name)
    return _pixels(figure)


def _points(axis: Any, points: Float[np.ndarray, "n d"], **style: Any) -> None:
    """Plot the first two coordinates of points on these axes, or a histogram of the only one."""
    if points.shape[1] == 1:
        axis.hist(points[np.isfinite(points)].astype(np.float64), bins=50)
        return
    axis.scatter(points[:, 0], points[:, 1], linewidths=0, **style)
    if points.shape[1] == 2:
        axis.set(aspect="equal")


def elbo_over_time(elbo: Elbo) -> Pixels:
    """Plot L_{t−1} in nats per image over t, with a band of two standard errors, on logarithmic axes."""
    steps = np.asarray(elbo.steps, np.float64)
    mean, k = steps.mean(0), np.arange(2, steps.shape[1] + 2)
    figure, axis = _figure(6.4, 4)
    t = k / k[-1]
    axis.plot(t, mean, linewidth=1)
    if len(steps) > 1:
        spread = 2 * steps.std(0, ddof=1) / math.sqrt(len(steps))
        axis.fill_between(t, np.maximum(mean - spread, mean.min() / 2), mean + spread, alpha=0.3, linewidth=0)
    axis.set(xscale="log", yscale="log", xlabel="t", ylabel="$L_{t-1}$ in nats")
    axis.grid(alpha=0.3)
    return _pixels(figure)


def drift(denoiser: Denoiser, points: HostPoints | Points, times: Float[np.ndarray, "2"]) -> Points:
    """Return the drift of the reverse process, (E[x_s|x_t] − x_t)/(t − s), for times t > s in [0, 1]."""
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
    """The points at time t, with the same noise for every t."""

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

    The forward process starts from the points of `data`; as many are sampled. `times` are the columns, moved to the
    nearest timesteps of the sampler.

    Source: Sohl-Dickstein et al. 2015, "Deep Unsupervised Learning using Nonequilibrium Thermodynamics" (figure 1).
    """
    key_noise, key_samples = jax.random.split(key)
    visited = sampling.times(denoiser.process.schedule)
    columns = sorted({int(np.abs(visited - time).argmin()) for time in times}, reverse=True)
    path = sample_at(key_samples, denoiser, sampling, shape=(2,), n=len(data), at=columns[::-1])
    figure, axes = _figure(2.2 * len(columns), 6.8, rows=3, columns=len(columns))
    axes = axes.reshape(3, -1)
    for column, index in enumerate(columns):
        t = float(visited[index])
        forward = np.asarray(_corrupt(denoiser, data, key_noise, t))
        reach = max(2.5, float(np.quantile(np.abs(forward), 0.995)) * 1.1)
        for row, points in enumerate((forward, path[index])):
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


def _figure(width: float, height: float, *, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """Return a figure of Matplotlib and its axes. Imports Matplotlib here, since images need none of it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns)


def _pixels(figure: Any) -> Pixels:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return np.asarray(Image.open(buffer).convert("RGB"))
