"""What guidance is given: weights, the null condition, and models under one process."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import guidance, models
from jaxdiff.typing import InputError, Prediction

PROCESS = jd.Gaussian(jd.schedules.VP())
EXACT = jd.analytic.mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1], jd.schedules.VP())
X, LABEL = jnp.array([0.3, -0.2]), jnp.array(1)


@pytest.mark.parametrize("w", [float("nan"), float("inf"), "1", guidance.Interval, [1.0], None, 1j, True])
def test_a_weight_that_is_no_finite_number_is_refused(w: Any, unchecked: None) -> None:
    with pytest.raises(InputError, match="w = "):
        guidance.classifier_free(EXACT, w)
    with pytest.raises(InputError, match="w = "):
        guidance.classifier(EXACT, lambda x, t, label: 0.0, w)


def test_numbers_of_every_kind_share_a_program_and_a_result(unchecked: None) -> None:
    traces = []

    @jax.jit
    def predict(denoiser: Any) -> jax.Array:
        traces.append(None)
        return denoiser(X, 0.5, LABEL).x0

    numbers = [2.0, 2, np.float32(2), np.float64(2), np.int64(2), np.array(2.0), jnp.float32(2), jnp.int32(2)]
    found = [predict(guidance.classifier_free(EXACT, w)) for w in numbers]
    np.testing.assert_array_equal(found, found[:1] * len(found))
    assert len(traces) == 1


class Embedded(nn.Module):
    """A user's own conditional network, with an embedding of its ten classes and nothing more."""

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: jax.Array) -> jax.Array:
        return x + nn.Embed(10, x.shape[-1])(cond)


def test_a_null_that_the_network_was_not_told_of_is_refused() -> None:
    """The label −1 would be class 9 to `nn.Embed(10)`."""
    model = Embedded()
    params = model.init(jax.random.key(0), X[None], jnp.ones(1), jnp.zeros(1, int))
    plain = jd.denoiser(model.apply, params, PROCESS)
    for denoiser in (plain, jd.clip_denoised(plain), jd.from_function(lambda x, t, c: Prediction(x, x), PROCESS)):
        with pytest.raises(InputError, match="null = None"):
            guidance.classifier_free(denoiser, 1.0)
    named = jd.denoiser(model.apply, params, PROCESS, null=9)
    expected = guidance.classifier_free(plain, 1.0, null=9)(X, 0.5, LABEL)
    for denoiser in (named, jd.clip_denoised(named, -1e9, 1e9)):
        np.testing.assert_allclose(guidance.classifier_free(denoiser, 1.0)(X, 0.5, LABEL).x0, expected.x0, rtol=1e-5)


@pytest.mark.thorough
def test_a_network_of_jaxdiff_is_told_of_its_null() -> None:
    model = models.MLP(width=8, depth=1, time_dim=8, classes=2)
    params = model.init(jax.random.key(0), X[None], jnp.ones(1), jnp.zeros(1, int))
    denoiser = jd.denoiser(model.apply, params, PROCESS, null=-1)
    assert guidance.classifier_free(denoiser, 1.0)(X, 0.5, LABEL).x0.shape == (2,)


def classifier(process: Any) -> guidance.NetworkClassifier:
    return guidance.NetworkClassifier(apply=lambda _, x, t: x, params=None, process=process)


def test_a_classifier_of_another_process_is_refused() -> None:
    guidance.classifier(EXACT, classifier(jd.Gaussian(jd.schedules.VP())), 1.0)
    learned = jd.schedules.Learned.init(jax.random.key(0), hidden=4)
    other = jd.schedules.Learned.init(jax.random.key(1), hidden=4)
    for schedule in (jd.schedules.Cosine(), jd.schedules.VP(beta_max=19.0), learned):
        with pytest.raises(InputError, match="its own process"):
            guidance.classifier(EXACT, classifier(jd.Gaussian(schedule)), 1.0)
    mine = jd.from_function(lambda x, t, c: Prediction(x, x), jd.Gaussian(learned))
    guidance.classifier(mine, classifier(jd.Gaussian(learned)), 1.0)
    with pytest.raises(InputError, match="its own process"):
        guidance.classifier(mine, classifier(jd.Gaussian(other)), 1.0)


def test_no_model_is_moved_to_another_process() -> None:
    network = jd.denoiser(lambda _, x, t: x, None, PROCESS)
    for model in (EXACT, network, jd.clip_denoised(network), classifier(PROCESS)):
        assert model.with_process(jd.Gaussian(jd.schedules.VP())).process == PROCESS
        for other in (jd.Gaussian(jd.schedules.Linear()), jd.Perturbed(jd.schedules.VP(), noise=jd.noise.Laplace())):
            with pytest.raises(InputError, match="its own process"):
                model.with_process(other)
