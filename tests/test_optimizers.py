"""Optimizers and decays of the learning rate by name, against Optax and closed forms."""

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff import schedules
from jaxdiff.data import DataSpec
from jaxdiff.experiment import Config, Experiment, Optimizer, make_experiment, resumption
from jaxdiff.experiment.checkpoint import Checkpoints
from jaxdiff.experiment.optimizers import DECAYS, OPTIMIZERS, all_but_schedule
from jaxdiff.training import loop
from jaxdiff.typing import InputError

LEARNED = {"schedule": {"name": "learned", "hidden": 4, "learn_ends": True}, "loss.weight": "elbo"}
PARAMS = {"dense": {"kernel": jnp.arange(6.0).reshape(2, 3) - 2, "bias": jnp.ones(3)}}


def own_optimizer(learning_rate: Any, mask: Any = None, *, momentum: float = 0.5) -> optax.GradientTransformation:
    """One of a user, without weight decay."""
    return optax.sgd(learning_rate, momentum)


def own_decay(learning_rate: float, steps: int, stable: float = 0.5) -> Any:
    """Constant for a share of the steps, then linear to 0."""
    return lambda n: learning_rate * jnp.minimum(1, (steps - n) / (steps * (1 - stable)))


def no_optimizer(learning_rate: Any) -> int:
    """What a user may mistake for an optimizer or a decay."""
    return 3


def no_rate(momentum: float = 0.0) -> None:
    """It can't be given the learning rate."""


def experiment_of(config: Config) -> Experiment:
    return make_experiment(config, DataSpec(shape=(2,), levels=None))


def gradients(params: Any, seed: int) -> Any:
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return structure.unflatten([jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves])


def steps_of(optimizer: optax.GradientTransformation, params: Any = PARAMS, steps: int = 3) -> Any:
    """The parameters after some steps with random gradients."""
    state = optimizer.init(params)
    for n in range(steps):
        updates, state = optimizer.update(gradients(params, n), state, params)
        params = optax.apply_updates(params, updates)
    return params


RATES = optax.cosine_decay_schedule(0.1, 5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamw", optax.adamw(RATES, weight_decay=0.3)),
        ("adamw:b1=0.8,b2=0.95,nesterov=True", optax.adamw(RATES, 0.8, 0.95, nesterov=True, weight_decay=0.3)),
        ("lion:b2=0.9", optax.lion(RATES, b2=0.9, weight_decay=0.3)),
        ("optax:lamb", optax.lamb(RATES, weight_decay=0.3)),
        ("adam:eps=0.1", optax.adam(RATES, eps=0.1)),
        ("sgd", optax.sgd(RATES)),
        ("sgd:momentum=0.9,nesterov=True", optax.sgd(RATES, 0.9, True)),
        (f"{__name__}:own_optimizer", optax.sgd(RATES, 0.5)),
        (f"{__name__}:own_optimizer:momentum=0.2", optax.sgd(RATES, 0.2)),
    ],
)
def test_a_name_stands_for_the_function_of_optax_after_clipping(name, expected):
    decays = name.startswith(("adamw", "lion", "optax"))
    optimizer = Optimizer(
        name=name, learning_rate=0.1, decay="cosine", weight_decay=0.3 if decays else 0.0, clip_norm=1.0
    )
    expected = optax.chain(optax.clip_by_global_norm(1.0), expected)
    tiny.assert_identical(steps_of(optimizer.build(5)), steps_of(expected))


def test_the_state_of_adamw_is_that_of_earlier_runs():
    """Checkpoints of runs from before optimizers had names are read by this structure."""
    found = Optimizer(learning_rate=0.1, decay="cosine").build(5).init(PARAMS)
    expected = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATES, weight_decay=0.0)).init(PARAMS)
    assert jax.tree.structure(found) == jax.tree.structure(expected)


def test_muon_makes_the_updates_of_kernels_orthogonal_and_adam_makes_the_others():
    """Newton and Schulz's iteration brings the singular values of the first update to 1 ± 0.3."""
    params = {
        "conv": {"kernel": jnp.zeros((3, 3, 4, 8)), "bias": jnp.zeros(8)},
        "table": {"embedding": jnp.ones((4, 6))},
    }
    optimizer = Optimizer(name="muon", learning_rate=0.1, weight_decay=0.5, clip_norm=None).build(5)
    moved = steps_of(optimizer, params, steps=1)
    matrix = np.asarray(moved["conv"]["kernel"]).reshape(36, 8) / (0.1 * 0.2 * np.sqrt(36))
    singular = np.linalg.svd(matrix, compute_uv=False)
    assert 0.65 < singular.min() < singular.max() < 1.3
    # It goes down along the directions of the gradient.
    gradient = np.asarray(gradients(params, 0)["conv"]["kernel"]).reshape(36, 8)
    u, _, vt = np.linalg.svd(gradient, full_matrices=False)
    np.testing.assert_allclose(np.diag(u.T @ matrix @ vt.T), -singular[::-1].mean(), atol=0.4)
    expected = steps_of(optax.adamw(0.1, nesterov=True, weight_decay=0.5), params, steps=1)
    np.testing.assert_allclose(moved["conv"]["bias"], expected["conv"]["bias"], rtol=1e-5)
    np.testing.assert_allclose(moved["table"]["embedding"], expected["table"]["embedding"], rtol=1e-5)


def test_muon_refuses_a_network_without_kernels():
    with pytest.raises(InputError, match=r"^optimizer\.name = 'muon', but no array .* is called kernel"):
        Optimizer(name="muon").build(5).init({"weight": jnp.ones((2, 2))})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adamv"}, "name = 'adamv'; the known ones are adam, adamw, lion, muon, sgd, or package.module:Name"),
        ({"name": "sgd:momemtum=0.9"}, "name = 'sgd:momemtum=0.9' has no option 'momemtum'; it takes momentum"),
        ({"name": "adamw:weight_decay=0.1"}, "name = 'adamw:weight_decay=0.1' has no option 'weight_decay'"),
        ({"name": "adam:b1=high"}, "name.b1 = 'high' has the wrong type"),
        ({"name": "muon:ns_steps=2.5"}, "name.ns_steps = 2.5 has the wrong type; it must be int"),
        ({"name": "adam:mu_dtype=float77"}, "name = 'adam:mu_dtype=float77': "),
        ({"name": "sgd", "weight_decay": 0.1}, "weight_decay = 0.1, but name = 'sgd' has no parameter weight_decay"),
        ({"name": "adam:b1=0.8", "weight_decay": 0.1}, "weight_decay = 0.1, but name = 'adam:b1=0.8' has no"),
        ({"name": f"{__name__}:no_optimizer"}, f"name = '{__name__}:no_optimizer' returns 3; it must return an optax"),
        ({"name": f"{__name__}:no_rate"}, f"name = '{__name__}:no_rate' has no parameter learning_rate"),
        ({"name": "no_such_module:f"}, "name = 'no_such_module:f': No module named"),
        ({"decay": "cosin"}, "decay = 'cosin'; the known ones are constant, cosine, linear, rsqrt"),
        ({"decay": "cosine:ends=1"}, "decay = 'cosine:ends=1' has no option 'ends'; it takes end"),
        ({"decay": "linear:steps=5"}, "decay = 'linear:steps=5' has no option 'steps'; it takes end"),
        ({"decay": "rsqrt:timescale=0"}, "timescale = 0; it must be at least 1"),
        ({"decay": f"{__name__}:no_optimizer"}, f"decay = '{__name__}:no_optimizer' returns 3; it must return a func"),
    ],
)
def test_what_has_no_place_is_refused_when_the_config_is_made(changes, message):
    with pytest.raises(InputError, match=f"^optimizer.{re.escape(message)}") as error:
        tiny.config({f"optimizer.{name}": value for name, value in changes.items()})
    assert "\n" not in str(error.value)


CURVES = {
    "constant": lambda n, m, w: 1.0,
    "linear": lambda n, m, w: 1 - n / m,
    "linear:end=0.2": lambda n, m, w: 1 - 0.8 * n / m,
    "cosine": lambda n, m, w: (1 + np.cos(np.pi * n / m)) / 2,
    "cosine:end=0.2": lambda n, m, w: 0.2 + 0.8 * (1 + np.cos(np.pi * n / m)) / 2,
    "rsqrt": lambda n, m, w: np.sqrt(max(w, 1) / (max(w, 1) + n)),
    "rsqrt:timescale=3": lambda n, m, w: np.sqrt(3 / (3 + n)),
    f"{__name__}:own_decay:stable=0.75": lambda n, m, w: min(1, 4 * (1 - n / m)),
}


def test_every_decay_has_a_curve():
    assert set(DECAYS) <= set(CURVES)


@pytest.mark.parametrize("decay", CURVES)
@pytest.mark.parametrize("warmup", [0, 4])
def test_the_learning_rate_warms_up_and_decays(decay, warmup):
    rates = Optimizer(learning_rate=0.5, warmup_steps=warmup, decay=decay).rate(12)
    for n in range(12):
        expected = (n + 1) / warmup if n < warmup else CURVES[decay](n - warmup, 12 - warmup, warmup)
        np.testing.assert_allclose(rates(n), 0.5 * expected, rtol=1e-5)
        np.testing.assert_allclose(jax.jit(rates)(n), 0.5 * expected, rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_learned_schedule_neither_decays_nor_counts_in_the_clipped_norm(name):
    params = {"params": PARAMS, "schedule": schedules.Learned.init(hidden=4, learn_ends=True)}
    decay = 0.0 if name in ("adam", "sgd") else 0.1
    optimizer = Optimizer(name=name, weight_decay=decay).build(5, all_but_schedule)
    start, grads = optimizer.init(params), jax.tree.map(jnp.zeros_like, params)
    still = optimizer.update(grads, start, params)[0]
    assert not any(leaf.any() for leaf in tiny.arrays(still["schedule"]))
    assert any(leaf.any() for leaf in tiny.arrays(still["params"])) is (decay > 0)
    grads["params"] = gradients(PARAMS, 0)
    loud = {**grads, "schedule": gradients(params["schedule"], 1)}
    updates = [optimizer.update(each, start, params)[0] for each in (grads, loud)]
    tiny.assert_identical(updates[0]["params"], updates[1]["params"])
    assert all(leaf.any() for leaf in tiny.arrays(updates[1]["schedule"]))


def decaying_all(learning_rate: Any, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """One that can't leave anything out of the decay."""
    return optax.adamw(learning_rate, weight_decay=weight_decay)


def test_weight_decay_of_a_learned_schedule_is_refused():
    name = f"{__name__}:decaying_all"
    changes = {**LEARNED, "optimizer.name": name}
    tiny.config(changes)
    message = rf"^optimizer\.weight_decay = 0\.1, but name = '{name}' has no parameter mask; .* adamw, lion, muon$"
    with pytest.raises(InputError, match=message):
        tiny.config({**changes, "optimizer.weight_decay": 0.1})


TRAINED = ["adamw", "adam", "lion", "muon", "sgd:momentum=0.9", f"{__name__}:own_optimizer"]


@pytest.mark.parametrize("name", TRAINED)
def test_a_checkpoint_holds_the_state_of_every_optimizer(tmp_path: Path, name: str) -> None:
    optimizer = Optimizer(name=name).build(5)
    _, state = optimizer.update(gradients(PARAMS, 0), optimizer.init(PARAMS), PARAMS)
    everywhere = NamedSharding(tiny.mesh_of(1), PartitionSpec())
    state = jax.device_put(state, everywhere)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), state)
    with closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
        checkpoints.save(1, {"training": state})
        _, items = checkpoints.restore({"training": abstract})
    assert jax.tree.structure(items["training"]) == jax.tree.structure(state)
    tiny.assert_identical(items["training"], state)


@pytest.mark.thorough
@pytest.mark.parametrize("name", TRAINED)
def test_a_run_goes_on_bit_for_bit_with_every_optimizer(tmp_path: Path, name: str) -> None:
    changes = {"optimizer.name": name, "optimizer.decay": "rsqrt"}
    expected = tiny.train_without_picture(tiny.config({**changes, "train.steps": 20}), tmp_path / "whole")
    for steps in (10, 20):
        found = tiny.train_without_picture(tiny.config({**changes, "train.steps": steps}), tmp_path / "parts")
    tiny.assert_identical(found, expected)


def test_another_optimizer_needs_another_state_and_other_options_do_not() -> None:
    old, lion, other = (tiny.config({"optimizer.name": name}) for name in ("adamw", "lion", "adamw:b2=0.95"))
    with pytest.raises(InputError, match=r"optimizer\.name: 'adamw' -> 'lion'\n.*--allow_change=optimizer\.name$"):
        resumption.check(old, lion, 10, (), where="workdir = x")
    allowed = ("optimizer.name",)
    for new in (lion, other):
        resumption.check(old, new, 10, allowed, where="workdir = x")
    with pytest.raises(InputError, match=r"^allow_change = optimizer\.name: .* has other parts than in the checkpoi"):
        loop._check_state(experiment_of(old), experiment_of(lion), allowed)
    loop._check_state(experiment_of(old), experiment_of(other), allowed)


@pytest.mark.parametrize(
    ("decay", "step", "is_refused"),
    [
        ("constant", 15, False),
        ("rsqrt", 15, False),
        ("linear", 15, True),
        ("cosine:end=0.5", 15, True),
        ("cosine", 4, False),  # only the warm-up has been taken
        (f"{__name__}:own_decay", 12, False),  # it has been constant until here
        (f"{__name__}:own_decay", 18, True),
    ],
)
def test_more_steps_are_free_as_long_as_the_rates_of_the_steps_done_stay(decay, step, is_refused):
    old, new = (tiny.config({"optimizer.decay": decay, "train.steps": steps}) for steps in (20, 40))
    if is_refused:
        message = rf"^train\.steps: 20 -> 40, but optimizer\.decay = '{decay}' depends .*allow_change=train\.steps$"
        with pytest.raises(InputError, match=message):
            resumption.check(old, new, step, (), where="workdir = x")
    else:
        resumption.check(old, new, step, (), where="workdir = x")
    resumption.check(old, new, step, ("train.steps",), where="workdir = x")
