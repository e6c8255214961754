"""Sample i depends on its own key alone, whatever generator JAX's keys are of."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxdiff as jd
from jaxdiff.typing import InputError

EXACT = jd.analytic.mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1], jd.schedules.TruncatedCosine())
X0 = jnp.array([[0.5, 0.1], [-1.0, 0.2], [0.9, 0.0]])


def draw(key: jax.Array, n: int) -> jax.Array:
    return jd.sample(key, EXACT, "ddpm", steps=5, shape=(2,), n=n)


USES: dict[str, Callable[[jax.Array, int], Any]] = {
    "sample": draw,
    "in batches": lambda key, n: jd.samplers.sample_in_batches(
        key, EXACT, jd.samplers.Sampling(sampler="ddpm", steps=5, batch=8 * n), shape=(2,), n=n
    ),
    "log_likelihood": lambda key, n: jd.log_likelihood(EXACT, X0[:n], key=key, probes=2).log_density,
    "elbo": lambda key, n: jd.continuous_elbo(key, EXACT, X0[:n], draws=4).total(),
}


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg"])
@pytest.mark.quick(generator=["rbg"])
def test_a_sample_does_not_change_with_its_batch(name: str, generator: str) -> None:
    key = jax.random.key(3, impl=generator)
    np.testing.assert_allclose(USES[name](key, 3)[:2], USES[name](key, 2), atol=2e-5)


def test_keys_of_another_generator_give_different_samples() -> None:
    keys = [jax.random.key(seed, impl="rbg") for seed in range(3)]
    samples = [np.asarray(draw(key, 1000)) for key in keys]
    assert all(abs(np.corrcoef(a[:, 0], b[:, 0])[0, 1]) < 5 / 1000**0.5 for a, b in itertools.pairwise(samples))


@pytest.mark.parametrize("key", [0, np.zeros(2, np.uint32), jax.random.split(jax.random.key(0), 2)], ids=str)
def test_what_is_no_key_is_refused(key: Any, unchecked: None) -> None:
    with pytest.raises(InputError, match=r"key = .*typed key: jax.random.key\(0\)"):
        draw(key, 2)


@pytest.mark.thorough
def test_a_run_does_not_depend_on_the_generator_that_jax_uses_by_default(tmp_path: Any) -> None:
    from jaxdiff.training import loop

    config = tiny.config({"train.steps": 5})
    expected = loop.train(config, tmp_path / "a")
    with jax.default_prng_impl("rbg"):
        found = loop.train(config, tmp_path / "b")
        again = jd.load(tmp_path / "b").sample(jax.random.key(0), n=2)
    tiny.assert_identical(found, expected)
    assert np.isfinite(again).all()
