"""Runs that are copied and pickled, the sizes that are compiled, and strict promotion of dtypes."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxdiff as jd
from jaxdiff import registry
from jaxdiff.data import DataSpec
from jaxdiff.experiment import make_experiment
from jaxdiff.processes.transforms import TRANSFORMS
from jaxdiff.run import Run
from jaxdiff.samplers import batching
from jaxdiff.training.step import gradient, init_state, update

DIGITS = DataSpec(shape=(8, 8, 1), levels=17, classes=10)
PERTURBED = {
    "process": {
        "name": "perturbed",
        "transform": ("random_rotation:low=-1,high=1",),
        "noise": "gamma",
        "start": "fitted",
    },
    "predicts": "x0",
    "loss.target": "x0",
    "sampling.sampler": "deterministic",
}
LEARNED = {"schedule": {"name": "learned", "hidden": 4}, "loss.weight": "elbo"}


def made(changes: dict[str, Any], spec: DataSpec | None = None) -> Run:
    """An untrained run on points, or on images of this spec."""
    examples = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    config = tiny.config(changes, base=tiny.IMAGES if spec else tiny.POINTS)
    experiment = make_experiment(
        config, spec or DataSpec(shape=(2,), levels=None), examples if "process" in changes else None
    )
    return Run(experiment=experiment, params=jax.jit(experiment.init)(jax.random.key(0)), step=7)


@pytest.mark.thorough
@pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))])
@pytest.mark.parametrize("changes", [{"loss.times": "antithetic", "loss.weight": "p2"}, PERTURBED, LEARNED])
def test_a_copy_of_a_run_samples_the_same(changes: dict[str, Any], make_copy: Callable[[Run], Run]) -> None:
    run = made(changes)
    _ = run.config.loss.built_weight, run.config.built_transform  # kept in the config
    if changes is not PERTURBED:
        _ = run.network
    found = make_copy(run)
    assert (found.step, found.config, found.trusted) == (7, run.config, True)
    key = jax.random.key(1)
    np.testing.assert_array_equal(run.sample(key, n=3), found.sample(key, n=3))


@pytest.mark.usefixtures("eight_devices")
def test_few_sizes_are_compiled_and_a_sample_is_the_same_in_each(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = batching.all_devices()
    assert {batching._size(n, 64, mesh) for n in range(33, 65)} == {64}
    assert {batching._size(n, 100, mesh) for n in range(1, 1000)} == {8, 16, 32, 64, 104}
    assert {batching._size(n, 5, mesh) for n in range(1, 9)} == {8}
    run, sizes = made({}), set()
    keys = batching._spread_keys
    monkeypatch.setattr(batching, "_spread_keys", lambda key, i, to: (sizes.add(len(i)), keys(key, i, to))[1])
    drawn = {n: run.sample(jax.random.key(0), n=n) for n in (17, 20, 31)}
    assert sizes == {32}
    for n, samples in drawn.items():
        np.testing.assert_array_equal(samples, drawn[31][:n])


@pytest.mark.parametrize("schedule", ["linear", "vp"])
@pytest.mark.thorough
def test_strict_promotion_of_dtypes_is_kept(schedule: str) -> None:
    run, key = made({"schedule": {"name": schedule}}, DIGITS), jax.random.key(0)
    x0 = np.zeros((8, 8, 8, 1), np.float32)

    def step() -> Any:
        state = init_state(run.experiment)
        batch = (jnp.asarray(x0), None, *run.experiment.draw(state.key, 8))
        loss, grads, _ = gradient(run.experiment, state.params, batch)
        return update(run.experiment, state, loss, grads)

    tasks = (lambda: run.sample(key, n=8), lambda: run.bits_per_dim(x0)["ode"])
    with jax.numpy_dtype_promotion("strict"):
        strict = [task() for task in tasks]
        jax.eval_shape(step)
    for found, task in zip(strict, tasks, strict=True):
        np.testing.assert_array_equal(found, task())


@pytest.mark.parametrize("name", ["pink", "blue"])
@pytest.mark.parametrize("transform", ["warp:angle=1", "blur:width=2", "pixelate:blocks=(2,4)"])
def test_perturbations_keep_strict_promotion_of_dtypes(name: str, transform: str) -> None:
    made = registry.make("transform", transform, TRANSFORMS)
    process = jd.Perturbed(jd.schedules.Linear(25), transform=made, noise=jd.noise.NOISES[name]())
    with jax.numpy_dtype_promotion("strict"):
        noise = process.sample_noise(jax.random.key(0), (8, 8, 1), 0.5)
        assert process.corrupt(jnp.ones((8, 8, 1)), noise, 0.5).dtype == jnp.float32
