"""Data of any shape: it trains, has a picture or none, and every task of `sample.py` works or is refused."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import shaped
import tiny
from absl import flags
from PIL import Image

import jaxdiff as jd
from jaxdiff import data
from jaxdiff.cli import command, sample
from jaxdiff.data import DataSpec
from jaxdiff.experiment import make_experiment
from jaxdiff.run import Run
from jaxdiff.training import loop
from jaxdiff.typing import InputError

FLAGS = flags.FLAGS
ANY_SHAPE = {"model": {"name": "shaped:Scale"}, "train.steps": 1, "train.batch_size": 8, "train.steps_per_dispatch": 1}
Sample = Callable[..., dict[str, np.ndarray]]


def config(name: str, changes: dict[str, Any]) -> Any:
    return tiny.config({"data.name": f"shaped:{name}", **changes})


def unet(dims: int) -> dict[str, Any]:
    return ANY_SHAPE | {"model": {**tiny.IMAGES["model"], "dims": dims}}


@pytest.fixture(scope="module")
def sample_py() -> Iterator[Sample]:
    """Runs `sample.py` with flags in this process, and returns the arrays that it writes."""
    mains: list[Callable[[], None]] = []
    before = set(FLAGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "run", lambda main, **_: mains.append(main))
        sample.main()
    defined = set(FLAGS) - before

    def run(*arguments: str, out: Path) -> dict[str, np.ndarray]:
        for name in defined:
            FLAGS[name].unparse()
        FLAGS(["sample.py", f"--out={out}", *arguments])
        mains[0]()
        with np.load(out.with_suffix(".npz")) as file:
            return dict(file)

    yield run
    for name in defined:
        delattr(FLAGS, name)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["numbers", "points", "levels_in_the_plane", "four_channels", "films"])
def test_training_on_any_shape_ends_with_a_picture_or_none(name, tmp_path, capsys):
    loop.train(config(name, ANY_SHAPE), tmp_path)
    pictures = list(tmp_path.glob("samples/*.png"))
    assert len(pictures) == (name != "films")
    assert ("no picture" in capsys.readouterr().err) == (name == "films")
    for picture in pictures:
        with Image.open(picture) as image:
            assert np.ptp(np.asarray(image)) > 100


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("nothing", ANY_SHAPE, r"shaped:nothing.*8, 0, 1\)"),
        ("signals", unet(2), r"\(16, 2\); set dims to 1"),
        ("volumes", unet(1), r"signals if dims = 1.*\(4, 4, 8, 1\); set dims to 3"),
        ("films", unet(3), r"volumes if dims = 3.*use an mlp"),
        ("signals", unet(1) | {"model.patch": 32}, r"a signal of 16.* multiples of 32"),
        ("volumes", unet(3) | {"model.patch": 8}, r"a volume of 4×4×8 .* multiples of 8"),
        ("volumes", unet(4), r"model\.dims = 4; it must be 1 .*2 .*or 3"),
        ("signals", {}, r"an mlp takes vectors.* unet with dims = 1"),
        ("volumes", ANY_SHAPE | {"model": {"name": "classifier", "channels": [8]}}, r"a classifier .* set dims to 3"),
        ("points", ANY_SHAPE | {"model": {"name": "classifier", "channels": [8]}}, "classifier"),
    ],
)
def test_a_shape_that_the_network_cannot_take_is_refused_before_training(name, changes, words, tmp_path):
    with pytest.raises(InputError, match=words) as refused:
        loop.train(config(name, changes), tmp_path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "checkpoints").exists() or not any((tmp_path / "checkpoints").iterdir())


class Drawn(Run):
    """A run that draws and encodes without its network, in no time."""

    def _draw(self, key: Any, denoiser: Any, sampling: Any, *, n: int, **_: Any) -> np.ndarray:
        return np.random.default_rng(0).uniform(-1, 1, (n, *self.experiment.shape)).astype(np.float32)

    def _integrate(self, x: np.ndarray, *_: Any, **__: Any) -> np.ndarray:
        return np.asarray(x)


def drawn(shape: tuple[int, ...]) -> Drawn:
    experiment = make_experiment(tiny.config(ANY_SHAPE), DataSpec(shape=shape, levels=None))
    return Drawn(experiment=experiment, params=experiment.init(jax.random.key(0)), step=3)


SHAPES = [(1,), (2,), (16, 2), (8, 6, 2), (4, 6, 8, 3), (2, 2, 2, 2, 1)]
TASKS = ["n", "reconstruct", "interpolate", "inpaint", "image_to_image"]


@pytest.mark.thorough
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_draws_every_shape(shape, task, sample_py, tmp_path, monkeypatch, capsys):
    run = drawn(shape)
    examples = np.random.default_rng(1).normal(size=(4, *shape)).astype(np.float32)
    monkeypatch.setattr(sample, "load", lambda *_, **options: run)
    monkeypatch.setattr(Drawn, "test_examples", lambda _, n, dir: examples[:n])
    given = f"--{task}=2", f"--workdir={tmp_path}", *(["--mask=left"] if task == "inpaint" else [])
    if task == "inpaint" and shape == (1,):
        with pytest.raises(InputError, match=r"--mask = left keeps nothing .*shape \(1,"):
            sample_py(*given, out=tmp_path / "x.png")
        return
    arrays = sample_py(*given, out=tmp_path / "x.png")
    assert all(array.shape[-len(shape) :] == shape for array in arrays.values())
    assert (tmp_path / "x.png").exists() == (len(shape) <= 4)
    assert ("no picture" in capsys.readouterr().out) == (len(shape) > 4)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--image_to_image=2 --variants=0", "^--variants = 0; "),
        ("--inpaint=2 --variants=-1", "^--variants = -1; "),
        ("--inpaint=2 --resample=0", "^--resample = 0; "),
        ("--image_to_image=2 --time=2", r"^--time = 2\.0; "),
        ("--bits_per_dim=2", "^--bits_per_dim needs .*levels"),
        ("--inpaint=2 --mask=middle", "^--mask = 'middle'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_drawing(flag, words, sample_py, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "load", lambda *_, **options: drawn((3,)))
    monkeypatch.setattr(Run, "sample", lambda *_, **__: pytest.fail("it drew samples"))
    with pytest.raises(InputError, match=words):
        sample_py(*flag.split(), "--images=samples", f"--workdir={tmp_path}", out=tmp_path / "x.png")


@pytest.mark.parametrize(("name", "dims"), [("signals", 1), ("volumes", 3)])
@pytest.mark.thorough
def test_a_unet_of_other_dimensions_trains_draws_its_picture_and_samples(name, dims, sample_py, tmp_path):
    loop.train(config(name, unet(dims)), tmp_path / "run")
    with Image.open(next(tmp_path.glob("run/samples/*.png"))) as image:
        assert np.ptp(np.asarray(image)) > 100
    run = jd.load(tmp_path / "run", trust=True)
    assert run.config.model["dims"] == dims
    x0 = run.test_examples(2)
    np.testing.assert_array_equal(x0, data.normalize(getattr(shaped, name)("test")[0][:2], 256))
    samples = sample_py(f"--workdir={tmp_path / 'run'}", "--n=8", "--trust", out=tmp_path / "x.png")["samples"]
    assert samples.shape == (8, *x0.shape[1:])
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() <= 1


@pytest.mark.thorough
def test_signals_have_bits_per_dim():
    experiment = make_experiment(tiny.config(ANY_SHAPE), DataSpec(shape=(16, 2), levels=256))
    run = Run(experiment=experiment, params=experiment.init(jax.random.key(0)), step=3)
    bits = run.bits_per_dim(np.asarray(data.normalize(shaped.signals("test")[0][:2], 256)), probes=1)
    assert set(bits) == {"elbo", "ode"}
    assert np.isfinite(list(bits.values())).all()


def kept(run: Run, sample_py: Sample, mask: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The mask of one sample, without the channels, that `--mask` gives."""
    seen: list[np.ndarray] = []
    monkeypatch.setattr(sample, "load", lambda *_, **options: run)
    monkeypatch.setattr(Drawn, "test_examples", lambda _, n, dir: np.zeros((n, *run.experiment.shape), np.float32))
    monkeypatch.setattr(Drawn, "_draw", lambda *_, cond, **__: seen.append(np.asarray(cond.mask)) or cond.x0)
    sample_py("--inpaint=1", f"--mask={mask}", "--variants=1", f"--workdir={folder}", out=folder / "x.png")
    mask_of_sample = seen[0][0]
    if mask_of_sample.ndim > 1:
        assert (mask_of_sample == mask_of_sample[..., :1]).all()
        return mask_of_sample[..., 0]
    return mask_of_sample


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 6, 2), (5, 4, 6, 1)])
def test_masks_keep_halves_along_the_axes_that_exist(shape, sample_py, tmp_path, monkeypatch):
    run = drawn(shape)
    height, width = (shape[:-1] or shape)[-2:][0], (shape[:-1] or shape)[-1]
    up, left = height // 2, width // 2
    lines, flat = len(shape) <= 2, shape[:-1] or shape
    halves = {
        "top": np.s_[:up] if lines else np.s_[..., :up, :],
        "bottom": np.s_[up:] if lines else np.s_[..., up:, :],
        "left": np.s_[..., :left],
        "right": np.s_[..., left:],
    }
    for name, part in halves.items():
        expected = np.zeros(flat, bool)
        expected[part] = True
        np.testing.assert_array_equal(kept(run, sample_py, name, tmp_path, monkeypatch), expected)
    inside = ~kept(run, sample_py, "border", tmp_path, monkeypatch)
    assert inside.any()
    assert not any(np.take(inside, end, axis).any() for axis in range(inside.ndim) for end in (0, -1))
    pixels = np.random.default_rng(0).integers(2, size=(1, *flat)[-2:]).astype(np.uint8)
    Image.fromarray(255 * pixels).save(tmp_path / "mask.png")
    found = kept(run, sample_py, str(tmp_path / "mask.png"), tmp_path, monkeypatch)
    np.testing.assert_array_equal(found, np.broadcast_to(pixels.reshape(flat[-2:]), flat))


@pytest.mark.parametrize("shape", [(4, 4), (16, 2), (5, 3, 3), (4, 6, 2), (2, 3, 4, 1)])
def test_a_mask_may_lack_the_batch_axis_and_the_channels(shape, monkeypatch):
    """Every spelling of a mask means the same, also where the channels are as many as positions."""
    run = drawn(shape)
    seen: list[np.ndarray] = []
    monkeypatch.setattr(Drawn, "_draw", lambda *_, cond, **__: seen.append(np.asarray(cond.mask)) or cond.x0)
    x0 = np.zeros((7, *shape), np.float32)
    positions = np.random.default_rng(0).random(shape[:-1]) < 0.5
    full = np.broadcast_to(positions[..., None], x0.shape)
    for mask in (positions, full[0], full[..., 0], full, positions[..., None]):
        run.inpaint(jax.random.key(0), x0, mask)
        np.testing.assert_array_equal(seen[-1], full)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(InputError, match=re.escape("mask has shape (8,")):
        drawn((16, 2)).inpaint(jax.random.key(0), np.zeros((4, 16, 2), np.float32), np.ones(8, bool))
