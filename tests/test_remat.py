"""Rematerialization: the same losses and gradients, from less memory."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxdiff.data import DataSpec
from jaxdiff.experiment import Experiment, make_experiment, resumption
from jaxdiff.models import MODELS
from jaxdiff.training.batches import Examples
from jaxdiff.training.step import State, abstract_state, init_state, make_step
from jaxdiff.typing import InputError

DEVICES = 8

SPEC = DataSpec(shape=(16, 16, 1), levels=17, classes=10)
BATCH = 16
DEEP = {**tiny.IMAGES["model"], "stem": 8, "down": [8], "up": [8], "layers": 2}
NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"model": {**DEEP, "attention": [True]}},
    "classifier": {"model": {"name": "classifier", "channels": [8], "layers": 5}},
}


def experiment_of(changes: dict[str, Any], *, remat: bool) -> Experiment:
    return make_experiment(tiny.config({**changes, "train.remat": remat}, base=tiny.IMAGES), SPEC)


def compiled(experiment: Experiment, devices: int) -> tuple[Any, State, Examples]:
    """The compiled step and its arguments."""
    mesh = tiny.mesh_of(devices)
    abstract = abstract_state(experiment, mesh)
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=(1, BATCH)).astype(np.int32) if experiment.classes else None
    batch = Examples(rng.integers(17, size=(1, BATCH, 16, 16, 1)).astype(np.uint8), labels)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state = jax.jit(functools.partial(init_state, experiment), out_shardings=shardings)()
    state = state._replace(params=jax.device_put(random_like(state.params), shardings.params))
    return make_step(experiment, mesh, abstract).lower(state, None, batch).compile(), state, batch


@pytest.mark.thorough
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("devices", [1, 8])
def test_a_step_needs_less_memory_and_computes_the_same(network, devices):
    """Of the memory, 0.61 was needed at most."""
    memory, metrics = [], []
    for remat in (False, True):
        step, state, batch = compiled(experiment_of(NETWORKS[network], remat=remat), devices)
        memory.append(step.memory_analysis().temp_size_in_bytes)
        metrics.append(step(state, None, batch)[1])
    assert memory[1] < 0.65 * memory[0], memory
    np.testing.assert_allclose(metrics[1].loss, metrics[0].loss, rtol=1e-6)
    np.testing.assert_allclose(metrics[1].grad_norm, metrics[0].grad_norm, rtol=1e-5)


def batch_of(experiment: Experiment, n: int = 4) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    x0 = jnp.asarray(rng.uniform(-1, 1, (n, *SPEC.shape)), jnp.float32)
    labels = jnp.asarray(rng.integers(10, size=n), jnp.int32) if experiment.classes else None
    return x0, jnp.linspace(0.1, 1, n), jax.random.split(jax.random.key(0), n), labels


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.quick(network=["classifier"])
def test_the_backward_pass_keeps_less(network):
    """What the forward pass leaves for it beside the weights: less than a fifth."""

    def kept(remat: bool) -> int:
        experiment = experiment_of(NETWORKS[network], remat=remat)
        batch = batch_of(experiment)
        pullback = jax.eval_shape(
            lambda params: jax.vjp(lambda params: experiment.loss(params, *batch), params)[1],
            experiment.abstract_weights,
        )
        weights = sum(leaf.size for leaf in jax.tree.leaves(experiment.abstract_weights))
        return sum(leaf.size for leaf in jax.tree.leaves(pullback)) - weights

    assert kept(True) < 0.2 * kept(False)


def test_the_gradient_is_the_same():
    def gradient(remat: bool) -> Any:
        experiment = experiment_of({"model": {"name": "classifier", "channels": [8], "groups": 2}}, remat=remat)
        batch = batch_of(experiment)
        mean = jax.grad(lambda params: experiment.loss(params, *batch).mean())
        return jax.jit(mean)(random_like(experiment.abstract_weights))

    gradients = [gradient(remat) for remat in (False, True)]
    size = max(float(np.abs(leaf).max()) for leaf in tiny.arrays(gradients[0]))
    assert size > 0.01
    assert tiny.difference(*gradients) < 1e-6 * size


def random_like(abstract: Any) -> Any:
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), abstract)


def test_the_weights_are_the_same():
    """They have the same names and shapes, so that a run may go on with or without."""
    shapes = [experiment_of(NETWORKS["unet"], remat=remat).abstract_weights for remat in (False, True)]
    assert repr(shapes[0]) == repr(shapes[1])


def test_it_may_change_when_a_run_is_resumed_and_is_no_part_of_the_model():
    old, new = (experiment_of(NETWORKS["unet"], remat=remat).config for remat in (False, True))
    resumption.check(old, new, 1, (), where="workdir = x")
    assert old.model == new.model


def test_a_network_that_cannot_is_refused():
    with pytest.raises(InputError, match=r"^train\.remat = True, but model 'mlp' has no parameter remat; leave it out"):
        tiny.config({"train.remat": True})
    assert {name for name in MODELS if "remat" in inspect.signature(MODELS[name]).parameters} == {*MODELS} - {"mlp"}
