"""Networks of users: by name and as objects, of Linen, NNX and Equinox, in denoisers, in training and after loading."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
import tiny
from flax import nnx

import jaxdiff as jd
from jaxdiff import losses, models, schedules
from jaxdiff.data import DataSpec
from jaxdiff.denoisers.network import in_training
from jaxdiff.experiment import make_experiment
from jaxdiff.typing import InputError

POINTS = DataSpec(shape=(2,), levels=None, classes=8)
PROCESS = jd.Gaussian(schedules.Cosine(num_timesteps=20))
NETWORKS: dict[str, Any] = {
    "linen": nets.LinenNet(shape=(2,)),
    "nnx": models.from_nnx(nets.make_nnx),
    "equinox": models.from_equinox(nets.make_equinox),
}
X, T = jnp.linspace(-1, 1, 8).reshape(4, 2), jnp.linspace(0.1, 1, 4)


def weights_of(network: Any) -> Any:
    return network.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))


def test_adapters_compute_what_the_network_does():
    """Called directly, in the way of its own library, a network gives the same numbers, without dropout."""
    net = nets.make_nnx(nnx.Rngs(jax.random.key(0)))
    net.eval()
    np.testing.assert_array_equal(NETWORKS["nnx"].apply(weights_of(NETWORKS["nnx"]), X, T), net(X, T))
    module = eqx.nn.inference_mode(nets.make_equinox(jax.random.key(0)))
    found = NETWORKS["equinox"].apply(weights_of(NETWORKS["equinox"]), X, T)
    np.testing.assert_array_equal(found, jax.vmap(module)(X, T))


@pytest.mark.thorough
@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_is_each_example_s_own_in_training_and_none_in_sampling(name):
    network = NETWORKS[name]
    weights = weights_of(network)
    denoiser = jd.denoiser(network.apply, weights, PROCESS)
    keys = jax.random.split(jax.random.key(1), 4)
    x = jnp.zeros((4, 2))  # the same example four times
    plain = jax.vmap(lambda x: denoiser(x, 0.5).x0)(x)
    assert np.unique(plain, axis=0).shape == (1, 2)
    trained = jax.vmap(lambda x, key: in_training(denoiser, key)(x, 0.5).x0)(x, keys)
    assert np.unique(trained, axis=0).shape == (4, 2)  # four masks
    np.testing.assert_allclose(in_training(denoiser, keys[2])(x[2], 0.5).x0, trained[2], rtol=1e-4, atol=1e-6)
    loss = [losses.simple(denoiser, X[0], 0.5, key=jax.random.key(i)) for i in (0, 0)]
    assert loss[0] == loss[1]
    without = jd.denoiser(lambda params, x, t: network.apply(params, x, t), weights, PROCESS)  # hides `rngs`
    assert losses.simple(without, X[0], 0.5, key=jax.random.key(0)) != loss[0]


def test_a_mask_drops_half_of_the_hidden_units():
    """E[mask/0.5] = 1: over 4,000 keys the mean of the output is that without dropout, within 5 standard errors."""
    for network in NETWORKS.values():
        denoiser = jd.denoiser(network.apply, jax.tree.map(lambda x: x + 0.1, weights_of(network)), PROCESS)
        keys = jax.random.split(jax.random.key(2), 4000)
        found = jax.vmap(lambda key, denoiser=denoiser: in_training(denoiser, key)(jnp.ones(2), 0.5).noise)(keys)
        error = (found.mean(0) - denoiser(jnp.ones(2), 0.5).noise) / (found.std(0) / np.sqrt(4000))
        assert float(found.std(0).min()) > 0
        assert np.abs(error).max() < 5


def test_constants_are_numpy_arrays_and_scanned_layers_have_dropout_of_their_own():
    """Against the networks called directly; the keys of scanned layers differ from layer to layer."""
    scanned, constant = models.from_nnx(lambda rngs: nets.ScannedNNX(rngs=rngs)), models.from_equinox(_constant)
    net = nets.ScannedNNX(rngs=nnx.Rngs(jax.random.key(0)))
    net.eval()
    weights = weights_of(scanned)
    np.testing.assert_allclose(scanned.apply(weights, X, T), net(X, T), rtol=1e-5)
    assert "frequencies" not in weights
    dropped = [scanned.apply(weights, X, T, rngs={"dropout": jax.random.key(i)}) for i in (0, 0, 1)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert np.abs(dropped[0] - dropped[2]).max() > 1e-3
    module, weights = _constant(jax.random.key(0)), weights_of(constant)
    assert set(weights) == {"layer/weight", "layer/bias"}
    np.testing.assert_allclose(constant.apply(weights, X, T), jax.vmap(module)(X, T), rtol=1e-6)


def _constant(key):
    return nets.ConstantEquinox(key=key)


def test_a_constructor_may_need_all_that_the_trainer_gives(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    assert make_experiment(points("nets:everything"), POINTS).model.classes == 8


def test_a_network_that_needs_keys_to_sample_is_refused():
    class AlwaysDrops(nn.Module):
        @nn.compact
        def __call__(self, x, t, cond=None):
            return nn.Dense(2)(nn.Dropout(0.5, deterministic=False)(x))

    class NeedsKey(nets.EquinoxNet):
        def __call__(self, x, t, cond=None, *, key):
            return super().__call__(x, t, key=key)

    for model in (AlwaysDrops(), models.from_equinox(lambda key: NeedsKey(2, key=key))):
        with pytest.raises(InputError, match="can be trained but not sampled"):
            make_experiment(points("given"), POINTS, model=model)


def test_a_network_is_given_only_where_the_run_names_none(tmp_path):
    tiny.train_without_picture(tiny.config({"train.steps": 10}), tmp_path)
    with pytest.raises(InputError, match="names its own, 'mlp'; leave model out"):
        jd.load(tmp_path, model=NETWORKS["linen"])


@pytest.mark.thorough
def test_another_network_than_in_training_is_told_so(tmp_path):
    config = points("given", {"train.steps": 10})
    tiny.train_without_picture(config, tmp_path, model=nets.LinenNet(shape=(2,), classes=8))
    with pytest.raises(InputError, match="fits the network that is given"):
        jd.load(tmp_path, model=nets.LinenNet(shape=(2,), classes=8, width=8))


@pytest.mark.thorough
def test_muon_finds_the_kernels_of_an_nnx_network():
    config = points("given", {"optimizer.name": "muon", "optimizer.learning_rate": 0.1})
    experiment = make_experiment(config, POINTS, model=NETWORKS["nnx"])
    weights = jax.jit(experiment.init)(jax.random.key(0))
    optimizer = config.optimizer.build(10)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, weights), optimizer.init(weights), weights)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(updates))


def points(model: Any, changes: Any = ()) -> Any:
    return tiny.config({"data.name": "mixture", "model": model, "cond.label": 0.1, **dict(changes)})


def final(state: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.quick(name=["equinox"])
def test_a_network_trains_by_name_and_as_an_object_and_is_loaded(name, tmp_path, monkeypatch):
    """By name and as an object the weights are the same; resumed as well; a folder names no code of an object."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    named = {"linen": "nets:LinenNet", "nnx": "nets:from_nnx", "equinox": "nets:from_equinox"}[name]
    model = nets.LinenNet(shape=(2,), classes=8) if name == "linen" else NETWORKS[name]
    changes = {"train.steps": 20, "every.checkpoint": 10}
    first = final(tiny.train_without_picture(points(named, changes), tmp_path / "named"))
    config = points("given", changes)
    shorter = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=10))
    tiny.train_without_picture(shorter, tmp_path / "given", model=model)
    second = final(tiny.train_without_picture(config, tmp_path / "given", model=model))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    runs = [jd.load(tmp_path / "named", trust=True), jd.load(tmp_path / "given", model=model)]
    drawn = [run.sample(jax.random.key(0), n=3, labels=2) for run in runs]
    np.testing.assert_array_equal(*drawn)
    assert np.isfinite(drawn[0]).all()
    with pytest.raises(InputError, match="give it as model="):
        jd.load(tmp_path / "given")
    with pytest.raises(InputError, match="trust"):
        jd.load(tmp_path / "named")


class Returns:
    """A network with one weight that returns what it is made to."""

    def __init__(self, output: Any, weights: Any = None) -> None:
        self.output, self.weights = output, {"w": jnp.ones(2)} if weights is None else weights

    def init(self, key, x, t, cond=None):
        return self.weights

    def apply(self, weights, x, t, cond=None):
        return self.output(x, weights["w"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Returns(lambda x, w: x[:, :1]), r"returned float32 of shape \(1, 1\) for x of shape \(1, 2\)"),
        (Returns(lambda x, w: x.astype(jnp.int32)), "returned int32"),
        (Returns(lambda x, w: (x, x)), "returned a tuple"),
        (Returns(lambda x, w: x, {"w": jnp.ones(2), "n": jnp.ones(2, int)}), r"the weight \['n'\] of int32"),
        (Returns(lambda x, w: x, {}), "no weights"),
        (nets.Nothing(), "without init"),
        (nets.LinenNet, "is the class LinenNet"),
    ],
)
def test_a_network_that_breaks_the_protocol_is_refused_before_training(model, message):
    with pytest.raises(InputError, match=message):
        make_experiment(points("given"), POINTS, model=model)


def test_a_network_without_a_place_for_the_condition_says_what_it_was_called_with():
    class Unconditional(Returns):
        def init(self, key, x, t):
            return self.weights

        def apply(self, weights, x, t):
            return x

    with pytest.raises(TypeError):
        make_experiment(points("given"), POINTS, model=Unconditional(None))


def test_a_network_that_returns_nan_is_not_blamed_on_the_learning_rate(tmp_path):
    model = Returns(lambda x, w: x * w[None] * jnp.nan)
    with pytest.raises(RuntimeError, match="at step 1 "):
        tiny.train_without_picture(points("given"), tmp_path / "run", model=model)


def test_networks_that_keep_other_state_are_refused():
    class Normalized(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(2, rngs=rngs)

        def __call__(self, x, t):
            return self.norm(x)

    class Constant(nnx.Module):
        def __init__(self, rngs):
            self.table = jnp.ones(2)
            self.layer = nnx.Linear(2, 2, rngs=rngs)

        def __call__(self, x, t, cond=None):
            return self.layer(x * self.table[None])

    class Whole(eqx.Module):
        table: Any

        def __call__(self, x, t):
            return x

    cases = [
        (models.from_nnx(lambda rngs: Normalized(rngs)), "BatchStat"),
        (models.from_nnx(lambda rngs: Constant(rngs)), "an array of JAX at table"),
        (models.from_equinox(lambda key: Whole(jnp.arange(3))), "int32"),
    ]
    for model, message in cases:
        with pytest.raises(InputError, match=message):
            make_experiment(points("given"), POINTS, model=model)


@pytest.mark.thorough
def test_a_batch_s_loss_is_the_trainer_s():
    """The loss that the trainer minimizes, from the same keys; and its gradient reaches an NNX network."""
    experiment = make_experiment(points({"name": "mlp", "width": 8, "depth": 1, "time_dim": 8}), POINTS)
    params, key = experiment.init(jax.random.key(0)), jax.random.key(3)
    labels = jnp.arange(4)
    t, keys, _ = experiment.draw(key, 4)
    expected = experiment.loss(params, X, t, keys, labels).mean()
    found = losses.batch(experiment.network(params), X, key=key, cond=labels, p_uncond=0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    network = NETWORKS["nnx"]

    def loss(weights):
        weighted = functools.partial(losses.weighted, weight="min_snr")
        denoiser = jd.denoiser(network.apply, weights, PROCESS)
        return losses.batch(denoiser, X, key=key, loss=weighted, times="antithetic")

    gradient = jax.jit(jax.grad(loss))(weights_of(network))
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": "importance"}, "importance"),
        ({"p_uncond": 0.5}, "p_uncond"),
        ({"cond": np.arange(3)}, "conditions"),
    ],
)
def test_a_batch_s_loss_refuses_bad_input(options, message):
    denoiser = jd.denoiser(lambda params, x, t, *cond: x, {}, PROCESS)
    with pytest.raises(InputError, match=message):
        losses.batch(denoiser, X, key=jax.random.key(0), **options)
