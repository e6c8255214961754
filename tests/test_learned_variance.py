"""The learned variance of the reverse step: its loss, its sampler and its training.

For data N(0, c) with the exact denoiser the true reverse step q(x_s|x_t) is normal, with the posterior's mean at x̂_0
and the variance β̃ + m² Var(x_0|x_t), where m = α_s σ²_{t|s}/σ_t² and Var(x_0|x_t) = c σ_t²/(α_t² c + σ_t²).
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxdiff as jd
from jaxdiff import losses, samplers, schedules
from jaxdiff.experiment.config import Config
from jaxdiff.losses import step_kl
from jaxdiff.training import loop
from jaxdiff.typing import InputError, Prediction

C, T = 0.25, 8
PROCESS = jd.Gaussian(schedules.Discrete(np.linspace(1e-4, 0.9, T)))


def variances(t: float, s: float) -> tuple[float, float, float]:
    """(σ²_{t|s}, β̃, the true variance of the reverse step), in float64 NumPy."""
    (a, sd), (a_s, sd_s) = (
        (float(PROCESS.schedule.alpha(time)), float(PROCESS.schedule.sigma(time))) for time in (t, s)
    )
    transition = sd**2 - (a / a_s) ** 2 * sd_s**2
    posterior = transition * sd_s**2 / sd**2
    m = a_s * transition / sd**2
    return transition, posterior, posterior + m**2 * C * sd**2 / (a**2 * C + sd**2)


def best_mix(t: float, s: float) -> float:
    transition, posterior, true = variances(t, s)
    return float(np.log(true / posterior) / np.log(transition / posterior))


def exact(mix: Any, shift: Any = 0.0) -> Any:
    """The exact denoiser of N(0, c), with a given mix of variances and x̂_0 off by `shift`."""

    def predict(x_t: jax.Array, t: jax.Array, cond: Any, /) -> Prediction:
        alpha, sigma = PROCESS.schedule.alpha(t), PROCESS.schedule.sigma(t)
        scale = 1 / (alpha**2 * C + sigma**2)
        return Prediction(alpha * C * scale * x_t + shift, sigma * scale * x_t, jnp.broadcast_to(mix(t), x_t.shape))

    return jd.from_function(predict, PROCESS)


@pytest.mark.parametrize(("t", "s"), [(2 / T, 1 / T), (1.0, 0.5)])
def test_the_kl_of_a_step_is_that_of_two_normal_distributions(t: float, s: float, x64: None) -> None:
    x0, x0_hat, v = np.array([0.3, -1.0, 2.0]), np.array([0.1, 0.4, 2.0]), np.array([-0.1, 0.5, 1.0])
    transition, posterior, _ = variances(t, s)
    a_s, sd = float(PROCESS.schedule.alpha(s)), float(PROCESS.schedule.sigma(t))
    p = posterior ** (1 - v) * transition**v
    shift = a_s * transition / sd**2 * (x0 - x0_hat)
    expected = 0.5 * (np.log(p / posterior) + posterior / p + shift**2 / p - 1)
    prediction = Prediction(jnp.asarray(x0_hat), jnp.zeros(3), jnp.asarray(v))
    found = step_kl(jnp.asarray(x0), prediction, t=t, s=s, schedule=PROCESS.schedule)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    plain = step_kl(jnp.asarray(x0), prediction._replace(variance_mix=None), t=t, s=s, schedule=PROCESS.schedule)
    np.testing.assert_allclose(plain, shift**2 / (2 * posterior), rtol=1e-9)


def test_the_hybrid_loss_is_minimal_at_the_true_variance_and_leaves_the_mean_alone(x64: None) -> None:
    t, n = 4 / T, 200_000
    x0 = C**0.5 * jax.random.normal(jax.random.key(1), (n,))
    best = best_mix(t, t - 1 / T)

    @jax.jit
    @jax.grad
    def slope(parameters: tuple[Any, Any]) -> jax.Array:
        shift, mix = parameters
        return losses.hybrid(exact(lambda t: mix, shift), x0, t, key=jax.random.key(2), target="x0", share=1.0)

    @jax.jit
    @jax.grad
    def simple(shift: Any) -> jax.Array:
        return losses.simple(exact(lambda t: 0.0, shift), x0, t, key=jax.random.key(2), target="x0")

    of_shift, of_mix = slope((1.0, best))
    assert of_shift == pytest.approx(float(simple(1.0)), rel=1e-12)
    # d/dv of T·KL = T log ρ/2 · (1 − E[(β̃ + shift²)/τ²]): its estimate has a spread below √2 T log ρ/2 a coordinate.
    low, high = slope((0.0, best - 0.1))[1], slope((0.0, best + 0.1))[1]
    error = np.sqrt(2 / n) * T * np.log(variances(t, t - 1 / T)[0] / variances(t, t - 1 / T)[1]) / 2
    assert abs(slope((0.0, best))[1]) < 4 * error < min(-low, high)
    assert of_mix < -4 * error  # a mean that is wrong wants more variance


def test_the_elbo_uses_the_learned_variance(x64: None) -> None:
    """With the true variances the KL of each step is minimal: below that of the posterior's variance."""
    mixes = jnp.asarray([0, 0, *(best_mix(k / T, (k - 1) / T) for k in range(2, T + 1))])
    x0 = C**0.5 * jax.random.normal(jax.random.key(1), (5000, 1))
    key = jax.random.key(2)
    learned = jd.elbo(key, exact(lambda t: mixes[jnp.round(t * T).astype(int)]), x0)
    fixed = jd.elbo(key, exact(lambda t: 0.0), x0)
    for k in range(2, T + 1):
        _, posterior, true = variances(k / T, (k - 1) / T)
        terms = learned.steps[:, k - 2]
        assert abs(terms.mean() - 0.5 * np.log(true / posterior)) < 4 * terms.std() / np.sqrt(len(terms)), k
    assert (learned.steps.mean(0) < fixed.steps.mean(0)).all()
    np.testing.assert_array_equal(learned.decoder, fixed.decoder)


@pytest.mark.thorough
def test_with_the_true_variance_any_number_of_steps_gives_the_distribution_of_the_data(x64: None) -> None:
    """Three ancestral steps: exact with the learned variance, too narrow with the small one."""
    times, n = (1.0, 0.5, 0.125, 0.0), 40_000
    mixes = {t: best_mix(t, s) for t, s in itertools.pairwise(times[:-1])}

    def mix(t: Any) -> jax.Array:
        return sum((jnp.where(jnp.abs(t - time) < 1e-6, value, 0.0) for time, value in mixes.items()), jnp.zeros(()))

    def spread(variance: str) -> np.ndarray:
        sampler = samplers.DDPM(variance)
        x = jd.sample(jax.random.key(0), exact(mix), sampler, shape=(), n=n, timesteps=times, trajectory=True)
        return np.asarray(x).var(0)[-2]  # at t = 0.125: the last step returns a mean

    alpha, sigma = float(PROCESS.schedule.alpha(0.125)), float(PROCESS.schedule.sigma(0.125))
    true = alpha**2 * C + sigma**2
    error = true * np.sqrt(2 / n)
    # The prior leaves out α_1² c.
    start = float(PROCESS.schedule.alpha(1.0)) ** 2 * C
    assert abs(spread("learned") - true) < 4 * error + start
    assert spread("small") < true - 10 * error


@pytest.mark.thorough
def test_a_network_learns_its_variance_and_samples_with_it(tmp_path) -> None:
    config = tiny.config({"learned_variance": True, "sampling.sampler": "ddpm:variance=learned", "train.steps": 30})
    loop.train(config, tmp_path / "run")
    run = jd.load(tmp_path / "run")
    mix = jax.jit(run.denoiser)(jnp.ones(2), 0.5).variance_mix
    assert mix.shape == (2,)
    assert (np.asarray(mix) != 0.5).all()  # where an untrained one stays
    learned, small = (run.sample(jax.random.key(0), n=4, sampler=f"ddpm:variance={v}") for v in ("learned", "small"))
    assert np.isfinite(learned).all()
    assert np.abs(learned - small).max() > 1e-4


def test_learned_variance_is_refused_if_impossible() -> None:
    plain = jd.denoiser(lambda _, x, t: x, None, PROCESS)
    with pytest.raises(InputError, match="'learned', but this network does not predict it"):
        jd.sample(jax.random.key(0), plain, samplers.DDPM("learned"), shape=(2,), n=1, steps=2)
    with pytest.raises(InputError, match="twice the channels of x, as learned_variance asks"):
        jd.denoiser(lambda _, x, t: x, None, PROCESS, learned_variance=True)(jnp.ones(2), 0.5)
    with pytest.raises(InputError, match="does not predict a variance"):
        losses.hybrid(plain, jnp.ones(2), 0.5, key=jax.random.key(0))
    with pytest.raises(InputError, match="learned_variance needs a discrete schedule"):
        losses.hybrid(
            dataclasses.replace(plain, process=jd.Gaussian(schedules.VP())), jnp.ones(2), 0.5, key=jax.random.key(0)
        )
    with pytest.raises(InputError, match="trained without learned_variance = True"):
        tiny.config({"sampling.sampler": "ddpm:variance=learned"})
    with pytest.raises(InputError, match="discrete steps, which schedule 'vp' lacks"):
        Config.from_mapping(tiny.mapping({"learned_variance": True}) | {"schedule": {"name": "vp"}})
