"""Diffusion under perturbations: the same as Gaussian where they do nothing, exact where the truth is known."""

import dataclasses
import functools
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny

import jaxdiff as jd
from jaxdiff import inpainting, losses, samplers
from jaxdiff import perturbations as p
from jaxdiff.experiment import make_experiment
from jaxdiff.parameterization import KINDS
from jaxdiff.processes import bind, gaussian, noise_left
from jaxdiff.samplers.jump import jump, posterior_variances
from jaxdiff.samplers.loop import own_process, sample_keys

SCHEDULE = jd.schedules.linear(steps=1000)
GAUSSIAN, SAME = jd.Gaussian(SCHEDULE), jd.Perturbed(SCHEDULE)
DOCS = (Path(__file__).parents[1] / "docs" / "perturbations.md").read_text()
POINTS = np.random.default_rng(0).normal(size=(5, 4, 4))
# g with and without random parameters and an inverse, h that varies with t or not.
PROCESSES: dict[str, jd.Perturbed] = {
    "rotation, laplace": jd.Perturbed(SCHEDULE, signal=p.quarter_turns(3), noise=p.laplace()),
    "blur, mixture": jd.Perturbed(SCHEDULE, signal=p.blur(2.0), noise=p.mixture(p.normal(), p.uniform())),
    "mask, bernoulli": jd.Perturbed(SCHEDULE, signal=p.mask(), noise=p.bernoulli()),
    "overlap, blue": jd.Perturbed(SCHEDULE, signal=p.composed(p.shift((2,)), p.overlap(POINTS)), noise=p.blue()),
}


def network(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.tanh(params * x + t.reshape(-1, *[1] * (x.ndim - 1)))


def program(function: Any, *arguments: Any) -> str:
    """What JAX is asked to compute: where it is the same, so is every bit of the result."""
    return str(jax.make_jaxpr(function)(*arguments))


@pytest.mark.parametrize("name", samplers.REGISTRY)
def test_without_perturbations_every_sampler_is_the_gaussian_one(name: str) -> None:
    sampler = samplers.make(name)

    def step(process: Any, key: Any, x: Any, t: Any, s: Any) -> Any:
        denoise = jd.denoiser(network, 0.7, process, predicts="v")
        return sampler.step(key, x, sampler.init(x), t=t, s=s, denoise=denoise, process=process)

    arguments = jax.random.key(0), jnp.ones(3), 0.5, 0.3
    programs = [program(functools.partial(step, process), *arguments) for process in (GAUSSIAN, SAME)]
    assert programs[0] == programs[1]


def test_without_perturbations_every_loss_and_sample_is_the_gaussian_one() -> None:
    def loss(process: Any, key: Any, x0: Any, t: Any) -> Any:
        found = []
        for kind in KINDS:
            denoise = jd.clipped(jd.denoiser(network, 0.7, process, predicts=kind), process)
            found.append(losses.simple(denoise, process, x0, t, key=key, space=kind))
        weight = jd.weightings.make("min_snr")
        return [*found, losses.weighted(denoise, process, x0, t, key=key, weight=weight)]

    arguments = jax.random.key(0), jnp.ones(3), 0.5
    assert program(functools.partial(loss, GAUSSIAN), *arguments) == program(functools.partial(loss, SAME), *arguments)

    def draw(process: Any) -> jax.Array:
        denoise = jd.denoiser(network, 0.7, process)
        return jd.sample(jax.random.key(0), denoise, process, samplers.ddpm(), shape=(3,), n=4, steps=5)

    np.testing.assert_array_equal(draw(GAUSSIAN), draw(SAME))
    assert gaussian(SAME) == GAUSSIAN


@pytest.mark.parametrize("name", PROCESSES)
def test_with_the_true_x0_the_residual_rule_goes_to_x_s(name: str, x64: None) -> None:
    """It is x_t − D(x_0, t) + D(x_0, s), written out, where the law stays; else x_s has the ε that x_t has."""
    process = PROCESSES[name].draw(jax.random.key(1), (4, 4))
    x0, t = jnp.asarray(POINTS[0]), 0.7
    eps = jnp.asarray(np.random.default_rng(1).uniform(-1.6, 1.6, size=(4, 4)))

    def truth(x: Any, t: Any, cond: Any = None, /) -> jd.Prediction:
        return jd.Prediction(x0, noise_left(process, x0, x, t))

    @jax.jit
    def go(s: jax.Array) -> Any:
        """x_s, and two sides that should be equal."""
        noise = process.noise.from_normal(eps, t) if process.noise.varies else eps
        x_t, take = process.corrupt(x0, noise, t), samplers.transported().step
        x_s = take(jax.random.key(0), x_t, None, t=t, s=s, denoise=truth, process=process)[0]
        if process.noise.varies:
            return x_s, noise_left(process, x0, x_s, s), process.noise.from_normal(eps, s)
        return x_s, x_s, x_t - process.corrupt(x0, noise, t) + process.corrupt(x0, noise, s)

    for s in (0.4, 0.001):
        np.testing.assert_allclose(*go(s)[1:], atol=1e-8 if process.noise.varies else 1e-12)
    np.testing.assert_allclose(go(0.0)[0], x0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameterization_tells_x0_and_the_noise(kind: Any, x64: None) -> None:
    signal = p.composed(p.rotation(2.0), p.translation([1.0, 0.5]))
    x0, noise, t = jnp.array([0.3, -0.7]), jnp.array([1.5, -0.2]), 0.4
    true = jd.Prediction(x0, noise)
    output = jd.parameterization.from_prediction(kind, true, t=t, schedule=SCHEDULE, signal=signal)
    x_t = jd.Perturbed(SCHEDULE, signal=signal).corrupt(x0, noise, t)
    again = jd.parameterization.to_prediction(kind, output, x_t, t=t, schedule=SCHEDULE, signal=signal)
    np.testing.assert_allclose(again.x0, x0, atol=1e-12)
    np.testing.assert_allclose(again.noise, noise, atol=1e-12)


def test_for_gaussian_noise_the_rules_are_rows_of_the_jump(x64: None) -> None:
    """The rows written out; transported is DDIM(0), and DDIM(η) is mixed with ρ = η σ_{t|s}/σ_t."""
    denoise, t, s, x, key = jd.denoiser(network, 0.7, GAUSSIAN), 0.6, 0.35, jnp.array([0.3, -2.0]), jax.random.key(0)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ((SCHEDULE.alpha(u), SCHEDULE.sigma(u)) for u in (t, s))
    n, z = network(0.7, x[None], jnp.array([t]))[0], jax.random.normal(key, (2,))
    x0 = (x - sigma_t * n) / alpha_t
    rho = float(0.8 * jnp.sqrt(1 - (alpha_t / alpha_s * sigma_s / sigma_t) ** 2))
    rows = [
        (("transported", "residual", "ddim", "mixed:rho=0"), alpha_s * x0 + sigma_s * n),
        (("fresh", "mixed:rho=1"), alpha_s * x0 + sigma_s * z),
        ((f"mixed:rho={rho}", "ddim:eta=0.8"), alpha_s * x0 + sigma_s * (math.sqrt(1 - rho**2) * n + rho * z)),
    ]
    for names, expected in rows:
        for name in names:
            found = samplers.make(name).step(key, x, None, t=t, s=s, denoise=denoise, process=SAME)[0]
            np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=name)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Switched(p.Law):
    """Normal noise, from t = ½ on of the other sign: it varies, and has no inverse written."""

    varies = True

    def from_normal(self, eps: jax.Array, t: Any, /) -> jax.Array:
        return jnp.where(jnp.asarray(t) < 0.5, eps, -eps)


def test_fresh_noise_needs_no_inverse_of_a_law_that_varies() -> None:
    process = jd.Perturbed(SCHEDULE, noise=Switched())
    assert np.all(np.isfinite(drawn_with(process)))
    with pytest.raises(ValueError, match="Switched has no inverse"):
        drawn_with(process, samplers.transported())


def test_where_nothing_is_left_of_x0_it_is_0_whatever_the_transform(x64: None) -> None:
    signal, schedule = p.translation([3.0, -1.0]), jd.schedules.Flow()
    for kind in ("eps", "score"):
        found = jd.parameterization.to_prediction(
            kind, jnp.ones(2), jnp.ones(2), t=1.0, schedule=schedule, signal=signal
        )
        np.testing.assert_array_equal(found.x0, 0)


def test_a_start_is_made_with_the_parameters_that_its_sample_is_drawn_with(x64: None) -> None:
    """With the true x_0 every sample goes to the x_s of its own mask."""
    process, x0, t, s = jd.Perturbed(SCHEDULE, signal=p.mask()), jnp.asarray(POINTS[0]), 0.6, 0.3
    key = jax.random.key(5)
    own = [own_process(k, process, x0.shape) for k in sample_keys(key, np.arange(3))]
    noise = jnp.asarray(POINTS[1])
    assert len({np.asarray(one.signal.hidden_from).tobytes() for one in own}) == 3
    start = jnp.stack([one.corrupt(x0, noise, t) for one in own])
    denoise = jd.denoiser(lambda x0, x, t: x0[None], x0, process)
    drawn = jd.sample(
        key,
        denoise,
        process,
        samplers.transported(),
        shape=x0.shape,
        n=3,
        grid=[t, s, 0.0],
        start=start,
        trajectory=True,
    )
    np.testing.assert_allclose(drawn[:, 1], jnp.stack([one.corrupt(x0, noise, s) for one in own]), atol=1e-12)


def test_parameters_that_are_known_can_differ_from_sample_to_sample() -> None:
    """By a vmap over processes: each sample is that of a process with its own angle alone."""
    angles, keys = jnp.array([0.5, -1.0]), jax.random.split(jax.random.key(0), 2)
    denoise = jd.denoiser(network, 0.7, jd.Perturbed(SCHEDULE, signal=p.rotation(0.0)))

    def one(key: Any, angle: Any) -> jax.Array:
        process = jd.Perturbed(SCHEDULE, signal=p.rotation(angle))
        return jd.sample(key, denoise, process, samplers.transported(), shape=(2,), n=1, steps=4)[0]

    together = jax.vmap(one)(keys, angles)
    apart = jnp.stack([one(*pair) for pair in zip(keys, angles, strict=True)])
    np.testing.assert_allclose(together, apart, rtol=1e-5)
    assert np.abs(apart[0] - one(keys[0], angles[1])).max() > 1e-3


def test_an_orthogonal_g_is_gaussian_diffusion_in_other_coordinates(x64: None) -> None:
    """x_t = g_t(y_t) of a Gaussian y_t: so is what denoisers say, DDPM where g stays as it is, and fresh anywhere."""
    process = jd.Perturbed(SCHEDULE, signal=p.composed(p.rotation(2.0), p.varied(p.rotation, 1.0, 2.0)))
    process = process.draw(jax.random.key(3), (2,))
    points = jnp.asarray(POINTS[0, :, :2])
    plain, turned = (jd.oracles.empirical(points, which) for which in (GAUSSIAN, process))
    y, t, s, z = jnp.array([0.4, -0.3]), 0.6, 0.3, jnp.array([-1.0, 0.5])
    mine, theirs = turned(process.signal(y, t), t), plain(y, t)
    np.testing.assert_allclose(mine.x0, theirs.x0, atol=1e-12)
    np.testing.assert_allclose(mine.noise, process.signal(theirs.noise, t), atol=1e-12)
    variance = SCHEDULE.sigma(s) ** 2
    ends = [
        jump(prediction, which, t=t, s=s, removed=variance, added=variance, z=fresh)
        for prediction, which, fresh in ((mine, process, process.signal(z, s)), (theirs, GAUSSIAN, z))
    ]
    np.testing.assert_allclose(ends[0], process.signal(ends[1], s), atol=1e-12)

    held = jd.Perturbed(SCHEDULE, signal=p.flip(0))  # flipped at all t from ½ on
    denoise = jd.oracles.empirical(points, held)
    transition, posterior = posterior_variances(SCHEDULE, 0.9, 0.6)
    for removed, added in ((posterior, posterior), (posterior, transition)):
        ends = [
            jump(d(x, 0.9), which, t=0.9, s=0.6, removed=removed, added=added, z=fresh)
            for d, which, x, fresh in ((denoise, held, y[::-1], z[::-1]), (plain, GAUSSIAN, y, z))
        ]
        np.testing.assert_allclose(ends[0], ends[1][::-1], atol=1e-12)


MODES = np.concatenate([m + 0.14 * scipy.stats.norm.ppf((np.arange(60) + 0.5) / 60) for m in (-1, 1)])[:, None]


@pytest.mark.parametrize("name", ["laplace", "uniform", "exponential"])
def test_with_an_exact_denoiser_the_transported_rule_finds_the_data_and_the_fresh_one_is_too_narrow(name: str) -> None:
    """Two modes of standard deviation 0.138; the distance is Wasserstein's, the noise of 1000 samples makes it 0.02.

    At 50 steps fresh makes modes of about 0.08, for each law as for the normal one.
    """
    process = jd.Perturbed(SCHEDULE, noise=p.NOISES[name]())
    denoise = jd.oracles.empirical(MODES, process)
    rules = {"transported": samplers.transported(), "mixed": samplers.mixed(0.5), "fresh": samplers.fresh()}

    @jax.jit
    def draw() -> Any:
        key, n = jax.random.key(1), 1000
        take = functools.partial(jd.sample, key, denoise, process, shape=(1,), n=n)
        few = {("transported", 10): take(rules["transported"], steps=10)}
        return few | {(rule, 50): take(sampler, steps=50) for rule, sampler in rules.items()}

    x = {case: np.asarray(found)[:, 0] for case, found in draw().items()}
    distance = {case: scipy.stats.wasserstein_distance(found, MODES[:, 0]) for case, found in x.items()}
    width = {case: np.sqrt((found[found > 0].var() + found[found < 0].var()) / 2) for case, found in x.items()}
    assert distance["transported", 50] < min(0.05, 0.6 * distance["transported", 10])
    assert distance["transported", 50] < min(distance["mixed", 50], distance["fresh", 50])
    assert 0.11 < width["transported", 50] < 0.14
    assert 0.065 < width["fresh", 50] < 0.1


def test_a_prior_holds_what_g_leaves(x64: None) -> None:
    """α_1 g_1(x̃_0) + σ_1 n has the mean and variance of x_1: for a shift, another image, and data of a fitted law."""
    schedule = jd.schedules.VE(sigma_max=0.3)
    keys = jax.random.split(jax.random.key(0), 4000)

    def draws(process: jd.Perturbed, shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(
            jax.jit(jax.vmap(lambda key: process.draw(key, shape).prior(jax.random.split(key)[0], shape)))(keys)
        )

    sigma = float(schedule.sigma(1.0))
    moved = draws(jd.Perturbed(schedule, signal=p.translation([3.0, -1.0])), (2,))
    np.testing.assert_allclose(moved.mean(0), [3, -1], atol=4 * sigma / np.sqrt(4000))
    others = np.array([[1.0, 5.0], [2.0, -5.0]])
    other = draws(jd.Perturbed(schedule, signal=p.overlap(others), noise=p.bernoulli()), (2,))
    near = np.abs(other[:, None] - others[None]).max(-1).min(-1)
    np.testing.assert_allclose(near, sigma, rtol=1e-6)
    data = np.random.default_rng(0).normal(size=(300, 2)) @ np.array([[1.0, 0.5], [0.0, 0.2]]) + np.array([[2.0, 1.0]])
    fitted = draws(jd.Perturbed(schedule, signal=p.scale(0.5), start=p.fitted(data)), (2,))
    expected = 0.25 * np.cov(data.T) + sigma**2 * np.eye(2)
    np.testing.assert_allclose(fitted.mean(0), 0.5 * data.mean(0), atol=0.05)
    np.testing.assert_allclose(np.cov(fitted.T), expected, atol=0.03)


def test_parameters_reach_the_denoiser_and_a_network_that_is_told_them() -> None:
    """The network says x_0 = the share of its sample that it is told is hidden: n̂ must fit this sample's own mask."""
    process = jd.Perturbed(SCHEDULE, signal=p.mask(), tell=True)

    def told(params: Any, x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        return (
            jnp.zeros_like(x) + (cond.signal.hidden_from <= t[0]).mean((1, 2), keepdims=True) + cond.cond[:, None, None]
        )

    denoise = jd.clipped(jd.denoiser(told, 1.0, process), process, high=9.0)
    label = jnp.float32(0.25)
    mine = process.draw(jax.random.key(4), (4, 4))
    x, t = jnp.ones((4, 4)), 0.5
    found = jax.jit(lambda: bind(denoise, mine)(x, t, label))()
    hidden = np.asarray(mine.signal.hidden_from <= t)
    assert 0 < hidden.mean() < 1
    np.testing.assert_allclose(found.x0, hidden.mean() + 0.25, rtol=1e-6)
    left = (1 - SCHEDULE.alpha(t) * (hidden.mean() + 0.25) * ~hidden) / SCHEDULE.sigma(t)
    np.testing.assert_allclose(found.noise, left, rtol=1e-5)
    x0 = jd.sample(jax.random.key(0), denoise, process, samplers.fresh(), shape=(4, 4), n=2, steps=2, cond=jnp.zeros(2))
    assert x0[0, 0, 0] != x0[1, 0, 0]  # each sample has a mask of its own
    loss = jax.jit(lambda: losses.simple(denoise, process, x, t, key=jax.random.key(0), cond=label))()
    key = jax.random.fold_in(jax.random.key(0), 3)
    hidden = np.asarray(process.draw(key, (4, 4)).signal.hidden_from <= t)
    np.testing.assert_allclose(loss, (1 - hidden.mean() - 0.25) ** 2, rtol=1e-5)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Halves(p.Transform):
    def __call__(self, x: jax.Array, t: Any, /) -> jax.Array:
        return x[::2]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sudden(p.Transform):
    def __call__(self, x: jax.Array, t: Any, /) -> jax.Array:
        return x * (0.5 - t)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Wide(p.Law):
    def from_normal(self, eps: jax.Array, t: Any, /) -> jax.Array:
        return 2 * eps


BLUR, MASK, LAPLACE = (
    jd.Perturbed(SCHEDULE, **parts) for parts in ({"signal": p.blur(4.0)}, {"signal": p.mask()}, {"noise": p.laplace()})
)
DENOISE, SAFE = jd.denoiser(network, 0.7, LAPLACE), jd.denoiser(network, 0.7, MASK)


def drawn_with(process: Any, sampler: Any = None, denoise: Any = None, n: int = 1) -> Any:
    denoise = denoise or jd.denoiser(network, 0.7, process, predicts="x0")
    return jd.sample(jax.random.key(0), denoise, process, sampler or samplers.fresh(), shape=(4, 4), n=n, steps=2)


ODES = [name for name in samplers.REGISTRY if name not in ("ddim", "ddpm", "fresh", "mixed", "transported", "residual")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jd.denoiser(network, 0.7, BLUR, predicts="eps"), r"predicts = 'eps' .* Blur .* t = 0.209 .*'x0'"),
        (lambda: jd.denoiser(network, 0.7, MASK, predicts="v"), "RandomMask .* t = 0 on"),
        (
            lambda: losses.simple(SAFE, MASK, jnp.ones((4, 4)), 0.5, key=jax.random.key(0), space="eps"),
            "space = 'eps'",
        ),
        (lambda: drawn_with(jd.Perturbed(SCHEDULE, signal=Halves())), r"Halves makes shape \(2, 4\) .* the rule is"),
        (
            lambda: drawn_with(jd.Perturbed(SCHEDULE, signal=Sudden())),
            "Sudden changes .* at t = 0; .* grow from nothing",
        ),
        (lambda: drawn_with(jd.Perturbed(SCHEDULE, noise=Wide())), "Wide has mean .* variance 4"),
        (
            lambda: losses.simple(
                DENOISE, jd.Perturbed(SCHEDULE, noise=Wide()), jnp.ones(2), 0.5, key=jax.random.key(0)
            ),
            "4",
        ),
        (lambda: jd.log_likelihood(DENOISE, LAPLACE, jnp.zeros((1, 2))), "needs a Gaussian process, .*; train on"),
        (lambda: jd.encode(DENOISE, MASK, jnp.zeros((1, 2))), r"Perturbed\(RandomMask, Normal\): .* needs"),
        (
            lambda: jd.variational_bound(jax.random.key(0), DENOISE, LAPLACE, jnp.zeros((1, 2)), levels=17),
            "needs a Gaussian",
        ),
        (lambda: samplers.mixed(1.5), "rho = 1.5"),
        *[(lambda name=name: drawn_with(LAPLACE, samplers.make(name)), "needs a Gaussian") for name in ODES],
        (lambda: drawn_with(LAPLACE, inpainting.resampled(samplers.ddpm())), "set resample to 1"),
        (lambda: drawn_with(LAPLACE, denoise=SAFE), "process has no transform .* Laplace .* made for .* a transform"),
        (lambda: drawn_with(GAUSSIAN, denoise=DENOISE), "process has .* Normal noise, but .* Laplace noise"),
        (lambda: drawn_with(LAPLACE, denoise=jd.denoiser(network, 0.7, GAUSSIAN)), "Laplace noise, but"),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("unchecked")
def test_a_law_that_was_not_called_is_told_from_one() -> None:
    with pytest.raises(ValueError, match=r"noise = laplace is no law; .*called"):
        drawn_with(jd.Perturbed(SCHEDULE, noise=p.laplace), denoise=DENOISE)


def test_what_a_network_predicts_follows_from_the_process() -> None:
    kinds = [jd.denoiser(network, 0.7, process).predicts for process in (GAUSSIAN, LAPLACE, BLUR, MASK)]
    assert kinds == ["eps", "eps", "x0", "x0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"process": {"name": "perturbed", "signal": ("mask",)}}, "^predicts = 'eps' .* set predicts to 'x0'"),
        ({"process": {"name": "perturbed", "noise": "lapace"}}, "^process.noise = 'lapace'.*'laplace'"),
        ({"process": {"name": "perturbed", "signals": ()}}, "^process.signals is no field.*'signal'"),
        ({"process": {"name": "perturbed", "noise": "laplace"}, "sampling.sampler": "heun"}, "needs a Gaussian"),
        ({"process": {"name": "perturbed", "signal": ("quarter_turns",)}}, "height = width"),
        ({"process": {"name": "perturbed", "signal": ("scale:factor=-1",)}}, "factor = -1; the rule is factor > 0"),
        (
            {"process": {"name": "perturbed", "noise": "laplace"}, "learned_variance": True},
            "learned_variance needs a Gaussian process, .* set it to False",
        ),
        (
            {
                "process": {"name": "perturbed", "noise": "laplace"},
                "schedule": {"name": "learned", "learn_ends": True},
                "loss.weight": "elbo",
            },
            "schedule.learn_ends needs a Gaussian process",
        ),
        (
            {
                "process": {"name": "perturbed", "noise": "laplace"},
                "schedule": {"name": "learned"},
                "loss.weight": "elbo",
                "sampling.sampler": "heun",
            },
            "this sampler needs a Gaussian process",
        ),
    ],
)
def test_a_config_with_a_process_that_cannot_work_is_refused(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_experiment(tiny.config(changes), (2,), levels=None)


def test_a_config_makes_its_process_and_a_network_that_is_told_its_parameters() -> None:
    """Hidden coordinates tell the network nothing, but whether they are hidden does: its loss depends on that."""
    section = {
        "name": "perturbed",
        "signal": ("translation:by=(1, 2)", "mask"),
        "noise": "gamma:shape=3",
        "tell": True,
    }
    told = tiny.config(
        {"process": section, "predicts": "x0", "loss": {"space": "x0"}, "sampling.sampler": "transported"}
    )
    experiment = make_experiment(told, (2,), levels=None)
    shapes = jax.eval_shape(experiment.init, jax.random.key(0))
    values = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(values.normal(size=leaf.shape), leaf.dtype), shapes)
    process, denoise = experiment.process(params), experiment.network(params)
    assert isinstance(process.noise, p.Tabulated)

    @jax.jit
    @jax.vmap
    def say(hidden_from: jax.Array) -> jax.Array:
        signal = p.composed(p.translation([1.0, 2.0]), p.Mask(hidden_from=hidden_from))
        return bind(denoise, dataclasses.replace(process, signal=signal))(jnp.array([0.3, 0.2]), 0.5).x0

    shown, hidden = say(jnp.array([[1.0, 1.0], [1.0, 0.1]]))
    assert shown.shape == (2,)
    assert np.abs(shown - hidden).max() > 1e-3
    keys = jax.random.split(jax.random.key(1), 3)
    assert jax.eval_shape(experiment.loss, params, jnp.ones((3, 2)), jnp.full(3, 0.5), keys).shape == (3,)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL), ids=["use", "known", "write"])
def test_the_python_of_the_docs_runs(block: str) -> None:
    names: dict[str, Any] = {"__name__": "docs"}
    exec(block, names)
    assert names["x0"].shape[0] == 4
    assert np.all(np.isfinite(names["x0"]))


def test_the_docs_list_every_transform_and_law() -> None:
    for name in {*p.SIGNALS, *p.NOISES} - {"identity"}:
        assert f"`{name}(" in DOCS or f"`{name}:" in DOCS, name
