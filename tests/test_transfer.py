"""Runs that start from the averaged weights of another run."""

import json
import shutil
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jaxdiff.data import DataSpec
from jaxdiff.experiment import Config, Experiment, checkpoint, make_experiment, transfer
from jaxdiff.experiment.checkpoint import Checkpoints, NoCheckpointError
from jaxdiff.training import loop
from jaxdiff.training.step import State, abstract_state, init_state
from jaxdiff.typing import InputError

LABELLED = {"data.name": "labelled", "cond.label": 0.1}

pytestmark = pytest.mark.usefixtures("forgotten_coroutines")


def experiment_of(folder: Path | None = None, *, classes: int = 3, **changes: Any) -> Experiment:
    """A conditional experiment on points, which starts from a folder."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    if folder is not None:
        changes["train.init_from"] = str(folder)
    return make_experiment(tiny.config({**LABELLED, **changes}), DataSpec(shape=(2,), levels=None, classes=classes))


def random_weights(experiment: Experiment, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), experiment.abstract_weights)


def write(folder: Path, experiment: Experiment, weights: dict[int, Any]) -> Path:
    """What is read of a run, by step."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"config": experiment.config.to_mapping()}))
    with closing(Checkpoints(folder / "checkpoints", keep=9)) as checkpoints:
        for step, values in weights.items():
            checkpoints.save(step, {"weights": values})
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three classes with two checkpoints."""
    experiment = experiment_of()
    weights = {step: random_weights(experiment, step) for step in (3, 12)}
    return write(tmp_path_factory.mktemp("source"), experiment, weights)


def start(experiment: Experiment, devices: int = 1, fsdp: int = 1) -> State:
    """The first state of a run."""
    abstract = abstract_state(experiment, tiny.mesh_of(devices, fsdp))
    taken = transfer.take(experiment.config, abstract.params)
    assert taken is not None
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(lambda weights: init_state(experiment, weights), out_shardings=shardings)(taken.weights)


@pytest.mark.thorough
@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (8, 4)])
def test_the_averaged_weights_of_the_newest_checkpoint_are_the_first_ones(source, devices, fsdp):
    experiment = experiment_of(source)
    expected, state = random_weights(experiment, 12), start(experiment, devices, fsdp)
    tiny.assert_identical(state.params, expected)
    tiny.assert_identical(state.ema, expected)  # the average starts there
    new = init_state(experiment)
    tiny.assert_identical(state.opt_state, new.opt_state)
    tiny.assert_identical((state.step, state.key), (new.step, new.key))


def test_an_optimizer_that_keeps_the_first_weights_keeps_those_taken(source):
    experiment = experiment_of(source, optimizer__name=f"{__name__}:remembering")
    tiny.assert_identical(start(experiment).opt_state[1], random_weights(experiment, 12))


def remembering(learning_rate: Any) -> Any:
    """An optimizer whose state is the weights that it began with."""
    return optax.GradientTransformation(lambda params: params, lambda updates, state, params=None: (updates, state))


def refused(experiment: Experiment, message: str) -> None:
    abstract = abstract_state(experiment, tiny.mesh_of(1))
    with pytest.raises(InputError, match=message) as error:
        transfer.take(experiment.config, abstract.params)
    assert "\n" not in str(error.value)


def test_another_number_of_classes_is_listed_and_needs_the_flag(source):
    table = r"1 of another shape: params/label/table/embedding float32 \(6, 8\), there float32 \(4, 8\)"
    refused(experiment_of(source, classes=5), rf"^train\.init_from = .* of another network: {table}; set train\.init_")
    experiment = experiment_of(source, classes=5, train__init_partial=True)
    state, expected, new = start(experiment), random_weights(experiment_of(), 12), init_state(experiment)
    assert state.params["params"]["label"]["table"]["embedding"].shape == (6, 8)
    tiny.assert_identical(state.params["params"].pop("label"), new.params["params"]["label"])
    del expected["params"]["label"]
    tiny.assert_identical(state.params, expected)


def test_what_is_missing_and_what_is_left_over_are_listed_too(source):
    missing = r"6 missing there: params/block1_dense1/bias, .*kernel and 2 more; .* to take the 15 that fit"
    refused(experiment_of(source, model__depth=2), missing)
    extra = r"network: 1 not in this network: 'params/label/table/embedding'; .* to take the 14 that fit"
    refused(experiment_of(source, cond__label=None), extra)
    experiment = experiment_of(source, cond__label=None, train__init_partial=True)
    assert "label" not in start(experiment).params["params"]


def test_a_network_of_which_nothing_fits_is_refused_even_with_the_flag(source):
    changes = {"model": "classifier:channels=(8,),groups=2", "cond.label": None, "train.init_from": str(source)}
    config = tiny.config({**changes, "data.name": "digits", "train.init_partial": True})
    experiment = make_experiment(config, DataSpec(shape=(8, 8, 1), levels=17, classes=10))
    refused(experiment, r"^train\.init_from = .* has no array that this network has: .*; take a run of a similar")


@pytest.mark.thorough
def test_a_learned_schedule_is_one_of_the_weights(tmp_path, source):
    learned = {"schedule": {"name": "learned", "hidden": 4}, "loss.weight": "elbo", "cond.label": None}
    refused(experiment_of(source, **learned), r"3 missing there: schedule/slopes, schedule/offsets, schedule/heights;")
    experiment = experiment_of(**learned)
    write(tmp_path / "learned", experiment, {5: random_weights(experiment)})
    state = start(experiment_of(tmp_path / "learned", **learned))
    tiny.assert_identical(state.params, random_weights(experiment))
    # Its arrays are stored in another order than that of their names, and some of them are read.
    other = experiment_of(tmp_path / "learned", **{**learned, "model.width": 8, "train.init_partial": True})
    tiny.assert_identical(start(other).params["schedule"], random_weights(experiment)["schedule"])


def test_settings_that_change_the_meaning_of_the_weights_are_told(source, caplog):
    start(experiment_of(source))
    assert caplog.text == ""
    start(experiment_of(source, predicts="v", schedule={"name": "cosine"}))
    assert "a run with other settings of schedule, predicts; its weights fit by shape alone" in caplog.text


def test_a_relative_path_is_read_from_the_current_folder(source, monkeypatch):
    monkeypatch.chdir(source.parent)
    found, whole = (start(experiment_of(folder)) for folder in (Path(source.name), source))
    jax.tree.map(np.testing.assert_array_equal, found.params, whole.params)


def test_a_folder_that_is_no_run_or_has_no_checkpoint_is_refused(tmp_path):
    refused(experiment_of(tmp_path / "none"), r"^train\.init_from = .*none is not a run: it has no config\.json; give")
    (tmp_path / "config.json").write_text("{}")
    refused(experiment_of(tmp_path), r"^train\.init_from = .* has no whole checkpoint; train it until the first one")
    refused(experiment_of(tmp_path / "a[b"), r"^train\.init_from = .* can't be read from a path that contains '\['")
    refused(experiment_of(train__init_from="gs://x"), r"^train\.init_from = 'gs://x' is not a path")
    with pytest.raises(InputError, match=r"^train\.init_partial = True, but init_from is None; set init_from"):
        tiny.config({"train.init_partial": True})


def test_a_damaged_checkpoint_is_passed_over(source, tmp_path, caplog):
    folder = shutil.copytree(source, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "12" / "weights" / "d")
    tiny.assert_identical(start(experiment_of(folder)).params, random_weights(experiment_of(), 3))
    assert "the checkpoint of step 12 in" in caplog.text
    shutil.rmtree(folder / "checkpoints" / "3" / "weights")
    with pytest.raises(NoCheckpointError, match="has no whole checkpoint"):
        start(experiment_of(folder))


@pytest.mark.parametrize("partial", [False, True])
def test_values_that_were_not_written_are_damage(tmp_path, monkeypatch, partial):
    """As when a lost block of a file reads as zeros."""
    experiment = experiment_of()
    weights = random_weights(experiment)
    damaged = jax.tree.map(jnp.copy, weights)
    damaged["params"]["stem"]["kernel"] *= 0
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "fingerprint", lambda _: transfer.fingerprint(weights))
        folder = write(tmp_path / "run", experiment, {1: damaged})
    changes = {"classes": 5, "train__init_partial": True} if partial else {}
    with pytest.raises(NoCheckpointError, match="has no whole checkpoint"):
        start(experiment_of(folder, **changes))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    experiment = experiment_of()
    weights = random_weights(experiment)
    weights["params"]["stem"]["bias"] = weights["params"]["stem"]["bias"].at[3].set(jnp.nan)
    folder = write(tmp_path / "run", experiment, {1: weights})
    refused(experiment_of(folder), r"^train\.init_from = .*: the values of params/stem/bias are not finite")


def test_no_code_of_the_folder_runs(source, tmp_path, monkeypatch):
    (tmp_path / "stranger_module.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = shutil.copytree(source, tmp_path / "run")
    content = json.loads((folder / "config.json").read_text())
    for name in ("model", "schedule", "process"):
        content["config"][name] = {"name": "stranger_module:make"}
    for text in (json.dumps(content), "[" * 10_000, '{"config": 3}', " " * 2**23, "\xff"):
        (folder / "config.json").write_text(text, encoding="latin-1")
        tiny.assert_identical(start(experiment_of(folder)).params, random_weights(experiment_of(), 12))
    assert "stranger_module" not in sys.modules


def stopped_at_once(config: Config, folder: Path, **options: Any) -> None:
    """A run that dies before its first step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loop.train(config, folder, **options)


def test_the_first_state_is_saved_before_the_first_step(source, tmp_path, capsys):
    experiment, labels = experiment_of(source, train__steps_per_dispatch=1), np.arange(32) % 3
    data = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32), labels
    stopped_at_once(experiment.config, tmp_path, data=data)
    assert f"weights  15 arrays from step 12 of {source}" in capsys.readouterr().err
    abstract = abstract_state(experiment, tiny.mesh_of(1))
    with closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        step, items = checkpoints.restore(abstract.items())
    assert step == 0
    tiny.assert_identical(State.from_items(items), start(experiment))
    changed = experiment_of(train__steps_per_dispatch=1).config
    with pytest.raises(InputError, match=r"train\.init_from: '.*' -> None"):
        loop.train(changed, tmp_path, data=data)
    with pytest.raises(InputError, match=r"^allow_change = 'train\.init_from' is no setting"):
        loop.train(changed, tmp_path, data=data, allow_change="train.init_from")


@pytest.mark.thorough
def test_a_run_needs_the_other_folder_only_to_begin(tmp_path, monkeypatch):
    """One that is killed in its first step goes on bit for bit, though the other run is lost."""
    monkeypatch.setattr(loop, "_picture", lambda *_: np.zeros((2, 2, 3), np.uint8))
    points = tmp_path / "points"
    loop.train(tiny.config({"train.steps": 10}), points)
    config = tiny.config({"train.steps": 10, "train.seed": 1, "train.init_from": str(points)})
    expected = loop.train(config, tmp_path / "whole")
    stopped_at_once(config, tmp_path / "broken")
    assert tiny.steps_in(tmp_path / "broken") == [0]
    shutil.rmtree(points)
    tiny.assert_identical(loop.train(config, tmp_path / "broken"), expected)
