"""The training step against plain NumPy and `jax.pmap`, and the order of the data."""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jaxdiff import data
from jaxdiff.data import DataSpec
from jaxdiff.experiment import Config, Experiment, make_experiment
from jaxdiff.training.batches import Examples, indices, make_batches
from jaxdiff.training.sharding import make_mesh
from jaxdiff.training.step import Metrics, State, abstract_state, gradient, init_state, make_step, update

DEVICES = 8

STEPS, BATCH = 5, 16
# Large enough for its matrices to be sharded (128·128 elements), with a learning rate that moves far in a few steps.
WIDE = {"model": {"name": "mlp", "width": 128, "depth": 1, "time_dim": 8}, "train.batch_size": BATCH}
# Rounding, where Adam divides a small gradient by its own size. Another order of the data is 100 times as far away.
ROUNDING = 2e-4


class Trained(NamedTuple):
    """What some steps made of a state."""

    state: State
    metrics: Metrics


def dataset() -> data.Dataset:
    return data.load("swissroll")


def experiment_of(config: Config) -> Experiment:
    return make_experiment(config, DataSpec(shape=(2,), levels=None))


def first_state(experiment: Experiment, abstract: State | None = None) -> State:
    """The state before the first step, on one device or laid out like `abstract`."""
    shardings = None if abstract is None else jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(functools.partial(init_state, experiment), out_shardings=shardings)()


def train(changes: dict[str, Any] | None = None, *, devices: int = 8, steps: int = STEPS, seed: int = 0) -> Trained:
    """Some steps of the wide network, without a folder."""
    config = tiny.config({**WIDE, **(changes or {})})
    mesh, experiment = tiny.mesh_of(devices, config.train.fsdp), experiment_of(config)
    abstract = abstract_state(experiment, mesh)
    state = first_state(experiment, abstract)
    batches = make_batches(dataset(), mesh, seed=seed, batch_size=BATCH, on_device=config.data.on_device)
    step = make_step(experiment, mesh, abstract)
    found = []
    for dispatch in batches.stream(0, steps, config.train.steps_per_dispatch):
        state, metrics = step(state, batches.resident, dispatch.batch)
        found.append(metrics)
    return Trained(state, jax.tree.map(lambda *parts: np.concatenate(parts), *found))


@pytest.fixture(scope="module")
def reference() -> Trained:
    """Six steps on eight devices, one to a dispatch."""
    return train({"train.steps_per_dispatch": 1})


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(("batch", "n"), [(4, 12), (5, 12), (12, 12), (7, 3), (1, 5)])
def test_each_epoch_is_a_permutation_and_batches_run_across_epochs(seed, batch, n):
    stream = indices(seed, 0, (4 * n, batch), n).reshape(-1)
    epochs = stream.reshape(-1, n)
    np.testing.assert_array_equal(np.sort(epochs), np.broadcast_to(np.arange(n), epochs.shape))
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize(("batch", "n"), [(5, 12), (7, 3)])
def test_the_order_of_the_data_is_a_function_of_seed_and_step(batch, n):
    whole = indices(3, 0, (20, batch), n)
    for first, count in [(0, 1), (7, 4), (19, 1)]:
        np.testing.assert_array_equal(indices(3, first, (count, batch), n), whole[first : first + count])
    assert (indices(4, 0, (20, batch), n) != whole).any()


@pytest.mark.parametrize(
    ("start", "stop", "size", "expected"),
    [
        (0, 10, 5, [(0, 5), (5, 5)]),
        (0, 7, 5, [(0, 5), (5, 2)]),
        (7, 21, 5, [(7, 3), (10, 5), (15, 5), (20, 1)]),
        (3, 4, 5, [(3, 1)]),
        (4, 4, 2, []),
    ],
)
def test_dispatches_end_at_multiples_of_their_size_wherever_they_start(start, stop, size, expected):
    batches = make_batches(dataset(), tiny.mesh_of(1), seed=1, batch_size=4, on_device=True)
    dispatches = list(batches.stream(start, stop, size))
    assert [(dispatch.first, dispatch.count) for dispatch in dispatches] == expected
    for dispatch in dispatches:
        np.testing.assert_array_equal(dispatch.batch, indices(1, dispatch.first, (dispatch.count, 4), 20_000))


def test_the_mesh_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match=r"^train\.batch_size = 12 is not divisible over 8 devices; use 8 or 16$"):
        make_mesh(1, 12)
    with pytest.raises(ValueError, match=r"is not divisible over 8 devices x 2 micro-batches; use 16 or 32$"):
        make_mesh(1, 24, 2)
    with pytest.raises(ValueError, match=r"batch_size = 4 is not divisible over 8 devices; use 8$"):
        make_mesh(1, 4)
    with pytest.raises(ValueError, match=r"^train\.fsdp = 3 does not divide the 8 devices; choose a divisor of 8$"):
        make_mesh(3, 24)
    assert dict(make_mesh(2, 16).shape) == {"data": 4, "fsdp": 2}


def pmap_steps(experiment: Experiment, devices: int) -> State:
    """The same training written with `jax.pmap`: each device has its slice of the batch, gradients meet in a pmean."""
    x, state = dataset().x, first_state(experiment)

    @functools.partial(jax.pmap, axis_name="devices")
    def step(state: State, batch: Any) -> State:
        loss, grads = jax.lax.pmean(gradient(experiment, state.params, batch)[:2], "devices")
        return update(experiment, state, loss, grads)[0]

    key = state.key
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (devices, *leaf.shape)), state)
    for n in range(STEPS):
        chosen = indices(0, n, (1, BATCH), len(x))[0]
        drawn = experiment.draw(jax.random.fold_in(key, n), BATCH)
        batch = jax.tree.map(lambda leaf: leaf.reshape(devices, -1, *leaf.shape[1:]), (x[chosen], None, *drawn))
        state = step(state, batch)
    return jax.tree.map(lambda leaf: leaf[0], state)


@pytest.mark.thorough
def test_the_step_on_eight_devices_is_that_of_pmap(reference):
    state = pmap_steps(experiment_of(tiny.config(WIDE)), 8)
    assert tiny.difference(state.params, reference.state.params) < ROUNDING
    assert tiny.difference(state.ema, reference.state.ema) < ROUNDING
    assert int(reference.state.step) == STEPS


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({"train.steps_per_dispatch": 1}, 1),
        ({"train.steps_per_dispatch": 1, "train.fsdp": 2}, 8),
        ({"train.steps_per_dispatch": 1, "train.fsdp": 4}, 8),
        ({"train.steps_per_dispatch": 1, "train.accumulate": 4}, 4),
        ({"train.steps_per_dispatch": 5}, 8),
    ],
    ids=["1 device", "fsdp=2", "fsdp=4", "accumulate=4", "5 steps a dispatch"],
)
@pytest.mark.quick(changes=["fsdp=4"])
def test_how_a_step_is_spread_changes_rounding_only(reference, changes, devices):
    other = train(changes, devices=devices)
    assert tiny.difference(other.state[:3], reference.state[:3]) < ROUNDING
    np.testing.assert_allclose(other.metrics.loss, reference.metrics.loss, rtol=1e-5)
    np.testing.assert_allclose(other.metrics.grad_norm, reference.metrics.grad_norm, rtol=1e-4)


def test_rounding_is_far_below_what_another_order_of_the_data_does(reference):
    other = train({"train.steps_per_dispatch": 1}, seed=1)
    assert tiny.difference(other.state.params, reference.state.params) > 100 * ROUNDING


@pytest.mark.thorough
def test_batches_fed_from_the_host_train_exactly_as_those_on_the_device(reference):
    other = train({"train.steps_per_dispatch": 1, "data.on_device": False})
    tiny.assert_identical(other.state, reference.state)


def test_large_weights_and_their_moments_are_sharded_over_fsdp():
    state = train({"train.fsdp": 4, "train.steps_per_dispatch": 1}, steps=1).state
    kernel = state.params["params"]["block0_dense1"]["kernel"]
    moments = optax.tree.get_all_with_path(state.opt_state, "mu")[0][1]["params"]["block0_dense1"]["kernel"]
    for leaf in (kernel, moments, state.ema["params"]["block0_dense1"]["kernel"]):
        assert leaf.shape == (128, 128)
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(32, 128)}
    assert state.params["params"]["stem"]["kernel"].sharding.is_fully_replicated


def test_each_device_works_on_its_part_of_the_batch_and_the_state_is_donated():
    experiment, mesh = experiment_of(tiny.config(WIDE)), tiny.mesh_of(8)
    abstract = abstract_state(experiment, mesh)
    state = first_state(experiment, abstract)
    batches = make_batches(dataset(), mesh, seed=0, batch_size=BATCH, on_device=True)
    inputs = batches.resident, next(batches.stream(0, 1, 1)).batch
    step = make_step(experiment, mesh, abstract)
    program = step.lower(state, *inputs).compile().as_text()
    assert "f32[2,128]" in program
    assert "f32[16,128]" not in program
    assert "all-reduce" in program
    assert "all-gather" not in program
    step(state, *inputs)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state)))
    assert not batches.resident.rows.x.is_deleted()


def test_the_average_follows_the_weights_with_a_warmed_up_decay():
    experiment = experiment_of(tiny.config({"train.ema_decay": 0.28}))
    state = first_state(experiment)
    average = tiny.arrays(state.ema)
    grads = jax.tree.map(jnp.ones_like, state.params)
    step = jax.jit(functools.partial(update, experiment))
    for n in range(6):
        state, _ = step(state, jnp.zeros(()), grads)
        decay = min(0.28, (1 + n) / (10 + n))
        average = [decay * a + (1 - decay) * p for a, p in zip(average, tiny.arrays(state.params), strict=True)]
        for expected, found in zip(average, tiny.arrays(state.ema), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.thorough
def test_the_step_reports_and_uses_the_scheduled_learning_rate(reference):
    np.testing.assert_allclose(reference.metrics.learning_rate, [0.0025, 0.005, 0.0075, 0.01, 0.01], rtol=1e-6)
    still = train({"optimizer.learning_rate": 0, "train.steps_per_dispatch": 1}, steps=2)
    tiny.assert_identical(still.state.params, first_state(experiment_of(tiny.config(WIDE))).params)


@pytest.mark.parametrize("clip_norm", [None, 0.5, 1e6])
def test_the_gradient_is_clipped_by_its_global_norm(clip_norm):
    experiment = experiment_of(tiny.config({"optimizer.clip_norm": clip_norm}))
    state = first_state(experiment)
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.1), state.params)
    norm = 0.1 * np.sqrt(sum(leaf.size for leaf in jax.tree.leaves(grads)))
    after, metrics = jax.jit(functools.partial(update, experiment))(state, jnp.zeros(()), grads)
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-5)
    scale = min(1.0, (clip_norm or np.inf) / norm)
    (_, mean), *_ = optax.tree.get_all_with_path(after.opt_state, "mu")
    for leaf in jax.tree.leaves(mean):
        np.testing.assert_allclose(leaf, (1 - 0.9) * 0.1 * scale, rtol=1e-4)


def test_weight_decay_is_that_of_adamw():
    experiment = experiment_of(tiny.config({"optimizer.weight_decay": 0.1, "optimizer.warmup_steps": 0}))
    state = first_state(experiment)
    grads = jax.tree.map(jnp.zeros_like, state.params)
    after, _ = jax.jit(functools.partial(update, experiment))(state, jnp.zeros(()), grads)
    for old, new in zip(tiny.arrays(state.params), tiny.arrays(after.params), strict=True):
        np.testing.assert_allclose(new, (1 - 0.01 * 0.1) * old, rtol=1e-6)


def test_bfloat16_computes_low_and_keeps_float32_weights(reference):
    other = train({"train.dtype": "bfloat16", "train.steps_per_dispatch": 1})
    assert {leaf.dtype for leaf in jax.tree.leaves(other.state[1:3])} == {np.dtype("float32")}
    assert {leaf.dtype for leaf in other.metrics} == {np.dtype("float32")}
    assert np.isfinite(other.metrics.loss).all()
    error = np.abs(other.metrics.loss - reference.metrics.loss).max()
    assert 1e-6 < error < 0.05


def test_every_step_draws_times_and_noise_of_its_own(reference):
    experiment = experiment_of(tiny.config(WIDE))
    key = jax.random.key(0)
    drawn = [experiment.draw(jax.random.fold_in(key, n), BATCH) for n in range(3)]
    for (times, keys, _), (other_times, other_keys, _) in itertools.combinations(drawn, 2):
        assert (times != other_times).any()
        assert (jax.random.key_data(keys) != jax.random.key_data(other_keys)).any(axis=1).all()


@pytest.mark.thorough
def test_the_history_gets_each_loss_of_the_batch_at_its_time_and_weighs_the_mean():
    """One step from a history that says something, replayed example by example; four micro-batches on four devices."""
    config = tiny.config({**WIDE, "schedule": {"name": "cosine", "num_timesteps": 4}, "loss.times": "importance"})
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=4))
    experiment, mesh = experiment_of(config), tiny.mesh_of(4)
    state = first_state(experiment)
    before = state.history.update(jnp.repeat(jnp.arange(1, 5) / 4, 10), jnp.repeat(jnp.arange(1.0, 5), 10))
    state, x = jax.tree.map(np.asarray, state._replace(history=before, key=None)), dataset().x[:BATCH]
    key = first_state(experiment).key
    t, keys, weights = experiment.draw(jax.random.fold_in(key, 0), BATCH, before)
    assert set(np.asarray(t * 4)) <= {1.0, 2.0, 3.0, 4.0}
    assert np.ptp(weights) > 0.5
    losses = jax.jit(experiment.loss)(state.params, jnp.asarray(x), t, keys)
    after, metrics = make_step(experiment, mesh, abstract_state(experiment, mesh))(
        state._replace(key=key), None, Examples(x[None], None)
    )
    np.testing.assert_allclose(metrics.loss[0], (weights * losses).mean(), rtol=1e-5)
    expected = before.update(t, losses)
    np.testing.assert_array_equal(after.history.counts, expected.counts)
    np.testing.assert_allclose(after.history.losses, expected.losses, rtol=1e-5)
