"""Learned schedules: monotone with exact ends for any parameters, differentiable, worth learning."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from schedule_truths import CASES, everything

from jaxdiff.schedules import Learned, log_snr_rate

both_precisions = pytest.mark.parametrize("dtype", ["float32", "float64"])

WILD = {
    "zero": lambda normal: 0 * normal,
    "small": lambda normal: 1e-6 * normal,
    "random": lambda normal: 10 * normal,
    "large": lambda normal: 1e4 * normal,
    "all large": lambda normal: 0 * normal + 1e4,
    "all very negative": lambda normal: 0 * normal - 1e4,
    "huge": lambda normal: 1e30 * normal,
}


@pytest.mark.parametrize("kind", WILD)
@pytest.mark.parametrize("learn_ends", [False, True])
@both_precisions
@pytest.mark.quick(dtype=["float32"])
def test_a_learned_schedule_falls_for_any_parameters(kind: str, learn_ends: bool, dtype: str) -> None:
    leaves, structure = jax.tree.flatten(Learned.init(jax.random.key(0), hidden=64, learn_ends=learn_ends))
    normal = [WILD[kind](np.random.default_rng(i).normal(size=leaf.shape)) for i, leaf in enumerate(leaves)]
    if learn_ends:  # λ itself must not lose its digits
        normal[-1] = np.clip(normal[-1], -1e4, 30)
    t = np.linspace(0, 1, 1001)
    with jax.enable_x64(dtype == "float64"):
        schedule = jax.tree.unflatten(structure, [leaf.astype(dtype) for leaf in normal])
        found = jax.device_get(everything(schedule, t.astype(dtype), np.zeros(0, dtype)))
        first, last = jax.device_get(schedule.log_snr_ends())
    assert all(np.all(np.isfinite(value)) for value in found.values())
    assert np.all(np.diff(found["log_snr"]) < 0)
    assert np.all(found["d_log_snr"] < 0)
    assert (found["log_snr"][0], found["log_snr"][-1]) == (first, last)
    # λ is rounded to a few eps|λ|, and falls by at least a 128th of its range in a unit of t.
    rounding = 8 * np.finfo(dtype).eps * max(abs(first), abs(last)) * 128 / (first - last)
    np.testing.assert_allclose(found["time"], t, atol=rounding)


@pytest.mark.parametrize("name", ["learned", "learned-bent", "learned-ends"])
@both_precisions
@pytest.mark.quick(dtype=["float32"])
def test_a_learned_schedule_meets_its_ends_exactly(name: str, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        schedule = CASES[name]()
        first, last = jax.device_get(schedule.log_snr_ends())
        assert first.dtype == last.dtype == dtype
        assert jax.jit(schedule.time)(np.array([first, last], dtype)).tolist() == [0, 1]
        compiled = jax.jit(schedule.log_snr)
        assert (compiled(0.0), compiled(1.0)) == (first, last)
        found = jax.device_get(compiled(np.array([0.0, 1.0, 0.3, 1.0, 0.0], dtype)))
        np.testing.assert_array_equal(found[[0, 1, 3, 4]], [first, last, last, first])
        if name != "learned":  # which differs in size only; op by op each size is compiled anew
            assert (schedule.log_snr(0.0), schedule.log_snr(1.0)) == (first, last)
        if name != "learned-ends":
            assert (first, last) == (np.asarray(13.3, dtype), -5)


def test_a_learned_schedule_starts_about_linear() -> None:
    t = np.linspace(0, 1, 101, dtype=np.float32)
    both = jax.jit(lambda schedule, t: (schedule.log_snr(t), log_snr_rate(schedule, t)))
    for seed in range(3):
        for ends in (False, True):
            schedule = Learned.init(jax.random.key(seed), log_snr_max=10.0, log_snr_min=-10.0, learn_ends=ends)
            log_snr, rate = both(schedule, t)
            np.testing.assert_allclose(log_snr, 10 - 20 * t, atol=0.02 * 20)
            np.testing.assert_allclose(rate, -20, rtol=0.05)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["learned-bent", "learned-ends"])
def test_gradients_in_the_parameters_of_a_learned_schedule(name: str, x64: None) -> None:
    """Of λ, of its inverse and of its rate, by both modes, against central differences along a random direction."""
    schedule = jax.tree.map(lambda leaf: np.asarray(leaf, float), CASES[name]())
    leaves, structure = jax.tree.flatten(schedule)
    along = jax.tree.unflatten(structure, [np.random.default_rng(i).normal(size=x.shape) for i, x in enumerate(leaves)])

    def functions(schedule: Learned) -> jax.Array:
        return jnp.stack([schedule.log_snr(0.3), schedule.time(2.5), log_snr_rate(schedule, 0.3)])

    @jax.jit
    def derivatives(schedule: Learned) -> tuple[jax.Array, Learned, jax.Array, jax.Array]:
        def once(schedule: Learned) -> tuple[jax.Array, jax.Array]:
            return jax.jvp(functions, (schedule,), (along,))

        (value, forward), (_, second) = jax.jvp(once, (schedule,), (along,))
        return value, jax.jacrev(functions)(schedule), forward, second

    h = 1e-5
    moved = [jax.device_get(derivatives(jax.tree.map(lambda x, d, a=a: x + a * d, schedule, along))) for a in (-h, h)]
    _, backward, forward, second = jax.device_get(derivatives(schedule))
    # Central differences: h² = 1e-10 of third derivatives, and 1e-15·|λ'|/h = 1e-9 of rounding.
    np.testing.assert_allclose(forward, (moved[1][0] - moved[0][0]) / (2 * h), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(second, (moved[1][2] - moved[0][2]) / (2 * h), rtol=1e-6, atol=1e-8)
    pulled = sum(np.tensordot(g, d, d.ndim) for g, d in zip(*map(jax.tree.leaves, (backward, along)), strict=True))
    np.testing.assert_allclose(pulled, forward, rtol=1e-10)


@pytest.mark.thorough
def test_learning_a_schedule_lowers_the_variance_of_the_bound_and_keeps_its_value() -> None:
    """Kingma et al. 2021, sections 5.1 and 5.2: −½ ∫ λ' E‖n − n̂‖² dt depends on the ends of λ alone.

    For data N(0, ¼) the exact denoiser's error is c/(c + σ²) with c = α²/4, and the integral ½ log(1 + e^λ/4) between
    the ends.
    """

    def integrand(schedule: Learned, t: jax.Array) -> jax.Array:
        odds = jnp.exp(schedule.log_snr(t)) / 4
        return -0.5 * log_snr_rate(schedule, t) * odds / (1 + odds)

    t = (jnp.arange(512) + 0.5) / 512  # the midpoint rule: h² = 4e-6 of the second derivative
    schedule = Learned.init(jax.random.key(0), hidden=32)
    optimizer = optax.adam(3e-2)

    def step(carry: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        schedule, state = carry
        variance, gradient = jax.value_and_grad(lambda schedule: integrand(schedule, t).var())(schedule)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(schedule, updates), state), (variance, integrand(schedule, t).mean())

    learn = jax.jit(lambda carry: jax.lax.scan(step, carry, length=100))
    _, (variances, means) = learn((schedule, optimizer.init(schedule)))
    exact = 0.5 * math.log((1 + math.exp(13.3) / 4) / (1 + math.exp(-5) / 4))
    np.testing.assert_allclose(means, exact, rtol=1e-4)
    assert variances[-1] < 0.6 * variances[0]
