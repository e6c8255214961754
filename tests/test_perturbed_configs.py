"""What a perturbed process can't do and refuses, and the process that a config makes."""

import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxdiff as jd
from jaxdiff import losses, samplers, schedules
from jaxdiff import noise as h
from jaxdiff import transforms as g
from jaxdiff.data import DataSpec
from jaxdiff.experiment.build import make_experiment
from jaxdiff.typing import pytree

SCHEDULE = jd.schedules.Linear(num_timesteps=1000)


def network(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.tanh(params * x + t.reshape(-1, *[1] * (x.ndim - 1)))


@pytree
class Halves(g.Transform):
    def __call__(self, x: jax.Array, t: Any, /) -> jax.Array:
        return x[::2]


@pytree
class Sudden(g.Transform):
    def __call__(self, x: jax.Array, t: Any, /) -> jax.Array:
        return x * (0.5 - t)


@pytree
class Wide(h.NoiseDistribution):
    def from_normal(self, eps: jax.Array, t: Any, /) -> jax.Array:
        return 2 * eps


BLUR, MASK, LAPLACE = (
    jd.Perturbed(SCHEDULE, **parts)
    for parts in ({"transform": g.Blur(4.0)}, {"transform": g.RandomMask()}, {"noise": h.Laplace()})
)
OF_LAPLACE, OF_MASK = jd.denoiser(network, 0.7, LAPLACE), jd.denoiser(network, 0.7, MASK)
LIKELIHOOD = functools.partial(jd.log_likelihood, OF_LAPLACE, jnp.zeros((1, 2)))


def drawn_with(process: Any, sampler: Any = "renoise", n: int = 1) -> Any:
    denoiser = jd.denoiser(network, 0.7, process, predicts="x0")
    return jd.sample(jax.random.key(0), denoiser, sampler, shape=(4, 4), n=n, steps=2)


ANY_PROCESS = ("ddim", "ddpm", "renoise", "interpolated", "deterministic", "residual")
ODES = [name for name in samplers.SAMPLERS if name not in ANY_PROCESS]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: jd.denoiser(network, 0.7, BLUR, predicts="eps"),
            "predicts = 'eps' .* Blur .* no usable inverse.*'x0'",
        ),
        (lambda: jd.denoiser(network, 0.7, MASK, predicts="v"), "RandomMask .* no usable inverse"),
        (
            lambda: losses.simple(OF_MASK, jnp.ones((4, 4)), 0.5, key=jax.random.key(0), target="eps"),
            "target = 'eps'",
        ),
        (
            lambda: drawn_with(jd.Perturbed(SCHEDULE, transform=Halves())),
            r"Halves .*shape \(2, 4\).* must keep the shape",
        ),
        (
            lambda: drawn_with(jd.Perturbed(SCHEDULE, transform=Sudden())),
            "Sudden changes .* at t = 0, .* effect zero",
        ),
        (lambda: jd.Perturbed(SCHEDULE, noise=Wide()), "Wide has mean .* variance 4"),
        (lambda: LIKELIHOOD(), "needs a Gaussian process, .*; train with"),
        (lambda: jd.encode(OF_MASK, jnp.zeros((1, 2))), r"Perturbed\(RandomMask, Normal\); .* needs"),
        (lambda: jd.elbo(jax.random.key(0), OF_LAPLACE, jnp.zeros((1, 2)), levels=17), "needs a Gaussian"),
        (lambda: samplers.Interpolated(1.5), "rho = 1.5"),
        *[(lambda name=name: drawn_with(LAPLACE, name), "needs a Gaussian") for name in ODES],
        (lambda: drawn_with(LAPLACE, samplers.RePaint(samplers.DDPM())), "set resample to 1"),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(make: Any, message: str) -> None:
    with pytest.raises(jd.InputError, match=message):
        make()


@pytest.mark.usefixtures("unchecked")
def test_a_class_of_noise_in_place_of_its_value_is_refused() -> None:
    with pytest.raises(
        jd.InputError, match=r"noise = <class .*Laplace.>; it must be a NoiseDistribution, such as .*Laplace\(\)"
    ):
        jd.Perturbed(SCHEDULE, noise=h.Laplace)


class NoPytree(schedules.VP):
    pass


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("process", [jd.Gaussian, jd.Perturbed])
@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (schedules.VP, "it must be a Schedule"),
        ("vp", "schedule = 'vp'; it must be a Schedule"),
        (None, "schedule = None; it must be a Schedule"),
        (NoPytree(), "decorate its class with jaxdiff.typing.pytree"),
    ],
)
def test_a_schedule_of_the_wrong_kind_is_refused_at_once(process: Any, schedule: Any, message: str) -> None:
    with pytest.raises(jd.InputError, match=message):
        process(schedule)


def test_what_a_network_predicts_follows_from_the_process() -> None:
    kinds = [jd.denoiser(network, 0.7, process).predicts for process in (jd.Gaussian(SCHEDULE), LAPLACE, BLUR, MASK)]
    assert kinds == ["eps", "eps", "x0", "x0"]


def process_section(**fields: Any) -> dict[str, Any]:
    return {"process": {"name": "perturbed", **fields}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (process_section(transform=("mask",)), "^predicts = 'eps' .* set predicts to 'x0'"),
        (process_section(noise="lapace"), "noise = 'lapace'.*'laplace'"),
        (process_section(transforms=()), "'transforms'.* mean 'transform'"),
        (process_section(noise="laplace") | {"sampling.sampler": "heun"}, "needs a Gaussian"),
        (process_section(transform=("quarter_turns",)), "height = width"),
        (process_section(transform=("scale:factor=-1",)), "factor = -1"),
        (
            process_section(noise="laplace") | {"learned_variance": True},
            "learned_variance needs a Gaussian process, .* set it to False",
        ),
        (
            process_section(noise="laplace")
            | {"schedule": {"name": "learned", "learn_ends": True}, "loss.weight": "elbo"},
            "schedule.learn_ends needs a Gaussian process",
        ),
        (
            process_section(noise="laplace")
            | {"schedule": {"name": "learned"}, "loss.weight": "elbo", "sampling.sampler": "heun"},
            "this sampler needs a Gaussian process",
        ),
    ],
)
def test_a_config_with_a_process_that_cannot_work_is_refused(changes: Any, message: str) -> None:
    with pytest.raises(jd.InputError, match=message):
        make_experiment(tiny.config(changes), DataSpec(shape=(2,), levels=None))


@pytest.mark.thorough
def test_a_config_makes_its_process_and_a_network_that_is_conditioned_on_its_parameters() -> None:
    """A hidden coordinate does not reach the network, but whether it is hidden does: the loss depends on that."""
    section = process_section(
        transform=("translation:by=(1, 2)", "mask"), noise="gamma:shape=3", condition_on_transform=True
    )
    config = tiny.config(section | {"predicts": "x0", "loss": {"target": "x0"}, "sampling.sampler": "deterministic"})
    experiment = make_experiment(config, DataSpec(shape=(2,), levels=None))
    shapes = jax.eval_shape(experiment.init, jax.random.key(0))
    values = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(values.normal(size=leaf.shape), leaf.dtype), shapes)
    denoiser = experiment.network(params)
    assert denoiser.process.noise == h.Gamma(3.0)

    @jax.jit
    @jax.vmap
    def predict(hidden_from: jax.Array) -> jax.Array:
        process = copy.copy(denoiser.process)
        transform = g.Compose((g.Translation([1.0, 2.0]), g.Mask(hidden_from=hidden_from)))
        object.__setattr__(process, "transform", transform)
        return denoiser.with_process(process)(jnp.array([0.3, 0.2]), 0.5).x0

    shown, hidden = predict(jnp.array([[1.0, 1.0], [1.0, 0.1]]))
    assert shown.shape == (2,)
    assert np.abs(shown - hidden).max() > 1e-3
    keys = jax.random.split(jax.random.key(1), 3)
    assert jax.eval_shape(experiment.loss, params, jnp.ones((3, 2)), jnp.full(3, 0.5), keys).shape == (3,)
