"""Diffusion under perturbations: the same as Gaussian where they do nothing, exact where the truth is known."""

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

import jaxdiff as jd
from jaxdiff import losses, samplers
from jaxdiff import noise as h
from jaxdiff import transforms as g
from jaxdiff.processes import FittedNormal, for_sample, require_gaussian
from jaxdiff.processes.parameterization import KINDS
from jaxdiff.samplers.ancestral import posterior_variances, reverse_step
from jaxdiff.samplers.loop import sample_keys
from jaxdiff.typing import pytree

SCHEDULE = jd.schedules.Linear(num_timesteps=1000)
GAUSSIAN, SAME = jd.Gaussian(SCHEDULE), jd.Perturbed(SCHEDULE)
DOCS = (Path(__file__).parents[1] / "docs" / "perturbations.md").read_text()
POINTS = np.random.default_rng(0).normal(size=(5, 4, 4))
# g with and without random parameters and an inverse, h that depends on t or not.
PROCESSES: dict[str, jd.Perturbed] = {
    "rotation, laplace": jd.Perturbed(SCHEDULE, transform=g.QuarterTurns(3), noise=h.Laplace()),
    "blur, mixture": jd.Perturbed(SCHEDULE, transform=g.Blur(2.0), noise=h.Mixture(h.Normal(), h.Uniform())),
    "mask, bernoulli": jd.Perturbed(SCHEDULE, transform=g.RandomMask(), noise=h.Bernoulli()),
    "overlap, blue": jd.Perturbed(
        SCHEDULE, transform=g.Compose((g.Shift((2,)), g.RandomOverlap(POINTS))), noise=h.Blue()
    ),
}


def network(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.tanh(params * x + t.reshape(-1, *[1] * (x.ndim - 1)))


def program(function: Any, *arguments: Any) -> str:
    """What JAX is asked to compute: where it is the same, so is every bit of the result."""
    return str(jax.make_jaxpr(function)(*arguments))


@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.quick(name=["ddim", "ddpm", "edm", "dpm++2m", "heun"])
def test_without_perturbations_every_sampler_is_the_gaussian_one(name: str) -> None:
    sampler = samplers.make(name)

    def step(process: Any, key: Any, x: Any, t: Any, s: Any) -> Any:
        denoiser = jd.denoiser(network, 0.7, process, predicts="v")
        return sampler.step(key, x, sampler.init(x), t=t, s=s, denoiser=denoiser)

    arguments = jax.random.key(0), jnp.ones(3), 0.5, 0.3
    programs = [program(functools.partial(step, process), *arguments) for process in (GAUSSIAN, SAME)]
    assert programs[0] == programs[1]


@pytest.mark.thorough
def test_without_perturbations_every_loss_and_sample_is_the_gaussian_one() -> None:
    def loss(process: Any, key: Any, x0: Any, t: Any) -> Any:
        found = []
        for kind in KINDS:
            denoiser = jd.clip_denoised(jd.denoiser(network, 0.7, process, predicts=kind))
            found.append(losses.simple(denoiser, x0, t, key=key, target=kind))
        return [*found, losses.weighted(denoiser, x0, t, key=key, weight=jd.weightings.min_snr())]

    arguments = jax.random.key(0), jnp.ones(3), 0.5
    assert program(functools.partial(loss, GAUSSIAN), *arguments) == program(functools.partial(loss, SAME), *arguments)

    def draw(process: Any) -> jax.Array:
        return jd.sample(jax.random.key(0), jd.denoiser(network, 0.7, process), "ddpm", shape=(3,), n=4, steps=5)

    np.testing.assert_array_equal(draw(GAUSSIAN), draw(SAME))
    assert require_gaussian(SAME) == GAUSSIAN


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.quick(name=["rotation, laplace", "overlap, blue"])
def test_with_the_true_x0_the_residual_rule_goes_to_x_s(name: str, x64: None) -> None:
    """It is x_t − D(x_0, t) + D(x_0, s), written out, if h is constant; otherwise x_s has the ε that x_t has."""
    process = PROCESSES[name].for_sample(jax.random.key(1), (4, 4))
    x0, t = jnp.asarray(POINTS[0]), 0.7
    eps = jnp.asarray(np.random.default_rng(1).uniform(-1.6, 1.6, size=(4, 4)))

    truth = jd.from_function(lambda x, t, cond=None: jd.Prediction(x0, process.infer_noise(x0, x, t)), process)

    @jax.jit
    def go(s: jax.Array) -> Any:
        """x_s, and two sides that should be equal."""
        noise = process.noise.from_normal(eps, t) if process.noise.time_dependent else eps
        x_t = process.corrupt(x0, noise, t)
        x_s = samplers.Deterministic().step(jax.random.key(0), x_t, None, t=t, s=s, denoiser=truth)[0]
        if process.noise.time_dependent:
            return x_s, process.infer_noise(x0, x_s, s), process.noise.from_normal(eps, s)
        return x_s, x_s, x_t - process.corrupt(x0, noise, t) + process.corrupt(x0, noise, s)

    for s in (0.4, 0.001):
        np.testing.assert_allclose(*go(s)[1:], atol=1e-8 if process.noise.time_dependent else 1e-12)
    np.testing.assert_allclose(go(0.0)[0], x0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameterization_determines_x0_and_the_noise(kind: Any, x64: None) -> None:
    process = jd.Perturbed(SCHEDULE, transform=g.Compose((g.Rotation(2.0), g.Translation([1.0, 0.5]))))
    x0, noise, t = jnp.array([0.3, -0.7]), jnp.array([1.5, -0.2]), 0.4
    true = jd.Prediction(x0, noise)
    output = jd.parameterization.from_prediction(kind, true, t=t, process=process)
    x_t = process.corrupt(x0, noise, t)
    again = jd.parameterization.to_prediction(kind, output, x_t, t=t, process=process)
    np.testing.assert_allclose(again.x0, x0, atol=1e-12)
    np.testing.assert_allclose(again.noise, noise, atol=1e-12)


def test_for_gaussian_noise_the_rules_are_rows_of_the_ancestral_step(x64: None) -> None:
    """The rows written out; Deterministic is DDIM(0), and DDIM(η) is Interpolated with ρ = η σ_{t|s}/σ_t."""
    denoiser, t, s, x, key = jd.denoiser(network, 0.7, SAME), 0.6, 0.35, jnp.array([0.3, -2.0]), jax.random.key(0)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ((SCHEDULE.alpha(u), SCHEDULE.sigma(u)) for u in (t, s))
    n, z = network(0.7, x[None], jnp.array([t]))[0], jax.random.normal(key, (2,))
    x0 = (x - sigma_t * n) / alpha_t
    rho = float(0.8 * jnp.sqrt(1 - (alpha_t / alpha_s * sigma_s / sigma_t) ** 2))
    rows = [
        (("deterministic", "residual", "ddim", "interpolated:rho=0"), alpha_s * x0 + sigma_s * n),
        (("renoise", "interpolated:rho=1"), alpha_s * x0 + sigma_s * z),
        ((f"interpolated:rho={rho}", "ddim:eta=0.8"), alpha_s * x0 + sigma_s * (math.sqrt(1 - rho**2) * n + rho * z)),
    ]
    for names, expected in rows:
        for name in names:
            found = samplers.make(name).step(key, x, None, t=t, s=s, denoiser=denoiser)[0]
            np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=name)


@pytree
class Switched(h.NoiseDistribution):
    """Normal noise, from t = ½ on of the other sign: it depends on t, and has no inverse written."""

    time_dependent = True

    def from_normal(self, eps: jax.Array, t: Any, /) -> jax.Array:
        return jnp.where(jnp.asarray(t) < 0.5, eps, -eps)


def test_renoise_needs_no_inverse_of_time_dependent_noise() -> None:
    denoiser = jd.denoiser(network, 0.7, jd.Perturbed(SCHEDULE, noise=Switched()), predicts="x0")
    draw = functools.partial(jd.sample, jax.random.key(0), denoiser, shape=(4, 4), n=1, steps=2)
    assert np.all(np.isfinite(draw(sampler="renoise")))
    with pytest.raises(ValueError, match="Switched has no inverse"):
        draw(sampler="deterministic")


def test_where_nothing_is_left_of_x0_it_is_0_whatever_the_transform(x64: None) -> None:
    process = jd.Perturbed(jd.schedules.Flow(), transform=g.Translation([3.0, -1.0]))
    for kind in ("eps", "score"):
        found = jd.parameterization.to_prediction(kind, jnp.ones(2), jnp.ones(2), t=1.0, process=process)
        np.testing.assert_array_equal(found.x0, 0)


def test_a_start_is_made_with_the_parameters_that_its_sample_is_drawn_with(x64: None) -> None:
    """With the true x_0 every sample goes to the x_s of its own mask."""
    process, x0, t, s = jd.Perturbed(SCHEDULE, transform=g.RandomMask()), jnp.asarray(POINTS[0]), 0.6, 0.3
    key = jax.random.key(5)
    denoiser = jd.denoiser(lambda x0, x, t: x0[None], x0, process)
    own = [for_sample(denoiser, k, x0.shape).process for k in sample_keys(key, np.arange(3))]
    noise = jnp.asarray(POINTS[1])
    assert len({np.asarray(one.transform.hidden_from).tobytes() for one in own}) == 3
    start = jnp.stack([one.corrupt(x0, noise, t) for one in own])
    options = {"shape": x0.shape, "n": 3, "timesteps": [t, s, 0.0], "start": start}
    drawn = jd.sample(key, denoiser, "deterministic", **options, trajectory=True)
    np.testing.assert_allclose(drawn[:, 1], jnp.stack([one.corrupt(x0, noise, s) for one in own]), atol=1e-12)


def test_parameters_that_are_known_can_differ_from_sample_to_sample() -> None:
    """By a vmap over processes: each sample equals that of a process with its own angle."""
    angles, keys = jnp.array([0.5, -1.0]), jax.random.split(jax.random.key(0), 2)

    def one(key: Any, angle: Any) -> jax.Array:
        denoiser = jd.denoiser(network, 0.7, jd.Perturbed(SCHEDULE, transform=g.Rotation(angle)))
        return jd.sample(key, denoiser, "deterministic", shape=(2,), n=1, steps=4)[0]

    together = jax.vmap(one)(keys, angles)
    apart = jnp.stack([one(*pair) for pair in zip(keys, angles, strict=True)])
    np.testing.assert_allclose(together, apart, rtol=1e-5)
    assert np.abs(apart[0] - one(keys[0], angles[1])).max() > 1e-3


def test_an_orthogonal_g_is_gaussian_diffusion_in_other_coordinates(x64: None) -> None:
    """x_t = g_t(y_t) of a Gaussian y_t: so are predictions, DDPM where g is constant, and renoising anywhere."""
    transform = g.Compose((g.Rotation(2.0), g.Randomized(g.Rotation, 1.0, 2.0)))
    process = jd.Perturbed(SCHEDULE, transform=transform).for_sample(jax.random.key(3), (2,))
    points = jnp.asarray(POINTS[0, :, :2])
    plain, turned = (jd.analytic.empirical(points, which) for which in (GAUSSIAN, process))
    y, t, s, z = jnp.array([0.4, -0.3]), 0.6, 0.3, jnp.array([-1.0, 0.5])
    mine, theirs = turned(process.transform(y, t), t), plain(y, t)
    np.testing.assert_allclose(mine.x0, theirs.x0, atol=1e-12)
    np.testing.assert_allclose(mine.noise, process.transform(theirs.noise, t), atol=1e-12)
    variance = SCHEDULE.sigma(s) ** 2
    ends = [
        reverse_step(prediction, which, t=t, s=s, removed=variance, added=variance, z=new)
        for prediction, which, new in ((mine, process, process.transform(z, s)), (theirs, GAUSSIAN, z))
    ]
    np.testing.assert_allclose(ends[0], process.transform(ends[1], s), atol=1e-12)

    held = jd.Perturbed(SCHEDULE, transform=g.Flip(0))  # flipped at all t from ½ on
    flipped = jd.analytic.empirical(points, held)
    transition, posterior = posterior_variances(SCHEDULE, 0.9, 0.6)
    for removed, added in ((posterior, posterior), (posterior, transition)):
        ends = [
            reverse_step(d(x, 0.9), which, t=0.9, s=0.6, removed=removed, added=added, z=new)
            for d, which, x, new in ((flipped, held, y[::-1], z[::-1]), (plain, GAUSSIAN, y, z))
        ]
        np.testing.assert_allclose(ends[0], ends[1][::-1], atol=1e-12)


MODES = np.concatenate([m + 0.14 * scipy.stats.norm.ppf((np.arange(60) + 0.5) / 60) for m in (-1, 1)])[:, None]


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["laplace", "uniform", "exponential"])
def test_with_an_exact_denoiser_deterministic_finds_the_data_and_renoise_is_too_narrow(name: str) -> None:
    """Two modes of standard deviation 0.138; the distance is Wasserstein's, the noise of 1000 samples makes it 0.02.

    With 50 steps, renoising makes modes of about 0.08 for each distribution, normal or not.
    """
    denoiser = jd.analytic.empirical(MODES, jd.Perturbed(SCHEDULE, noise=h.NOISES[name]()))

    @jax.jit
    def draw() -> Any:
        take = functools.partial(jd.sample, jax.random.key(1), denoiser, shape=(1,), n=1000)
        few = {("deterministic", 10): take("deterministic", steps=10)}
        return few | {(rule, 50): take(rule, steps=50) for rule in ("deterministic", "interpolated", "renoise")}

    x = {case: np.asarray(found)[:, 0] for case, found in draw().items()}
    distance = {case: scipy.stats.wasserstein_distance(found, MODES[:, 0]) for case, found in x.items()}
    width = {case: np.sqrt((found[found > 0].var() + found[found < 0].var()) / 2) for case, found in x.items()}
    assert distance["deterministic", 50] < min(0.05, 0.6 * distance["deterministic", 10])
    assert distance["deterministic", 50] < min(distance["interpolated", 50], distance["renoise", 50])
    assert 0.11 < width["deterministic", 50] < 0.14
    assert 0.065 < width["renoise", 50] < 0.1


def test_a_prior_holds_what_g_leaves(x64: None) -> None:
    """α_1 g_1(x̃_0) + σ_1 n has the mean and variance of x_1: for a shift, another image, and a fitted start."""
    schedule = jd.schedules.VE(sigma_max=0.3)
    keys = jax.random.split(jax.random.key(0), 4000)

    def draws(process: jd.Perturbed, shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(
            jax.jit(jax.vmap(lambda key: process.for_sample(key, shape).sample_prior(jax.random.split(key)[0], shape)))(
                keys
            )
        )

    sigma = float(schedule.sigma(1.0))
    moved = draws(jd.Perturbed(schedule, transform=g.Translation([3.0, -1.0])), (2,))
    np.testing.assert_allclose(moved.mean(0), [3, -1], atol=4 * sigma / np.sqrt(4000))
    others = np.array([[1.0, 5.0], [2.0, -5.0]])
    other = draws(jd.Perturbed(schedule, transform=g.RandomOverlap(others), noise=h.Bernoulli()), (2,))
    near = np.abs(other[:, None] - others[None]).max(-1).min(-1)
    np.testing.assert_allclose(near, sigma, rtol=1e-6)
    data = np.random.default_rng(0).normal(size=(300, 2)) @ np.array([[1.0, 0.5], [0.0, 0.2]]) + np.array([[2.0, 1.0]])
    fitted = draws(jd.Perturbed(schedule, transform=g.Scale(0.5), start=FittedNormal.fit(data)), (2,))
    expected = 0.25 * np.cov(data.T) + sigma**2 * np.eye(2)
    np.testing.assert_allclose(fitted.mean(0), 0.5 * data.mean(0), atol=0.05)
    np.testing.assert_allclose(np.cov(fitted.T), expected, atol=0.03)


def test_parameters_reach_the_denoiser_and_a_network_that_is_conditioned_on_them() -> None:
    """The network predicts x_0 = the hidden share in its condition: n̂ must fit this sample's own mask."""
    process = jd.Perturbed(SCHEDULE, transform=g.RandomMask(), condition_on_transform=True)

    def hidden_share(params: Any, x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        share = (cond.transform.hidden_from <= t[0]).mean((1, 2), keepdims=True)
        return jnp.zeros_like(x) + share + cond.cond[:, None, None]

    denoiser = jd.clip_denoised(jd.denoiser(hidden_share, 1.0, process), high=9.0)
    label = jnp.float32(0.25)
    mine = process.for_sample(jax.random.key(4), (4, 4))
    x, t = jnp.ones((4, 4)), 0.5
    found = jax.jit(lambda: denoiser.with_process(mine)(x, t, label))()
    hidden = np.asarray(mine.transform.hidden_from <= t)
    assert 0 < hidden.mean() < 1
    np.testing.assert_allclose(found.x0, hidden.mean() + 0.25, rtol=1e-6)
    left = (1 - SCHEDULE.alpha(t) * (hidden.mean() + 0.25) * ~hidden) / SCHEDULE.sigma(t)
    np.testing.assert_allclose(found.noise, left, rtol=1e-5)
    x0 = jd.sample(jax.random.key(0), denoiser, "renoise", shape=(4, 4), n=2, steps=2, cond=jnp.zeros(2))
    assert x0[0, 0, 0] != x0[1, 0, 0]  # each sample has a mask of its own
    loss = jax.jit(lambda: losses.simple(denoiser, x, t, key=jax.random.key(0), cond=label))()
    key = jax.random.fold_in(jax.random.key(0), 3)
    hidden = np.asarray(process.for_sample(key, (4, 4)).transform.hidden_from <= t)
    np.testing.assert_allclose(loss, (1 - hidden.mean() - 0.25) ** 2, rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL), ids=["use", "known", "write"])
def test_the_python_of_the_docs_runs(block: str) -> None:
    names: dict[str, Any] = {"__name__": "docs"}
    exec(block, names)
    assert names["x0"].shape[0] == 4
    assert np.all(np.isfinite(names["x0"]))


def test_the_docs_list_every_transform_and_noise_distribution() -> None:
    for make in {*g.TRANSFORMS.values(), *h.NOISES.values()} - {g.Identity}:
        name = "Randomized" if isinstance(make, functools.partial) else make.__name__
        assert f"`{name}(" in DOCS, name
