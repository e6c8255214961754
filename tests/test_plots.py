"""Pictures: samples of any shape, the layout of image grids, files, and the figure of a diffusion in the plane."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


SHAPES = st.integers(0, 5).flatmap(lambda axes: st.tuples(*[st.integers(1, 4)] * axes))
SCALES = st.sampled_from([0.0, 1e-45, 1e-6, 1.0, 1e38])
ODD = st.sampled_from([np.nan, np.inf, -np.inf, 3e38, 0.0])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=SHAPES, n=st.integers(1, 5), columns=st.sampled_from([None, 1, 3]), scale=SCALES, odd=ODD)
@pytest.mark.thorough
def test_samples_of_any_shape_and_values_have_a_picture_or_none(shape, n, columns, scale, odd):
    samples = (np.random.default_rng(0).normal(size=(n, *shape)) * scale).clip(-3e38, 3e38).astype(np.float32)
    samples.reshape(-1)[:: max(1, samples.size // 2)] = odd
    for pixels in (plots.draw(samples, columns=columns), plots.reconstructions(samples, samples, samples)):
        assert (pixels is not None) == plots.has_picture(shape) == (len(shape) <= 4)
        assert pixels is None or (pixels.dtype == np.uint8 and pixels.shape[2] == 3)


@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (0, 8, 8, 1), (3, 8, 0, 1), (0, 5, 2)])
def test_no_values_are_refused(shape):
    with pytest.raises(InputError, match=r"^samples have shape .* at least 1"):
        plots.draw(np.zeros(shape, np.float32))


def test_images_and_points_in_the_plane_are_drawn_as_they_are():
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        images = rng.uniform(-1, 1, (5, 8, 6, channels)).astype(np.float32)
        np.testing.assert_array_equal(plots.draw(images, columns=2), plots.image_grid(images, columns=2))
    points = rng.normal(size=(100, 2)).astype(np.float32)
    np.testing.assert_array_equal(plots.draw(points), plots.scatter(points))


def test_other_channels_are_grey_tiles_side_by_side():
    canvas = plots.draw(np.stack([grey(value)[0, ..., 0] for value in (-1, 1, 0.2, 1)], axis=-1)[None])
    assert (canvas == canvas[..., :1]).all()
    line = canvas[canvas.shape[0] // 2, :, 0]
    changes = line[np.flatnonzero(np.diff(line.astype(int), prepend=-1))]
    assert changes.tolist() == [0, 128, 255, 128, 153, 128, 255, 0]  # the tiles, with grey lines between them


def test_a_volume_is_its_three_middle_slices():
    volume = np.full((1, 5, 7, 9, 1), -1, np.float32)
    volume[:, 2] = 0.2  # the whole first slice, and a line of each other slice
    canvas = plots.draw(volume)
    scale = 8  # 56 over 7, the height of the picture
    assert canvas.shape == (7 * scale + 4, (9 + 1 + 9 + 1 + 7) * scale + 4, 3)
    small = canvas[2:-2:scale, 2:-2:scale, 0]
    assert (small[:, :9] == 153).all()
    for slice_ in (small[:, 10:19], small[:, 20:]):
        assert (slice_[2] == 153).all()
        assert (np.delete(slice_, 2, axis=0) == 0).all()


def test_every_channel_of_a_signal_is_a_line_in_a_cell_of_its_own_colour():
    flat = np.zeros((6, 20, 2), np.float32)
    flat[..., 1] = 1
    pixels = plots.draw(flat, columns=3).astype(int)
    blue, orange = (np.abs(pixels - colour).sum(-1) < 60 for colour in ([31, 119, 180], [255, 127, 14]))
    for lines in (blue, orange):
        rows = np.flatnonzero(lines.sum(1) > pixels.shape[1] // 2)
        assert len(np.flatnonzero(np.diff(rows, prepend=-9) > 1)) == 2  # a row of the grid each
        assert len(np.flatnonzero(np.diff(np.flatnonzero(lines[rows[0]]), prepend=-9) > 1)) == 3
    assert np.flatnonzero(orange.any(1))[0] < np.flatnonzero(blue.any(1))[0]  # 1 is above 0


def test_many_signals_in_a_row_are_drawn():
    assert plots.draw(np.zeros((900, 2, 1), np.float32), columns=900).shape[1] < 2**14


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


@pytest.mark.thorough
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
