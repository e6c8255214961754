"""Runs whose process is made from the data, what their folder keeps, and the table of the perturbed configs."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxdiff as jd
from jaxdiff import data, evaluation
from jaxdiff.data import DataSpec
from jaxdiff.experiment import make_experiment
from jaxdiff.experiment import workdir as folder
from jaxdiff.processes import for_sample
from jaxdiff.samplers.loop import sample_keys
from jaxdiff.training import loop

CHANGES = {
    "process": {
        "name": "perturbed",
        "transform": ("scale:factor=0.5", "overlap"),
        "start": "fitted",
        "condition_on_transform": True,
    },
    "schedule": {"name": "ve", "sigma_max": 0.3},
    "predicts": "x0",
    "loss": {"target": "x0"},
    "sampling.sampler": "deterministic",
    "every.checkpoint": 5,
}


@pytest.fixture(scope="module", autouse=True)
def no_picture():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_picture", lambda *_: np.zeros((2, 2, 3), np.uint8))
        yield


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """The folder of a run of 5 steps of 10."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    loop.train(tiny.config({**CHANGES, "train.steps": 5}), workdir)
    return workdir


@pytest.fixture
def copy(stopped, tmp_path) -> Path:
    return shutil.copytree(stopped, tmp_path / "copy")


@pytest.mark.thorough
def test_a_run_needs_its_folder_alone_to_sample_and_its_process_is_made_from_the_data(stopped, monkeypatch):
    x = data.load("swissroll").x
    monkeypatch.setattr(data, "load", None)
    run = jd.load(stopped)
    others, start = run.process.transform.parts[1].others, run.process.start
    assert others.shape == (2048, 2)
    assert len(np.unique(others, axis=0)) == 2048
    assert {tuple(point) for point in others} <= {tuple(point) for point in x}
    np.testing.assert_allclose(start.mean, others.mean(0), rtol=1e-5)
    np.testing.assert_allclose(start.factors.T @ start.factors, np.cov(others.T), rtol=1e-5)
    samples = run.sample(jax.random.key(0), n=8, steps=2)
    assert samples.shape == (8, 2)
    assert np.isfinite(samples).all()


@pytest.mark.thorough
def test_varied_samples_start_under_the_parameters_that_they_are_drawn_with(stopped, monkeypatch):
    run, x0, t, key = jd.load(stopped), np.ones((3, 2), np.float32), 0.5, jax.random.key(0)
    drawn = []

    def draw(run, key, denoiser, sampling, **options):
        drawn.append((key, options["start"]))
        return x0

    monkeypatch.setattr(jd.Run, "_draw", draw)
    run.image_to_image(key, x0, t=t, steps=20)
    [(key_draw, start)] = drawn
    assert len(np.unique(start, axis=0)) == 3
    for i, own in enumerate(sample_keys(key_draw, np.arange(3))):
        process = for_sample(run.denoiser, own, (2,)).process
        noise = process.sample_noise(jax.random.fold_in(jax.random.split(key)[0], i), (2,), t)
        np.testing.assert_allclose(start[i], process.corrupt(jnp.asarray(x0[i]), noise, t), rtol=1e-5)


@pytest.mark.thorough
def test_a_resumed_run_is_identical_to_an_unbroken_one(copy, tmp_path):
    config = tiny.config({**CHANGES, "train.steps": 10})
    tiny.assert_identical(loop.train(config, copy), loop.train(config, tmp_path / "unbroken"))
    assert (copy / "examples.npy").read_bytes() == (tmp_path / "unbroken" / "examples.npy").read_bytes()


def test_examples_that_are_missing_or_damaged_are_said_to_be_and_training_writes_them_again(copy):
    path = copy / "examples.npy"
    content = path.read_bytes()
    for broken, message in ((content[:500], "is damaged"), (b"", "is damaged")):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"examples.npy {message} .*run train.py on this folder again"):
            jd.load(copy)
    np.save(path, np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match=r"holds float32 of shape \(4, 3\), not float32 \(n, \*\(2,\)\)"):
        jd.load(copy)
    path.unlink()
    with pytest.raises(ValueError, match=r"examples.npy is missing, and the process of this run is made from it"):
        jd.load(copy)
    loop.train(tiny.config({**CHANGES, "train.steps": 5}), copy)  # nothing to do, but for this
    assert path.read_bytes() == content


def test_a_run_of_other_data_is_refused(copy):
    config, dataset = tiny.config(CHANGES), data.load("swissroll", split="test")
    with pytest.raises(ValueError, match="holds examples of other data than 'swissroll' is here; go on with the data"):
        folder.choose_examples(copy, config, dataset)
    assert folder.choose_examples(copy.parent / "new", config, dataset).shape == (2048, 2)
    assert folder.choose_examples(copy, tiny.config(), dataset) is None


def test_examples_of_images_are_kept_as_they_are_stored(tmp_path):
    """All of a small set, in its levels."""
    dataset = data.load("digits")
    config = tiny.config({"process": {"name": "perturbed", "start": "fitted"}, "sampling.sampler": "deterministic"})
    chosen = folder.choose_examples(tmp_path, config, dataset)
    folder.write(tmp_path, config, dataset.spec, chosen)
    found = folder.read_examples(tmp_path, config, dataset.spec)
    np.testing.assert_array_equal(found, dataset.x, strict=True)


def test_a_process_that_lacks_its_examples_is_refused():
    with pytest.raises(ValueError, match="fitted to examples of the data; give examples"):
        make_experiment(tiny.config(CHANGES), DataSpec(shape=(2,), levels=None))
    with pytest.raises(ValueError, match=r"^process.start = 'fited' is unknown; did you mean 'fitted'"):
        tiny.config({**CHANGES, "process": {"name": "perturbed", "start": "fited"}})
    with pytest.raises(ValueError, match=r"^process.transform = 'overlapp'.*did you mean 'overlap'"):
        tiny.config({**CHANGES, "process": {"name": "perturbed", "transform": ("overlapp",), "start": "fitted"}})


def test_the_table_of_perturbed_digits_says_which_do_worse(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import digits_perturbations as table

    cell = {"standard_error": 0.3, "floor": 0.5, "process": "`x`", "conditioned": False, "schedule": "cosine"}
    cell |= {"predicts": "v", "sampler": "ddim", "parameters": 1234, "exact": None}
    values = {table.PLAIN: 2.0, "laplace": 2.8, "mask": 3.0, "blur": 1.0}
    cells = {name: cell | {"value": value} for name, value in values.items()}
    cells["mask"]["exact"] = 1.125
    of = {"data": "digits", "step": 7, "steps": 50, "weights": {}, "n": 200}
    text = table.page(cells, of, evaluation.CARDS["digits"])
    assert "| 2.80 ± 0.30 | no difference seen |  |" in text
    assert "| 3.00 ± 0.30 | worse, by 1.00 ± 0.42 | 1.12 |" in text
    assert "Worse than Gaussian diffusion: `mask`. Better: `blur`." in text
    assert all(part in text for part in ("200 samples", "0.50", "step 7", "1,234"))
