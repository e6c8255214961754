"""The loss on held-out examples: what it is, that it is always the same, and which examples are held out."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from scipy import stats

import jaxdiff as jd
from jaxdiff import data, schedules, time_sampling
from jaxdiff.experiment import make_experiment
from jaxdiff.training import loop
from jaxdiff.training.batches import make_batches
from jaxdiff.training.evaluation import Evaluation, make_evaluation, split
from jaxdiff.training.step import abstract_state

EVALUATED = {"every.evaluate": 10, "data.evaluated": 50}
POINTS = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
SCHEDULES: dict[str, Any] = {"cosine": schedules.Cosine(num_timesteps=20), "vp": schedules.VP(), "ve": schedules.VE()}


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains without drawing, which takes longer than these runs."""
    monkeypatch.setattr(loop, "_picture", lambda *_: np.zeros((2, 2, 3), np.uint8))


def curve(workdir: Path) -> dict[int, float]:
    """`eval_loss` by step, of the lines that have it."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}


def evaluation_of(changes: dict[str, Any], source: Any, devices: int = 1, fsdp: int = 1) -> tuple[Evaluation, Any]:
    """The evaluation of a config on all examples of a source, and the first weights."""
    experiment, mesh = make_experiment(tiny.config(changes), source.spec), tiny.mesh_of(devices, fsdp)
    abstract = abstract_state(experiment, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.ema)
    params = jax.jit(experiment.init, out_shardings=shardings)(jax.random.key(1))
    return make_evaluation(experiment, source, mesh, abstract.ema), params


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("times", ["auto", "continuous", "antithetic", "log_normal", "secant", "importance"])
def test_fixed_times_have_the_distribution_of_those_in_training(times: Any, schedule: Any) -> None:
    n = 4000
    found = np.asarray(time_sampling.stratified(times, schedule, n))
    drawn = np.asarray(time_sampling.time_sampler(times, schedule)(jax.random.key(0), n))
    assert 0 < found.min() <= found.max() <= 1
    assert stats.ks_2samp(found, drawn).statistic < 0.04  # 1.6/√n/√½ is 0.036
    if schedule.num_timesteps and times in ("auto", "importance"):
        np.testing.assert_array_equal(np.unique(np.round(found * 20), return_counts=True)[1], n // 20)


def test_it_is_the_mean_loss_at_quantiles_with_the_noise_of_each_example() -> None:
    held_out = data.from_object("points", POINTS)
    evaluation, params = evaluation_of({"schedule": "vp", "predicts": "v", "data.evaluated": 37}, held_out)
    experiment = make_experiment(tiny.config({"schedule": "vp", "predicts": "v"}), held_out.spec)
    denoiser = jd.denoiser(experiment.model.apply, params, jd.Gaussian(jd.schedules.VP()), predicts="v")
    chosen = np.random.default_rng(0).permutation(len(POINTS))[:37]
    one = jax.jit(lambda x, t, i: jd.losses.simple(denoiser, x, t, key=jax.random.fold_in(jax.random.key(0), i)))
    expected = [one(POINTS[row], (i + 0.5) / 37, i) for i, row in enumerate(chosen)]
    assert evaluation(params) == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.thorough
@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize("n", [37, 5, 64])
def test_it_is_the_same_on_one_and_on_eight_devices(n: int) -> None:
    found, changes = [], {"data.evaluated": n, "model.width": 128}
    for devices in (1, 8):
        evaluation, params = evaluation_of(changes, data.from_object("points", POINTS), devices, fsdp=min(devices, 2))
        assert evaluation.batch % devices == 0
        assert evaluation.batch <= max(16, devices)  # the batch of training
        found.append(evaluation(params))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.thorough
def test_labels_and_other_conditions_are_never_dropped() -> None:
    rows = np.random.default_rng(1)
    labels, vectors = rows.integers(3, size=200), rows.normal(size=(200, 4)).astype(np.float32)
    source = data.from_object("points", {"x": POINTS, "labels": labels, "vector": vectors})
    found = []
    for p in (0.0, 0.9):
        found.append(evaluation_of({"cond.label": p, "cond.vector": p, "data.evaluated": 64}, source))
    assert found[0][0](found[0][1]) == found[1][0](found[0][1])
    without = evaluation_of({"data.evaluated": 64}, source)[0]
    assert (without.examples.labels, without.examples.cond) == (None, None)


class Dropping:
    """A network that drops everything if it gets a key to do so."""

    def init(self, key: Any, x: Any, t: Any) -> Any:
        return {"w": jnp.ones((1, x.shape[-1]))}

    def apply(self, params: Any, x: Any, t: Any, rngs: Any = None) -> Any:
        return params["w"] * x * (0 if rngs else 1)


def test_nothing_is_dropped_within_the_network() -> None:
    source, changes = data.from_object("points", POINTS), {"data.evaluated": 64, "model": "test_held_out:Dropping"}
    evaluation, params = evaluation_of(changes, source)
    experiment = make_experiment(tiny.config(changes), source.spec)
    x0, t, keys = jnp.asarray(POINTS[:64]), jnp.full(64, 0.5), jax.random.split(jax.random.key(0), 64)
    kept, dropped = (experiment.loss(params, x0, t, keys, training=training) for training in (False, True))
    assert not np.allclose(kept, dropped)
    zero = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_allclose(experiment.loss(zero, x0, t, keys, training=False), dropped)
    assert evaluation(params) != pytest.approx(evaluation(zero), rel=0.01)


@pytest.mark.thorough
def test_a_run_reports_it_on_the_line_of_its_step_and_again_when_it_is_resumed(tmp_path: Path) -> None:
    state = loop.train(tiny.config({**EVALUATED, "train.steps": 25}), tmp_path / "whole")
    for steps in (10, 25):
        loop.train(tiny.config({**EVALUATED, "train.steps": steps}), tmp_path / "broken")
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    assert list(curve(tmp_path / "whole")) == [10, 20, 25]
    best = jd.load(tmp_path / "broken", weights="best")
    assert best.step == min(curve(tmp_path / "broken"), key=curve(tmp_path / "broken").get)
    evaluation, _ = evaluation_of(EVALUATED, data.load("swissroll", split="test"))
    assert evaluation(best.params) == pytest.approx(curve(tmp_path / "whole")[best.step], rel=1e-6)
    assert evaluation(state.ema) == pytest.approx(curve(tmp_path / "whole")[25], rel=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": {"name": "learned", "hidden": 4, "learn_ends": True}, "loss.weight": "elbo"},
        {"learned_variance": True},
        {"loss.times": "importance", "train.dtype": "bfloat16"},
        {"process": {"name": "perturbed", "noise": "laplace"}, "sampling.sampler": "deterministic"},
    ],
    ids=["learned schedule", "learned variance", "importance", "perturbed"],
)
def test_every_loss_of_training_has_one(changes: dict[str, Any]) -> None:
    evaluation, params = evaluation_of({**changes, "data.evaluated": 64}, data.from_object("points", POINTS))
    assert 0 < evaluation(params) < 100
    assert evaluation(params) == evaluation(params)


@pytest.mark.thorough
def test_a_classifier_has_one_too(tmp_path: Path) -> None:
    model = {"name": "classifier", "channels": [4], "groups": 2, "time_dim": 8}
    changes = {"model": model, "every.evaluate": 10, "every.log": 1, "train.steps": 2}
    loop.train(tiny.config(changes, base=tiny.IMAGES), tmp_path)
    assert 1.5 < curve(tmp_path)[2] < 4  # about log 10


@pytest.mark.parametrize("on_device", [True, False])
def test_examples_that_are_held_out_are_never_trained_on(on_device: bool) -> None:
    x = np.arange(50, dtype=np.float32).repeat(2).reshape(50, 2)
    rest, held_out = data.hold_out(data.from_object("numbers", x), 20)
    values = [set(part.take(np.arange(len(part))).x[:, 0]) for part in (rest, held_out)]
    assert not values[0] & values[1]
    assert values[0] | values[1] == set(x[:, 0])
    batches = make_batches(rest, tiny.mesh_of(1), seed=0, batch_size=10, on_device=on_device)
    seen = []
    for dispatch in batches.stream(0, 6, 3):
        for chosen in range(dispatch.count):
            whole = batches.resident.take(dispatch.batch[chosen]).x if on_device else dispatch.batch.x[chosen]
            seen += np.asarray(whole)[:, 0].tolist()
    assert sorted(seen) == sorted(2 * list(values[0]))  # two epochs
    batches.dataset.x[int(seen[0])] = np.nan
    assert batches.not_finite(0) == int(seen[0])  # by its index in the whole set


@pytest.mark.thorough
def test_what_is_held_out_belongs_to_the_run(tmp_path: Path) -> None:
    """It is the same whether the run is evaluated or not, and can't change."""
    held_out = {"data.held_out": 60}
    first = jd.train(tiny.config({**held_out, "train.steps": 5}), tmp_path / "a", data=POINTS)
    second = jd.train(tiny.config({**held_out, **EVALUATED, "train.steps": 5}), tmp_path / "b", data=POINTS)
    tiny.assert_identical(first, second)
    assert list(curve(tmp_path / "b")) == [5]
    with pytest.raises(jd.InputError, match=r"data\.held_out: 60 -> 50"):
        jd.train(tiny.config({"data.held_out": 50, "train.steps": 5}), tmp_path / "a", data=POINTS)


def pictures(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 6 * i, np.uint8)).save(folder / name)


def one_split(dir: str | None = None) -> Any:
    """A data set that knows no splits."""
    return POINTS, None


def test_without_held_out_examples_an_evaluation_is_refused_with_the_fix(tmp_path: Path) -> None:
    pictures(tmp_path / "plain", *[f"{i}.png" for i in range(40)])
    pictures(tmp_path / "other", "train/a/1.png", "train/b/2.png", "test/a/3.png", "test/c/4.png")
    refused = functools.partial(check, EVALUATED)
    fix = r"set data\.held_out to the number of examples to keep out of training, such as "
    refused({"data.name": f"folder:{tmp_path / 'plain'}"}, rf"^every\.evaluate = 10 needs .*has no test split.*{fix}4$")
    refused({"data.name": "test_held_out:one_split"}, rf"the same examples in both splits; {fix}20$")
    refused({}, rf"given as an object have no test split; {fix}20$", given=data.from_object("points", POINTS))
    labels = {"data.name": f"folder:{tmp_path / 'other'}", "cond.label": 0.1}
    refused(labels, r"class_names=\('a', 'c'\).* make them alike, or set data\.held_out")
    refused(
        {"data.held_out": 200}, r"^data\.held_out = 200, but 'points' has 200", given=data.from_object("points", POINTS)
    )


def check(base: dict[str, Any], changes: dict[str, Any], message: str, given: Any = None) -> None:
    config = tiny.config({**base, **changes})
    dataset = given or data.load(config.data.name)
    with pytest.raises(jd.InputError, match=message) as error:
        split(config, dataset, dataset.fingerprint(), named=given is None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every.evaluate": 15}, "every.evaluate = 15 is not a multiple of log = 10; make it one"),
        ({"every.evaluate": 0}, "every.evaluate = 0; it must be at least 1"),
        ({"data.held_out": -1}, "data.held_out = -1; it must be at least 0"),
        ({"data.evaluated": 0}, "data.evaluated = 0; it must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(jd.InputError, match=f"^{re.escape(message)}"):
        tiny.config(changes)


@pytest.mark.thorough
def test_it_falls_smoothly(tmp_path: Path) -> None:
    """Between steps it changes far less than the loss of the same number of examples with their own times and noise."""
    changes = {"every.evaluate": 1, "every.log": 1, "train.steps_per_dispatch": 1, "train.steps": 40}
    loop.train(tiny.config({**changes, "data.evaluated": 16, "every.checkpoint": 40}), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][20:]
    rough, smooth = (np.diff([line[name] for line in lines]) for name in ("loss", "eval_loss"))
    assert np.abs(smooth).mean() < 0.2 * np.abs(rough).mean()
    assert jnp.isfinite(smooth).all()
