"""A run's folder, and a run loaded from it: what it samples, and how it refuses."""

import functools
import io
import json
import re
import shutil
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from tqdm import tqdm

import jaxdiff as jd
from jaxdiff import samplers, schedules
from jaxdiff.data import DataSpec
from jaxdiff.denoisers import analytic
from jaxdiff.experiment import Conditions, make_experiment, workdir
from jaxdiff.experiment.checkpoint import NoCheckpointError
from jaxdiff.experiment.conditions import Conditioning
from jaxdiff.loading import load
from jaxdiff.run import Run
from jaxdiff.samplers import batching
from jaxdiff.samplers.probability_flow import Solver
from jaxdiff.training.step import State
from jaxdiff.typing import InputError

POINTS = DataSpec(shape=(2,), levels=None)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> tuple[Path, State]:
    """A folder with what must be left of a run on digits, in another place than it was trained in; its last state."""
    folder = tmp_path_factory.mktemp("images")
    state = tiny.train_without_picture(tiny.config(base=tiny.IMAGES), folder)
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(folder / "checkpoints", copy / "checkpoints")
    shutil.copy(folder / "config.json", copy)
    shutil.rmtree(folder)
    return copy, state


@pytest.fixture(scope="module")
def run(images) -> Run:
    return load(str(images[0]))


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("points")
    tiny.train_without_picture(tiny.config({"train.steps": 10}), folder)
    return load(folder)


def test_a_run_is_loaded_from_its_folder_alone(run):
    assert run.step == 2
    assert run.config == tiny.config(base=tiny.IMAGES)
    assert run.process.schedule.num_timesteps == 20
    assert jd.load is load


@pytest.mark.thorough
@pytest.mark.usefixtures("unchecked")
def test_bits_per_dim_are_those_of_the_density_by_the_ode_and_little_more_by_the_elbo():
    """A run whose network is exact for N(0, 0.1): −log₂ p(x) − log₂ w a coordinate, for fine levels."""
    alpha_bar, levels, n = 1 / (1 + np.exp(-np.linspace(9, -9, 200))), 256, 512
    schedule = schedules.Discrete(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))
    exact = analytic.gaussian(np.zeros((2, 2, 1)), 0.1, schedule=schedule)
    run = run_of(exact, levels)
    x0 = jd.data.quantize(np.asarray(exact.data.sample(jax.random.key(5), n)), levels)
    terms = run.likelihood_terms(x0, batch=128)
    found = terms.summary()
    truth = -jax.vmap(lambda x: exact.log_density(x, 0.0))(x0) / (4 * np.log(2)) - np.log2(2 / (levels - 1))
    assert list(found) == ["elbo", "ode"]
    assert found["ode"][0] == pytest.approx(float(truth.mean()), abs=0.01)
    assert found["ode"][1] == pytest.approx(float(truth.std(ddof=1)) / np.sqrt(n), rel=0.05)
    assert 0 < found["elbo"][0] - found["ode"][0] < 0.5
    assert 0 < found["elbo"][1] < 0.1
    # The same for each image in another batch, with the last one filled up: to the ODE's tolerance.
    few = run.likelihood_terms(x0[:11], batch=8)
    np.testing.assert_allclose(few.ode, terms.ode[:11], rtol=0, atol=1e-3)
    for part, whole in zip(few.elbo, terms.elbo, strict=True):
        np.testing.assert_allclose(part, whole[:11], rtol=1e-4, atol=1e-5)


def run_of(denoiser: jd.Denoiser, levels: int | None) -> Run:
    """A run whose network is an exact denoiser of 2x2 images."""
    experiment = types.SimpleNamespace(
        shape=(2, 2, 1),
        process=lambda params: denoiser.process,
        network=lambda params: denoiser,
        classifies=False,
        classes=0,
        conditioning=Conditioning(classes=0, shapes={}, p={}),
        levels=levels,
        config=types.SimpleNamespace(cond=Conditions()),
    )
    experiment.in_float32 = lambda: experiment
    return Run(experiment=experiment, params=None, step=0)


@pytest.mark.thorough
@pytest.mark.usefixtures("unchecked")
def test_latents_of_a_run_are_exact():
    """Encoding N(0, 0.1) is a factor, so that what lies between two latents lies between the two samples."""
    run = run_of(analytic.gaussian(np.zeros((2, 2, 1)), 0.1, schedule=schedules.Flow()), None)
    x0 = 0.3 * np.random.default_rng(0).normal(size=(8, 2, 2, 1)).astype(np.float32)
    np.testing.assert_allclose(run.encode(x0, batch=8), x0 / np.sqrt(0.1), rtol=0, atol=1e-3)
    found = run.interpolate(x0[:4], x0[4:], steps=3, batch=8)
    assert found.shape == (4, 3, 2, 2, 1)
    halfway = jax.vmap(lambda a, b: jd.slerp(a, b, 0.5))(x0[:4], x0[4:])
    np.testing.assert_allclose(found, np.stack([x0[:4], halfway, x0[4:]], 1), rtol=0, atol=1e-3)
    with pytest.raises(InputError, match=r"^the ODE could not be solved past t = 0\.\d+ with rtol = 1e-05, .* 2 steps"):
        run.encode(x0, solver=Solver(max_steps=2))
    with pytest.raises(InputError, match="from 4 samples to 3"):
        run.interpolate(x0[:4], x0[5:])
    with pytest.raises(InputError, match="steps = 1; it must be 2 or more"):
        run.interpolate(x0[:4], x0[4:], steps=1)
    assert np.isfinite(run.interpolate(0 * x0[:1], 0 * x0[:1], steps=2)).all()


IMAGE = np.zeros((1, 8, 8, 1), np.float32)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (IMAGE[..., 0], r"samples have shape (1, 8, 8); this model takes (n, 8, 8, 1), n >= 1"),
        (IMAGE[:0], r"samples have shape (0, 8, 8, 1); this model takes (n, 8, 8, 1), n >= 1"),
        (IMAGE + np.inf, "samples have values that are not finite"),
        (IMAGE + 16, "images lie in [16, 16], beyond [-1, 1]; scale 0 ... 16 with jaxdiff.data.normalize(images, 17)"),
    ],
)
def test_unsuitable_images_are_refused(run, wrong, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        run.bits_per_dim(wrong)


@pytest.mark.thorough
def test_images_are_moved_to_the_nearest_levels(run):
    x0 = np.round(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 1)) * 8).astype(np.float32) / 8
    between = np.clip(x0 + 0.03, -1, 1)
    assert run.bits_per_dim(between, probes=1)["elbo"] == run.bits_per_dim(x0, probes=1)["elbo"]


def test_quantising_gives_the_nearest_level():
    levels = jd.data.normalize(np.arange(17), 17)
    spread = levels + np.random.default_rng(0).uniform(-0.06, 0.06, 17).astype(np.float32)
    np.testing.assert_array_equal(jd.data.quantize(spread, 17), levels)
    np.testing.assert_array_equal(jd.data.quantize(np.array([-7.0, 7.0]), 17), [-1, 1])


def test_test_examples_are_those_of_the_data_set(run):
    np.testing.assert_array_equal(
        run.test_examples(3), jd.data.normalize(jd.data.load("digits", split="test").x[:3], 17)
    )
    with pytest.raises(InputError, match="n = 298, but the test split of digits has 297 examples"):
        run.test_examples(298)


@pytest.mark.thorough
def test_points_have_no_bits(points, run):
    with pytest.raises(InputError, match="images with a finite number of levels"):
        points.bits_per_dim(np.zeros((2, 2), np.float32))
    with pytest.raises(InputError, match="probes = 0"):
        run.bits_per_dim(np.zeros((2, 8, 8, 1), np.float32), probes=0)


def test_the_weights_are_the_averaged_ones(images, run):
    tiny.assert_identical(run.params, images[1].ema)
    assert tiny.difference(images[1].ema, images[1].params) > 1e-4


def test_samples_are_float32_images_in_the_range_of_the_data(run):
    x = run.sample(jax.random.key(0), n=3)
    assert x.dtype == np.float32
    assert x.shape == (3, 8, 8, 1)
    assert -1 <= x.min() < -0.1
    assert 0.1 < x.max() <= 1


@pytest.mark.thorough
def test_the_config_decides_whether_samples_are_clipped(run):
    key = jax.random.key(0)
    reach = {}
    for clip in ("none", "dynamic"):
        changed = tiny.config({"sampling.clip": clip}, base=tiny.IMAGES)
        experiment = make_experiment(changed, DataSpec(shape=(8, 8, 1), levels=17))
        x = Run(experiment=experiment, params=run.params, step=0).sample(key, n=8)
        reach[clip] = np.abs(x).max()
    assert reach["none"] > 1 >= reach["dynamic"]


@pytest.mark.thorough
def test_a_sample_depends_on_its_key_alone_whatever_the_batch(points):
    key = jax.random.key(3)
    whole = points.sample(key, n=21)
    for n, batch in [(21, 8), (21, 3), (5, 64), (17, 16)]:
        np.testing.assert_allclose(points.sample(key, n=n, batch=batch), whole[:n], rtol=1e-5, atol=1e-5)
    assert np.abs(points.sample(jax.random.key(4), n=21) - whole).max() > 0.1
    assert len(np.unique(whole[:, 0])) == 21


def test_run_sample_is_jaxdiff_sample_with_the_denoiser(points):
    key = jax.random.key(0)
    expected = jd.sample(key, points.denoiser, samplers.DDIM(eta=0.5), steps=7, timesteps="quadratic", shape=(2,), n=5)
    found = points.sample(key, n=5, sampler="ddim:eta=0.5", steps=7, timesteps="quadratic")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    found = points.sample(key, n=5, sampler=samplers.DDIM(eta=0.5), steps=7, timesteps="quadratic")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_defaults_are_those_of_the_config(points):
    key = jax.random.key(0)
    found = points.sample(key, n=4, sampler="ddim", steps=4, timesteps="uniform")
    np.testing.assert_array_equal(points.sample(key, n=4), found)
    assert np.abs(points.sample(key, n=4, steps=8) - found).max() > 1e-4


def test_times_can_be_given(points):
    key = jax.random.key(0)
    by_name = points.sample(key, n=4, steps=4)
    np.testing.assert_allclose(
        points.sample(key, n=4, timesteps=[1.0, 0.75, 0.5, 0.25, 0.0]), by_name, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": 3}, "labels = 3, but this model is unconditional: it was trained without labels"),
        ({"labels": 0}, "labels = 0, but this model is unconditional"),
        ({"steps": 0}, "steps = 0; it must be 1 or more"),
        ({"steps": 21}, "steps = 21, but the schedule has 20 timesteps; use at most 20 steps"),
        ({"steps": 2, "timesteps": [1.0, 0.0]}, "steps = 2, but 2 timesteps are given, which make 1 steps"),
        ({"timesteps": [0.5, 1.0]}, "timesteps = [0.5, 1.0]; the times must fall strictly"),
        ({"sampler": "dimd"}, "sampler = 'dimd'; the known ones are adaptive, ddim, ddpm"),
        ({"sampler": ""}, "sampler = ''; the known ones are adaptive, ddim, ddpm"),
        ({"timesteps": "unifrm"}, "timesteps = 'unifrm'; the known ones are "),
        ({"n": 0}, "n = 0; it must be 1 or more"),
        ({"batch": 0}, "batch = 0; it must be 1 or more"),
    ],
)
def test_what_cannot_be_sampled_is_refused(points, arguments, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        points.sample(jax.random.key(0), **{"n": 4, **arguments})


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_key_no_solver_and_no_samples_is_refused(points, run):
    x0 = np.zeros((2, 2), np.float32)
    for use in (lambda key: points.sample(key, n=2), lambda key: run.likelihood_terms(IMAGE, key=key)):
        for key in ("a", 0, jax.random.split(jax.random.key(0))):
            with pytest.raises(InputError, match=r"^key = "):
                use(key)
    with pytest.raises(InputError, match=r"^solver = 'heun'"):
        points.encode(x0, solver="heun")
    for wrong in (x0 + 1j, x0 > 0, x0.astype(str), [[1.0, 2.0], [3.0]], [["a", "b"]]):
        for use in (points.encode, points.decode, functools.partial(points.image_to_image, jax.random.key(0))):
            with pytest.raises(InputError, match=r"^samples (=|have dtype)"):
                use(wrong)
    np.testing.assert_array_equal(points.encode(x0.astype(int)), points.encode(x0))
    for t in ("0.5", None, True):
        with pytest.raises(InputError, match=r"^t = .*; it must be a number"):
            points.image_to_image(jax.random.key(0), x0, t=t)


def test_a_misspelt_option_is_refused_where_others_are_passed_on(points):
    x0 = np.zeros((2, 2), np.float32)
    for call in (points.inpaint, functools.partial(points.image_to_image, t=0.5)):
        arguments = (x0, np.array([True, False])) if call == points.inpaint else (x0,)
        with pytest.raises(InputError, match=r"^stepz is not an option of sampling; did you mean 'steps'\?"):
            call(jax.random.key(0), *arguments, stepz=3)


@pytest.fixture
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal shows of progress bars."""
    terminal = io.StringIO()
    monkeypatch.setattr(batching, "tqdm", lambda *, disable, **options: tqdm(file=terminal, **options))
    return terminal


def test_progress_is_shown_to_the_end_and_not_beyond(points, on_a_terminal):
    for _ in range(2):
        shown = points.sample(jax.random.key(0), n=17, batch=8, steps=5, progress=True)
        assert "| 15/15 " in on_a_terminal.getvalue().split("\r")[-1]
        on_a_terminal.truncate(0)
    np.testing.assert_array_equal(points.sample(jax.random.key(0), n=17, batch=8, steps=5), shown)
    assert on_a_terminal.getvalue() == ""


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    fix = "give the folder of a training run, its --workdir"
    message = f"workdir = {tmp_path} is not a run: it has no config.json; {fix}"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load(tmp_path)
    with pytest.raises(InputError, match="is not a run"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_without_a_checkpoint_yet_is_refused(tmp_path, begun):
    workdir.write(tmp_path, tiny.config(), POINTS)
    if begun:
        (tmp_path / "checkpoints").mkdir()
    with pytest.raises(NoCheckpointError, match=r"/checkpoints holds no checkpoint yet; train until the first one is"):
        load(tmp_path)
    assert (tmp_path / "checkpoints").exists() == begun


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"[]", "list indices"),
        (b'{"config": {}}', "'data'"),
        (b"\xff\xfe", "can't decode"),
        (None, "train.stepz is not a field of the config; did you mean 'steps'?"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(tmp_path, content, reason):
    workdir.write(tmp_path, tiny.config(), POINTS)
    path = tmp_path / "config.json"
    path.write_bytes(path.read_bytes().replace(b'"steps": 30', b'"stepz": 30') if content is None else content)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))} is damaged, or another version .*") as error:
        load(tmp_path)
    assert reason in str(error.value)


def test_the_folder_says_what_the_run_is(tmp_path):
    folder, spec = tmp_path / "new" / "run", DataSpec(shape=(8, 8, 1), levels=17)
    workdir.prepare(folder, tiny.config())
    assert list(folder.iterdir()) == []
    workdir.write(folder, tiny.config(), spec)
    assert workdir.read(folder) == (tiny.config(), spec)
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "changes",
    [
        {"train.steps": 40},
        {"train.fsdp": 2},
        {"train.steps_per_dispatch": 2},
        {"data.dir": "elsewhere"},
        {"data.on_device": False},
        {"every.log": 5, "every.keep": 1},
        {"sampling.steps": 3, "sampling.sampler": "ddpm"},
    ],
)
def test_a_run_goes_on_with_what_does_not_change_its_steps(tmp_path, changes):
    workdir.write(tmp_path, tiny.config(), POINTS)
    workdir.prepare(tmp_path, tiny.config(changes))


def test_a_run_of_another_config_is_refused_with_every_difference(tmp_path):
    workdir.write(tmp_path, tiny.config(), POINTS)
    before = (tmp_path / "config.json").read_text()
    other = tiny.config({"model.width": 4, "train.seed": 1, "train.steps": 40, "data.name": "moons"})
    expected = (
        f"workdir = {tmp_path} holds a run of another config:\n"
        "  data.name: 'swissroll' -> 'moons'\n"
        "  model.width: 16 -> 4\n"
        "  train.seed: 0 -> 1\n"
        "choose another folder, or set these back to go on with that run"
    )
    with pytest.raises(InputError, match=f"^{re.escape(expected)}$"):
        workdir.prepare(tmp_path, other)
    assert (tmp_path / "config.json").read_text() == before
    assert json.loads(before)["config"] == json.loads(json.dumps(tiny.config().to_mapping()))


def test_a_folder_that_cannot_be_written_is_refused():
    with pytest.raises(
        ValueError, match=r"^workdir = /dev/null/x can't be written \(Not a directory\); choose another"
    ):
        workdir.prepare(Path("/dev/null/x"), tiny.config())
