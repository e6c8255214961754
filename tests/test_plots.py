"""Pictures: the layout of image grids, atomic files, and the figure of a diffusion in the plane."""

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdiff import schedules
from jaxdiff.denoisers import analytic
from jaxdiff.experiment import plots
from jaxdiff.likelihood import Elbo
from jaxdiff.processes import Denoiser, Gaussian
from jaxdiff.samplers.batching import Sampling
from jaxdiff.typing import InputError


def grey(*values: float, size: int = 32, channels: int = 1) -> np.ndarray:
    return np.stack([np.full((size, size, channels), value, np.float32) for value in values])


def test_images_fill_rows_with_black_gaps():
    canvas = plots.image_grid(grey(-1, 0, 1, 1, 0), columns=3, least=32)
    assert canvas.dtype == np.uint8
    assert canvas.shape == (2 * 34 + 2, 3 * 34 + 2, 3)
    expected = np.zeros_like(canvas)
    for i, value in enumerate([0, 128, 255, 255, 128]):
        top, left = 2 + i // 3 * 34, 2 + i % 3 * 34
        expected[top : top + 32, left : left + 32] = value
    np.testing.assert_array_equal(canvas, expected)


@pytest.mark.parametrize(("n", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (5, 2, 3), (9, 3, 3), (10, 3, 4)])
def test_a_grid_is_about_square(n, rows, columns):
    assert plots.image_grid(grey(*[0.0] * n), least=32).shape == (rows * 34 + 2, columns * 34 + 2, 3)


@pytest.mark.parametrize(("size", "scale"), [(8, 4), (28, 2), (32, 1), (33, 1), (64, 1), (1, 32)])
def test_small_images_are_enlarged_by_a_whole_factor(size, scale):
    image = np.random.default_rng(0).uniform(-1, 1, (1, size, size, 1)).astype(np.float32)
    canvas = plots.image_grid(image, least=32)[2:-2, 2:-2, 0]
    assert canvas.shape == (size * scale, size * scale)
    np.testing.assert_array_equal(canvas, canvas[::scale, ::scale].repeat(scale, 0).repeat(scale, 1))
    np.testing.assert_array_equal(canvas[::scale, ::scale], np.round((image[0, ..., 0] + 1) * 127.5))


def test_values_beyond_the_range_are_clipped_and_colours_kept():
    image = np.zeros((1, 32, 32, 3), np.float32) + np.array([-7, 0.2, 7], np.float32)
    np.testing.assert_array_equal(plots.image_grid(image)[5, 5], [0, 153, 255])


@pytest.mark.parametrize("channels", [2, 4])
def test_other_numbers_of_channels_are_refused(channels):
    with pytest.raises(InputError, match=f"^images have {channels} channels; a picture needs 1 or 3$"):
        plots.image_grid(grey(0, channels=channels))


def test_no_images_are_refused():
    with pytest.raises(InputError, match=r"^images are empty; a picture needs at least 1$"):
        plots.image_grid(np.zeros((0, 8, 8, 1), np.float32))


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    first = plots.image_grid(grey(0.5))
    plots.save(path, first)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), first)

    def write_half(self, file, **_):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", write_half)
    with pytest.raises(OSError, match="no space left"):
        plots.save(path, plots.image_grid(grey(-0.5)))
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), first)


def at_zero(schedule: schedules.Schedule) -> Denoiser:
    """The exact denoiser of data that are all 0, so that x_t is noise alone."""
    return analytic.empirical(np.zeros((1, 2), np.float32), Gaussian(schedule))


def test_the_figure_of_a_diffusion_has_three_rows_of_pixels():
    denoiser = at_zero(schedules.Cosine(20))
    data = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)

    def draw(timesteps="uniform"):
        sampling = Sampling(sampler="ddpm", steps=10, timesteps=timesteps)
        return plots.diffusion_in_the_plane(jax.random.key(0), denoiser, data, sampling, times=(0.0, 0.5, 1.0))

    pixels = draw()
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    for third in np.array_split(pixels, 3):
        coloured = third.max(axis=-1).astype(int) - third.min(axis=-1)
        assert (coloured > 20).sum() > 200
    assert draw("quadratic").shape == pixels.shape
    assert (draw("quadratic") != pixels).any()


def test_the_drift_is_that_of_the_reverse_process():
    # For data at 0 the mean of the posterior is x_t·(α_t/α_s)·σ_s²/σ_t².
    schedule = schedules.VP()
    points = np.array([[1.0, -2.0], [0.5, 0.0]], np.float32)
    t, s = 0.6, 0.5
    ratio = schedule.alpha(t) / schedule.alpha(s) * schedule.sigma(s) ** 2 / schedule.sigma(t) ** 2
    found = plots.drift(at_zero(schedule), points, np.array([t, s]))
    np.testing.assert_allclose(found, points * (ratio - 1) / (t - s), rtol=1e-4)


def test_points_make_a_picture():
    pixels = plots.scatter(np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32))
    assert pixels.dtype == np.uint8
    assert pixels.min() < 200


def test_reconstructions_of_images_are_three_rows_and_latents_reach_from_minus_3_to_3():
    canvas = plots.reconstructions(grey(-1, 1), grey(-3, 3), grey(0, -1))
    expected = plots.image_grid(grey(-1, 1, -1, 1, 0, -1), columns=2)
    np.testing.assert_array_equal(canvas, expected)


def test_reconstructions_of_points_are_three_panels():
    points = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    pixels = plots.reconstructions(points, points, points).astype(int)
    assert pixels.shape[1] > 2 * pixels.shape[0]
    for third in np.array_split(pixels, 3, axis=1):
        assert (np.ptp(third, axis=-1) > 20).sum() > 500


def test_the_elbo_has_a_band_of_its_error_except_for_one_image():
    terms = np.exp(np.random.default_rng(0).normal(size=(8, 30)) - np.linspace(0, 5, 30)).astype(np.float32)
    many, one = (
        plots.elbo_over_time(Elbo(np.zeros(n, np.float32), terms[:n], np.zeros(n, np.float32))).astype(int)
        for n in (8, 1)
    )
    light = [((np.ptp(pixels, axis=-1) > 20) & (pixels.min(-1) > 120)).sum() for pixels in (many, one)]
    assert light[0] > 5 * light[1]
