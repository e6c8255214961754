"""Schedules trained with the network: the gradients, what they do to the estimate's variance, and a run's folder."""

import copy
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jaxdiff import analytic, from_function, losses, schedules, time_sampling, weightings
from jaxdiff.data import DataSpec
from jaxdiff.experiment import make_experiment
from jaxdiff.loading import load
from jaxdiff.processes import Gaussian
from jaxdiff.training.learned_schedule import gradient
from jaxdiff.training.step import init_state, update

LEARNED = {
    "schedule": {"name": "learned", "hidden": 8, "log_snr_min": -8.0, "learn_ends": True},
    "loss": {"weight": "elbo", "times": "antithetic"},
}
VARIANCE = 0.3


def bound_of_normal_data(params: Any, x0: jax.Array, t: jax.Array, keys: jax.Array, labels: None = None) -> jax.Array:
    """The diffusion term per coordinate, with the estimate of the exact denoiser times a factor."""
    schedule = params["schedule"]
    exact = analytic.gaussian(np.zeros(2), VARIANCE, schedule=schedule)

    def off(x_t: jax.Array, t: jax.Array, cond: Any = None, /) -> Any:
        return jax.tree.map(lambda half: params["factor"] * half, exact(x_t, t))

    def one(x0: jax.Array, t: jax.Array, key: jax.Array) -> jax.Array:
        return losses.weighted(from_function(off, Gaussian(schedule)), x0, t, key=key, weight=weightings.elbo())

    return jax.vmap(one)(x0, t, keys)


def batch(n: int, seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    key_x, key_t, key_noise = jax.random.split(jax.random.key(seed), 3)
    x0 = math.sqrt(VARIANCE) * jax.random.normal(key_x, (n, 2))
    return x0, time_sampling.antithetic(key_t, n), jax.random.split(key_noise, n)


@pytest.mark.thorough
def test_each_parameter_descends_along_its_own_loss(x64: None) -> None:
    """Network and ends along E[L], the shape along E[L²], from one pass: against two of plain autodiff."""
    schedule = schedules.Learned.init(jax.random.key(0), hidden=8, log_snr_max=6.0, log_snr_min=-5.0, learn_ends=True)
    schedule = jax.tree.map(lambda leaf: leaf.astype(float), schedule)
    params, examples = {"factor": jnp.float64(0.8), "schedule": schedule}, batch(5, seed=1)
    value, grads, each = jax.jit(functools.partial(gradient, bound_of_normal_data))(params, *examples)

    @jax.jit
    def expected(params: Any) -> Any:
        def moment(params: Any, power: int) -> jax.Array:
            return (bound_of_normal_data(params, *examples) ** power).mean()

        return bound_of_normal_data(params, *examples), *(jax.grad(moment)(params, power) for power in (1, 2))

    found, mean, square = expected(params)
    np.testing.assert_allclose(each, found, rtol=1e-10)
    np.testing.assert_allclose(value, found.mean(), rtol=1e-10)
    np.testing.assert_allclose(grads["factor"], mean["factor"], rtol=1e-10)
    np.testing.assert_allclose(grads["schedule"].ends, mean["schedule"].ends, rtol=1e-9)
    for name in ("slopes", "offsets", "heights"):
        wanted = getattr(square["schedule"], name)
        np.testing.assert_allclose(getattr(grads["schedule"], name), wanted, rtol=1e-8, atol=1e-12)


def spread(schedule: schedules.Schedule) -> tuple[float, float]:
    """Mean and relative standard deviation over t of E[L|t], where E(n − n̂)² is v SNR/(1 + v SNR)."""
    t = (jnp.arange(2000) + 0.5) / 2000
    rate = jax.vmap(lambda t: schedules.log_snr_rate(schedule, t))(t)
    snr = VARIANCE * jnp.exp(schedule.log_snr(t))
    loss = np.asarray(-0.5 * rate * snr / (1 + snr), np.float64)
    return loss.mean(), loss.std() / loss.mean()


@pytest.mark.thorough
def test_training_makes_the_loss_more_even_over_time_and_leaves_its_mean() -> None:
    """On normal data with the exact denoiser: to 0.28 of a straight line's variance over t, 0.02 of the cosine's."""
    start = schedules.Learned.init(jax.random.key(0), hidden=32, log_snr_max=8.0, log_snr_min=-2.0)
    optimizer = optax.multi_transform(
        {"learned": optax.adam(0.05), "fixed": optax.set_to_zero()}, {"factor": "fixed", "schedule": "learned"}
    )

    def step(state: Any, index: jax.Array) -> tuple[Any, None]:
        params, opt_state = state
        _, grads, _ = gradient(bound_of_normal_data, params, *batch(64, index))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    params = {"factor": jnp.float32(1), "schedule": start}
    (params, _), _ = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(300)))((params, optimizer.init(params)))
    before, after = spread(start), spread(params["schedule"])
    cosine = spread(schedules.TruncatedCosine(log_snr_max=8.0, log_snr_min=-2.0))
    exact = 0.5 * math.log((1 + VARIANCE * math.exp(8)) / (1 + VARIANCE * math.exp(-2)))
    assert before[0] == pytest.approx(exact, rel=1e-3)
    assert after[0] == pytest.approx(exact, rel=1e-3)
    assert after[1] ** 2 < 0.36 * before[1] ** 2
    assert after[1] ** 2 < 0.04 * cosine[1] ** 2


@pytest.mark.thorough
def test_the_schedule_neither_decays_nor_counts_in_the_clipped_norm() -> None:
    experiment = make_experiment(
        tiny.config({**LEARNED, "optimizer.weight_decay": 0.1}), DataSpec(shape=(2,), levels=None)
    )
    state = jax.jit(lambda: init_state(experiment))()
    step = jax.jit(functools.partial(update, experiment))
    grads = jax.tree.map(jnp.zeros_like, state.params)
    grads["schedule"] = jax.tree.map(lambda leaf: 1e3 * jnp.ones_like(leaf), grads["schedule"])
    grads["params"]["head"]["bias"] = jnp.full(2, 0.5)
    other = {**grads, "schedule": state.params["schedule"]}
    after = [step(state, jnp.zeros(()), each)[0] for each in (grads, other)]
    tiny.assert_identical(after[0].params["params"], after[1].params["params"])
    still = step(state, jnp.zeros(()), jax.tree.map(jnp.zeros_like, grads))[0]
    tiny.assert_identical(still.params["schedule"], state.params["schedule"])
    assert tiny.difference(still.params["params"], state.params["params"]) > 0


@pytest.mark.thorough
def test_the_network_sees_the_log_snr_and_not_the_time() -> None:
    """Two schedules of other shapes give the same prediction of the same x_t at the same log-SNR."""
    experiment = make_experiment(tiny.config(LEARNED), DataSpec(shape=(2,), levels=None))
    params = experiment.init(jax.random.key(0))
    params["params"]["head"]["kernel"] = jax.random.normal(jax.random.key(1), (16, 2))
    other = {**params, "schedule": dataclasses.replace(params["schedule"], heights=5 * params["schedule"].heights)}
    x, level = jnp.array([0.3, -0.6]), 2.0
    times = [tree["schedule"].time(level) for tree in (params, other)]
    assert abs(times[0] - times[1]) > 0.01
    same = [experiment.network(tree)(x, t).x0 for tree, t in zip((params, other), times, strict=True)]
    np.testing.assert_allclose(same[0], same[1], rtol=1e-3)
    assert np.abs(same[0] - experiment.network(params)(x, times[1]).x0).max() > 0.01


@pytest.fixture(scope="module")
def trained(tmp_path_factory: Any) -> tuple[Path, Any]:
    """A run's folder and its last state."""
    workdir = tmp_path_factory.mktemp("learned")
    return workdir, tiny.train_without_picture(tiny.config({**LEARNED, "train.steps": 10}), workdir)


@pytest.mark.thorough
def test_a_run_has_the_averaged_schedule_in_all_that_it_does(trained: tuple[Path, Any]) -> None:
    workdir, state = trained
    run = load(workdir)
    tiny.assert_identical(run.process.schedule, state.ema["schedule"])
    tiny.assert_identical(run.denoiser.process.schedule, state.ema["schedule"])
    first = init_state(run.experiment).params["schedule"]
    for moved in (state.ema["schedule"], state.params["schedule"]):
        assert abs(moved.ends - first.ends).max() > 1e-3
        assert abs(moved.heights - first.heights).max() > 1e-3
    assert tiny.difference(state.ema["schedule"], state.params["schedule"]) > 1e-4
    assert np.isfinite(run.sample(jax.random.key(0), n=3, steps=2, timesteps="karras")).all()


def test_the_loss_of_a_schedule_with_learned_ends_is_the_bound() -> None:
    """With the untrained network, n̂ = 0: ½ E_t[−λ'] E n² = ½ (λ_0 − λ_1), the prior's ½ SNR_1 x², and the density."""
    experiment = make_experiment(tiny.config(LEARNED), DataSpec(shape=(2,), levels=None))
    params, n = experiment.init(jax.random.key(0)), 4096
    x0 = jnp.ones((n, 2))
    t, keys, _ = experiment.draw(jax.random.key(1), n)
    found = np.asarray(jax.jit(experiment.loss)(params, x0, t, keys), np.float64)
    high, low = 13.3, -8.0
    expected = 0.5 * (high - low) + 0.5 * math.exp(low) + 0.5 * (math.log(2 * math.pi) + 1 - high)
    assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(n)
    tiny.assert_identical(experiment.process(params).schedule, params["schedule"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.weight": None}, "loss.weight = None, but schedule.learn_ends learns the ends by the ELBO: set loss"),
        ({"loss.weight": "sigmoid"}, "loss.weight = 'sigmoid', but schedule.learn_ends learns the ends by the ELBO"),
        (
            {"loss.weight": "min_snr", "schedule.learn_ends": False},
            "loss.weight = 'min_snr', but a learned schedule needs a loss that does not depend on its shape: set loss",
        ),
        (
            {"loss.weight": "elbo:num_timesteps=10", "schedule.learn_ends": False},
            "loss.weight = 'elbo:num_timesteps=10', but a learned schedule needs a loss that does not depend",
        ),
        ({"loss.times": "log_normal"}, "loss.times = 'log_normal', but a learned schedule is trained at uniform times"),
        ({"loss.times": "importance"}, "loss.times = 'importance', but a learned schedule is trained at uniform times"),
        ({"loss.times": "discrete"}, "loss.times = 'discrete', but the schedule is continuous"),
        ({"predicts": "velocity"}, "predicts = 'velocity', but dx/dt changes with the shape of a learned schedule"),
        ({"schedule.key": 1}, "schedule = 'learned' has no option 'key'"),
        ({"schedule.hidden": 0}, "schedule.hidden = 0; the network needs at least 1 sigmoid"),
    ],
)
def test_what_does_not_go_with_a_learned_schedule_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        tiny.config({**copy.deepcopy(LEARNED), **changes})
    tiny.config({**copy.deepcopy(LEARNED), "schedule.learn_ends": False, "loss.weight": "sigmoid:bias=1"})
