"""The command line: runs trained and sampled by `python train.py` and `python sample.py`, and every kind of mistake."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

import jaxdiff as jd
from jaxdiff import data
from jaxdiff.data import DataSpec
from jaxdiff.experiment import make_experiment, workdir
from jaxdiff.experiment.checkpoint import Checkpoints
from jaxdiff.samplers.batching import all_devices
from jaxdiff.training import loop

pytestmark = pytest.mark.usefixtures("unchecked")  # as for users


class Commands:
    """Runs command lines."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, script: str, *arguments: str, devices: int = 1) -> tuple[int, str, str]:
        """(exit code, standard output, standard error)."""
        return tiny.finish(tiny.Forked(script, *arguments, cache=self._folder / "cache", devices=devices))


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> Commands:
    return Commands(tmp_path_factory.mktemp("commands"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A config file, and the run on points, with checkpoints of steps 5 and 10, that `python train.py` made of it."""
    folder = tmp_path_factory.mktemp("trained")
    config, run = tiny.write_config(folder, {"every.checkpoint": 5}), folder / "run"
    arguments = f"--config={config}", f"--workdir={run}", "--config.train.steps=10"
    code, out, err = tiny.finish(tiny.Forked("train.py", *arguments, cache=folder / "cache"))
    assert (code, out) == (0, ""), err
    (folder / "stderr").write_text(err)
    return config, run


def assert_refused(found: tuple[int, str, str], message: str) -> None:
    """The command ended with exit code 2, and the last line that it printed begins with the error."""
    code, out, err = found
    assert err.splitlines()[-1].startswith(f"error: {message}")
    assert "Traceback" not in err
    assert (code, out) == (2, "")


def test_training_says_what_it_does_and_how_to_sample(trained):
    _, run = trained
    lines = (run.parent / "stderr").read_text().splitlines()
    said = [line.split()[0] for line in lines]
    assert said == ["data", "network", "devices", "steps", "folder", "compiling", "step", "step", "done:", "to"]
    described = " ".join(lines[:5])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(jd.load(run).params))
    for part in (
        "swissroll, 20,000 examples of shape (2,)",
        f"mlp, {parameters} parameters",
        "float32",
        "batches of 16",
    ):
        assert part in described
    assert lines[3].split()[1:] == ["0", "to", "10"]
    assert re.fullmatch(r"step 10/10  loss \d\.\d{4}  \d+ images/s  0:00:00 left", lines[6])
    assert lines[7] == f"step 10: {run / 'samples' / '00000010.png'}"
    assert f"python sample.py --workdir={run}" in lines[9]


def test_a_trained_run_has_its_config_metrics_picture_and_checkpoints(trained):
    _, run = trained
    assert json.loads((run / "config.json").read_text())["config"]["train"]["steps"] == 10
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [10]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"5", "10"}
    with Image.open(run / "samples" / "00000010.png") as image:
        assert image.mode == "RGB"


def write_untrained(folder: Path, changes: dict[str, Any] | None = None, **conditions: Any) -> None:
    """A run on digits whose only checkpoint, of step 7, has the weights of the initialization."""
    spec = DataSpec(shape=(8, 8, 1), levels=17, classes=10, conditions=conditions)
    config = tiny.config(changes, base=tiny.IMAGES)
    workdir.write(folder, config, spec)
    experiment, replicated = make_experiment(config, spec), NamedSharding(all_devices(), PartitionSpec())
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    checkpoints.save(7, {"weights": jax.jit(experiment.init, out_shardings=replicated)(jax.random.key(0))})
    checkpoints.close()


@pytest.mark.thorough
def test_sampling_images_writes_a_picture_and_the_samples(tmp_path):
    write_untrained(tmp_path)
    picture, samples = tmp_path / "new" / "digits.png", tmp_path / "new" / "digits.npz"
    process = tiny.Forked("sample.py", f"--workdir={tmp_path}", "--n=5", f"--out={picture}", cache=tmp_path / "cache")
    code, out, err = tiny.finish(process)
    assert (code, out) == (0, f"5 samples of step 7: {picture}, {samples}\n"), err
    assert [line.split()[0] for line in err.splitlines()] == ["step", "compiling,"]
    with np.load(samples) as file:
        assert file["samples"].shape == (5, 8, 8, 1)
        assert file["samples"].dtype == np.float32
    with Image.open(picture) as image:
        assert image.size[0] > image.size[1] > 64


@pytest.mark.thorough
def test_a_conditional_run_draws_rows_of_labels_and_fills_in_what_is_missing(commands, tmp_path):
    (tmp_path / "run").mkdir()
    write_untrained(tmp_path / "run", {"cond.label": 0.1})

    def made(name: str, *flags: str) -> tuple[np.ndarray, tuple[int, int]]:
        path = tmp_path / f"{name}.png"
        code, out, err = commands.run(
            "sample.py", f"--workdir={tmp_path / 'run'}", f"--out={path}", "--steps=3", *flags
        )
        assert code == 0, err
        assert str(path) in out
        with np.load(path.with_suffix(".npz")) as file, Image.open(path) as image:
            return file["samples"], image.size

    samples, size = made("classes", "--label=all", "--guidance=1", "--batch=16")
    assert samples.shape == (70, 8, 8, 1)  # 64, and as many as fill ten rows
    assert size[1] / size[0] == pytest.approx(10 / 7, rel=0.05)
    kept, size = made("inpainted", "--inpaint=2", "--variants=3", "--label=3+8", "--mask=left", "--resample=1")
    assert kept.shape == (2, 3, 8, 8, 1)
    assert size[0] / size[1] == pytest.approx(5 / 2, rel=0.05)
    x0 = jd.load(tmp_path / "run").test_examples(2)
    np.testing.assert_allclose(kept[:, :, :, :4], np.broadcast_to(x0[:, None, :, :4], (2, 3, 8, 4, 1)), atol=1e-5)


@pytest.mark.thorough
def test_other_conditions_come_from_test_examples_or_a_file(commands, tmp_path):
    (tmp_path / "run").mkdir()
    changes = {"cond.label": 0.1, "cond.image": 0.0, "data.derive": "reduced:factor=4"}
    write_untrained(tmp_path / "run", changes, image=(2, 2, 1))

    def made(name: str, cond: str, *flags: str) -> tuple[int, str, dict[str, np.ndarray]]:
        out = tmp_path / f"{name}.png"
        options = (f"--workdir={tmp_path / 'run'}", f"--out={out}", "--steps=1", "--n=3", f"--cond={cond}")
        code, _, err = commands.run("sample.py", *options, *flags)
        return code, err, dict(np.load(out.with_suffix(".npz"))) if code == 0 else {}

    code, err, found = made("test", "test")
    assert code == 0, err
    test = data.derive(data.load("digits", split="test"), "reduced:factor=4").take(np.arange(3))
    np.testing.assert_array_equal(found["image"], test.cond["image"])
    np.testing.assert_array_equal(found["label"], test.labels)
    np.savez(tmp_path / "mine.npz", image=test.cond["image"][::-1])
    np.savez(tmp_path / "other.npz", images=test.cond["image"])
    code, err, other = made("file", str(tmp_path / "mine.npz"), "--label=4")
    assert code == 0, err
    np.testing.assert_array_equal(other["image"], found["image"][::-1])
    np.testing.assert_array_equal(other["label"], [4, 4, 4])
    bad = {"run/config.json": "can't be read", "missing.npz": "can't be read", "other.npz": "holds 'images'"}
    for name, message in bad.items():
        code, err, _ = made("bad", str(tmp_path / name))
        assert code == 2
        assert err.splitlines()[-1].startswith(f"error: --cond = {tmp_path / name}")
        assert message in err
        assert "Traceback" not in err


@pytest.mark.thorough
def test_the_same_seed_gives_the_same_samples(trained, commands, tmp_path):
    def sample(name: str, *arguments: str) -> bytes:
        paths = f"--workdir={trained[1]}", f"--out={tmp_path / name}.png"
        code, _, err = commands.run("sample.py", *paths, "--n=8", *arguments)
        assert code == 0, err
        assert (tmp_path / f"{name}.png").exists()
        return (tmp_path / f"{name}.npz").read_bytes()

    first = sample("first", "--seed=4")
    assert sample("second", "--seed=4", "--sampler=ddim", "--steps=4", "--timesteps=1,0.75,0.5,0.25,0") == first
    assert sample("seed", "--seed=5") != first


@pytest.mark.thorough
def test_a_command_replaces_its_own_files_and_no_others(trained, commands, tmp_path):
    flags = f"--workdir={trained[1]}", "--n=8", "--steps=4", f"--out={tmp_path / 'a.png'}"
    for _ in range(2):
        code, _, err = commands.run("sample.py", *flags)
        assert code == 0, err
    before = (tmp_path / "a.npz").read_bytes()
    found = commands.run("sample.py", *flags[:1], "--reconstruct=4", f"--images={tmp_path / 'a.npz'}", flags[-1])
    assert_refused(found, f"--out = {tmp_path / 'a.png'} would replace {tmp_path / 'a.npz'}, which this command reads")
    np.savez(tmp_path / "a.npz", samples=np.zeros((4, 2)))
    mine = (tmp_path / "a.npz").read_bytes()
    found = commands.run("sample.py", *flags)
    assert_refused(found, "")
    assert "--overwrite" in found[2]
    assert (tmp_path / "a.npz").read_bytes() == mine
    code, _, err = commands.run("sample.py", *flags, "--overwrite")
    assert code == 0, err
    assert (tmp_path / "a.npz").read_bytes() == before


@pytest.mark.thorough
@pytest.mark.parametrize("source", ["file", "model"])
def test_samples_of_a_run_are_encoded_and_decoded(trained, commands, tmp_path, source):
    np.savez(tmp_path / "a.npz", samples=np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32))
    flags = (f"--images={tmp_path / 'a.npz'}",) if source == "file" else ("--images=samples", "--steps=4")
    paths = f"--workdir={trained[1]}", f"--out={tmp_path / 'b.png'}"
    code, out, err = commands.run("sample.py", *paths, "--batch=8", "--reconstruct=4", *flags)
    assert code == 0, err
    assert re.match(r"reconstruction error: \d\.\de-\d\d \(root mean square\), ", out)
    with np.load(tmp_path / "b.npz") as file, np.load(tmp_path / "a.npz") as read:
        np.testing.assert_allclose(file["reconstruction"], file["original"], rtol=1e-2, atol=3e-2)
        assert np.abs(file["latent"] - file["original"]).max() > 0.01
        assert np.array_equal(file["original"], read["samples"]) == (source == "file")
    assert (tmp_path / "b.png").exists()


TRAIN_MISTAKES = {
    "--config.train.stepz=3": "--config.train.stepz: 'stepz' is not a field; did you mean 'steps'?",
    "--config.trian.steps=3": "--config.trian.steps: 'trian' is not a field; did you mean 'train'?",
    "--config.train.steps.x=3": "--config.train.steps.x: 'x' is not a field; the known ones are none",
    "--config.schedule.beta_max=3": "--config.schedule.beta_max: 'beta_max' is not a field; did you mean 'beta_last'?",
    "--config.schedule=liner": "schedule = 'liner'; the known ones are ",
    "--config.model.widht=3": "--config.model.widht: 'widht' is not a field; did you mean 'width'?",
    "--noconfig.data.on_devicee": "--config.data.on_devicee: 'on_devicee' is not a field; did you mean 'on_device'?",
    "--config.train..steps=3": "--config.train..steps: '' is not a field; the known ones are ",
    "--config.train.steps=many": "flag --config.train.steps=many: invalid literal for int() with base 10: 'many'",
    "--config.train.dtype=float16": "train.dtype = 'float16' is unknown; did you mean 'bfloat16'?",
    "--config.optimizer.clip_norm=none": "optimizer.clip_norm = 'none' has the wrong type; it must be float | None",
    "--config.train.batch_size=12": "train.batch_size = 12 is not divisible over 8 devices; use 8 or 16",
    "--config.train.fsdp=3": "train.fsdp = 3 does not divide the 8 devices; choose a divisor of 8",
    "--config.every.log=3": "every.log = 3 is not a multiple of train.steps_per_dispatch = 5; make it one",
    "--config.sampling.steps=21": "sampling.steps = 21, but the schedule has 20 timesteps; use at most 20 steps",
    "--config.data.name=digit": "name = 'digit' is not a data set, folder:DIR, npz:FILE, hf:NAME, tfds:NAME",
    "--config.data.name=digits": "an mlp takes vectors, but an example here has shape (8, 8, 1)",
    "--config.data.dir=somewhere": "dir = 'somewhere', but swissroll is read from no folder; leave dir out",
    "--workdir=/dev/null/x": "workdir = /dev/null/x can't be written (Not a directory); choose another folder",
    "--wrkdir=x": "Unknown command line flag 'wrkdir'. Did you mean: workdir ?",
    "train": "'train' is not a flag; every setting is written --NAME=VALUE",
    "--coordinator=localhost:1": "--coordinator needs --distributed; give that too, or leave it out",
    "--distributed": "--distributed can't start with --coordinator=None, --num_processes=None, --process_id=None: ",
    "--config=nowhere.py": "--config = nowhere.py: there is neither such a file nor a config of that name",
    "--config=configs/mnist.py:huge": "configs/mnist.py has no variant 'huge'; it has ",
    "--config=configs/digits.py:huge": "configs/digits.py has no variant 'huge'; it has conditional, classifier",
}


@pytest.mark.parametrize("mistake", TRAIN_MISTAKES)
def test_a_mistake_in_training_is_told_in_one_line(eight_devices, tmp_path, mistake):
    config, run = tiny.write_config(tmp_path), tmp_path / "run"
    given = {"--config": f"--config={config}", "--workdir": f"--workdir={run}"}
    given[mistake.partition("=")[0]] = mistake
    assert_refused(tiny.refused("train.py", *given.values()), TRAIN_MISTAKES[mistake])
    assert not (run / "checkpoints").exists()


def test_a_variant_of_a_file_without_variants_is_told_in_one_line(tmp_path):
    config = tiny.write_config(tmp_path)
    found = tiny.refused("train.py", f"--config={config}:huge", f"--workdir={tmp_path / 'run'}")
    assert_refused(found, f"{config} has no variants; leave out :huge")


def test_an_image_that_cannot_be_halved_is_told_in_one_line(tmp_path):
    levels = {"model.down": [4] * 5, "model.up": [4] * 5, "model.attention": [False] * 5}
    config = tiny.write_config(tmp_path, levels, base=tiny.IMAGES)
    found = tiny.refused("train.py", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert_refused(found, "an image of 8×8 can't be halved 4 times")


@pytest.mark.parametrize("missing", ["config", "workdir"])
def test_a_missing_flag_is_told_in_one_line(tmp_path, missing):
    given = {"config": f"--config={tiny.write_config(tmp_path)}", "workdir": f"--workdir={tmp_path}"}
    del given[missing]
    assert_refused(tiny.refused("train.py", *given.values()), f"--{missing} is missing. ")


def test_missing_data_is_told_with_the_way_on(tmp_path):
    config = tiny.write_config(tmp_path, {"data.name": "mnist", "data.dir": str(tmp_path / "none")}, base=tiny.IMAGES)
    found = tiny.refused("train.py", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert_refused(found, f"dir='{tmp_path / 'none'}': no such folder; it must hold the MNIST files.")


def test_another_config_in_the_folder_is_told_with_the_differences(trained):
    config, run = trained
    code, _, err = tiny.refused("train.py", f"--config={config}", f"--workdir={run}", "--config.train.ema_decay=0.5")
    assert err == (
        f"error: workdir = {run} holds a run of another config:\n"
        "  train.ema_decay: 0.9 -> 0.5\n"
        "choose another folder, or set these back to go on with that run, or go on with the change by "
        "--allow_change=train.ema_decay\n"
    )
    assert code == 2


@pytest.mark.thorough
def test_a_run_that_diverges_is_told_in_one_line(commands, tmp_path):
    config = tiny.write_config(tmp_path, {"optimizer.learning_rate": 1e38, "optimizer.warmup_steps": 0})
    code, _, err = commands.run("train.py", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert re.search(r"^error: at step \d+ the loss is (nan|inf) and .* lower optimizer\.learning_rate or", err, re.M)
    assert "Traceback" not in err
    assert code == 1


def test_a_crash_in_a_config_file_keeps_its_traceback(commands, tmp_path):
    config = tiny.write_config(tmp_path)
    for bug, error in [("undefined", "NameError"), ("1 + ''", "TypeError"), ("Config(steps=1)", "TypeError")]:
        config.write_text(f"from jaxdiff.experiment import Config\ndef get_config():\n    {bug}\n")
        code, _, err = commands.run("train.py", f"--config={config}", f"--workdir={tmp_path / 'run'}")
        assert code == 1
        assert "Traceback" in err
        assert f'config.py", line 3, in get_config\n    {bug}' in err
        assert f"\n{error}: " in err


def test_none_can_be_given_on_the_command_line(tmp_path):
    config = tiny.write_config(tmp_path)
    arguments = (f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.optimizer.clip_norm=None")
    found = tiny.refused("train.py", *arguments, "--config.train.steps=5", "--config.train.seed=-1")
    assert_refused(found, "train.seed = -1; must satisfy 0 <= seed < 2^32")


@pytest.mark.parametrize(
    ("flag", "schedule"),
    [
        ("--config.schedule=cosine:num_timesteps=30", {"name": "cosine", "num_timesteps": 30, "offset": 0.008}),
        ("--config.schedule.name=vp", {"name": "vp", "beta_min": 0.1, "beta_max": 20.0}),
        (
            "--config.schedule.name=linear",
            {"name": "linear", "num_timesteps": 20, "beta_first": 0.0001, "beta_last": 0.01},
        ),
    ],
)
def test_a_component_is_chosen_by_a_flag_without_the_options_of_the_last(tmp_path, monkeypatch, flag, schedule):
    found = []
    monkeypatch.setattr(loop, "train", lambda config, *_, **__: found.append(config) or sys.exit(0))
    tiny.refused("train.py", f"--config={tiny.write_config(tmp_path)}", f"--workdir={tmp_path / 'run'}", flag)
    assert {name: found[0].schedule[name] for name in schedule} == schedule
    assert "beta_first" not in found[0].schedule or schedule["name"] == "linear"


def test_help_of_a_config_tells_its_variants_and_settings():
    code, out, _ = tiny.refused("train.py", "--config=digits", "--help")
    assert code == 0
    for part in (":conditional", ":overlap", "--config.train.steps=2000"):
        assert part in out


SAMPLE_MISTAKES = {
    "--sampler=dimd": "sampler = 'dimd'; the known ones are adaptive, ddim, ddpm, ",
    "--sampler=ddim:eta": "sampler = 'ddim:eta' has no option 'eta'; write NAME:OPTION=VALUE",
    "--timesteps=unifrm": "timesteps = 'unifrm'; the known ones are ",
    "--timesteps=1,half,0": "--timesteps = '1,half,0'; give the name of a rule, or times as in 1,0.7,0",
    "--timesteps=1,0.5,0 --steps=3": "steps = 3, but 3 timesteps are given, which make 2 steps; leave steps out",
    "--steps=0": "steps = 0; it must be 1 or more",
    "--steps=21": "steps = 21, but the schedule has 20 timesteps; use at most 20 steps",
    "--n=0": "--n = 0; it must be 1 or more",
    "--n=99999999999": "--n = 99999999999; it must be at most 1e+06",
    "--label=3": "labels = 3, but this model is unconditional: it was trained without labels",
    "--seed=-1": "--seed = -1; must satisfy 0 <= seed < 2^32",
    "--out=digits.jpg": "--out = digits.jpg: the image is a PNG; give a name that ends in .png",
    "--out=/dev/null/x.png": "--out = /dev/null/x.png can't be written (",
    "--out=": "--out = '' is not a path; give the name of a file or folder",
    "--workdir=": "--workdir = '' is not a path",
    "--workdir=~nobody-of-this-name/run": "--workdir = '~nobody-of-this-name/run': ",
    "--classifier=": "--classifier = '' is not a path",
    "--reconstruct=2 --images=": "--images = '' is not a path",
    "--reconstruct=2 --images=a.png,": "--images = '' is not a path",
    "--workdir=configs": "workdir = configs is not a run: it has no config.json; give the folder of a training run",
    "--variantz=3": "Unknown command line flag 'variantz'. Did you mean: variants ?",
    "--reconstruct=0": "--reconstruct = 0; it must be 1 or more",
    "--reconstruct=20001": "n = 20001, but the test split of swissroll has 20000 examples; use 1 to that many",
    "--bits_per_dim=2": "--bits_per_dim needs images with a finite number of levels",
    "--images=x.npz": "--images applies only to --reconstruct, --interpolate, --inpaint, --image_to_image, ",
    "--guidance=1": "guidance = 1.0 guides towards a label; give labels too",
    "--label=three": "--label = 'three'; give a number, 0,1,2 or all, or a composition as in 3+8 or 3:0.7+8:0.3",
    "--label=3+3": "--label = '3+3'; give a number, 0,1,2 or all, or a composition",
    "--label=0,1 --n=3": "--n = 3 is not divisible by 2 labels, a row for each; make it a multiple",
    "--inpaint=2 --label=0,1": "--label = '0,1': here all have one label; give one, or a composition as in 3+8",
    "--inpaint=2 --mask=middle": "--mask = 'middle'; the known ones are top, bottom, left, ",
    "--image_to_image=2 --label=0,1": "--label = '0,1': here all have one label; give one, or a composition as in 3+8",
    "--image_to_image=2 --time=0": "--time = 0.0; must satisfy 0 < time <= 1",
    "--image_to_image=2 --variants=0": "--variants = 0; it must be 1 or more",
    "--mask=top": "--mask applies only to --inpaint; leave it out",
    "--reconstruct=2 --guidance=1": "--guidance applies only to drawing samples; leave it out",
    "--reconstruct=2 --n=3": "--n applies only to drawing samples: --reconstruct gives the number of images",
    "--reconstruct=2 --steps=3": "--steps applies only to drawing samples; leave it out",
    "--reconstruct=2 --interpolate=2": "--reconstruct and --interpolate can't be combined; leave one out",
    "--reconstruct=2 --images=no.npz": "no.npz can't be read ([Errno 2] No such file or directory: 'no.npz'); give a",
}


@pytest.mark.parametrize("mistake", SAMPLE_MISTAKES)
def test_a_mistake_in_sampling_is_told_in_one_line(trained, tmp_path, mistake):
    given = {"--workdir": f"--workdir={trained[1]}", "--out": f"--out={tmp_path / 'x.png'}"}
    given |= {flag.partition("=")[0]: flag for flag in mistake.split()}
    assert_refused(tiny.refused("sample.py", *given.values()), SAMPLE_MISTAKES[mistake])
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_told_in_one_line(commands, trained, tmp_path):
    run = shutil.copytree(trained[1], tmp_path / "run")
    (run / "checkpoints" / "10" / "weights" / "manifest.ocdbt").unlink()
    code, out, err = commands.run("sample.py", f"--workdir={run}", "--n=8", f"--out={tmp_path / 'x.png'}")
    assert err.startswith("WARNING: the checkpoint of step 10 is damaged and is not used: ")
    assert code == 0
    assert "Traceback" not in err
    assert out.startswith("8 samples of step 5: ")


@pytest.mark.parametrize(("script", "flags"), [("train.py", ["config", "workdir"]), ("sample.py", ["sampler", "out"])])
def test_help_names_the_flags(script, flags):
    code, out, _ = tiny.refused(script, "--help")
    assert code == 0
    for flag in flags:
        assert f"  --{flag}=" in out
    assert out.startswith(f"usage: python {script} --")
    assert "--verbosity" not in out
