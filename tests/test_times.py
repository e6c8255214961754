"""Times are floats in [0, 1]: steps of an integer dtype are refused wherever a time goes in, also while tracing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import losses, models, schedules
from jaxdiff.processes import parameterization
from jaxdiff.typing import InputError, Prediction

KEY, X = jax.random.key(0), jnp.ones(2)
EXACT = jd.analytic.mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1], schedules.Linear())
PROCESS = EXACT.process
NETWORK = jd.denoiser(lambda _, x, t: x, None, PROCESS)
FUNCTION = jd.from_function(lambda x, t, cond: Prediction(x, x), PROCESS)
CLASSIFIER = jd.guidance.NetworkClassifier(apply=lambda _, x, t: x, params=None, process=PROCESS)
PERTURBED = jd.Perturbed(schedules.VP(), transform=jd.transforms.Rotation(1.0), noise=jd.noise.Laplace())

USES: dict[str, Callable[[Any], Any]] = {
    **{
        f"{name}.{method}": (lambda t, make=make, method=method: getattr(make(), method)(t))
        for name, make in schedules.SCHEDULES.items()
        for method in ("alpha", "sigma", "log_snr")
    },
    "rates": lambda t: schedules.rates(PROCESS.schedule, t),
    "log_snr_rate": lambda t: schedules.log_snr_rate(PROCESS.schedule, t),
    "exact": lambda t: EXACT(X, t),
    "log_density": lambda t: EXACT.log_density(X, t),
    "network": lambda t: NETWORK(X, t),
    "function": lambda t: FUNCTION(X, t),
    "guided": lambda t: jd.guidance.classifier_free(EXACT, 1.0)(X, t, jnp.array(0)),
    "classifier": lambda t: CLASSIFIER(X, t, jnp.array(0)),
    "corrupt": lambda t: PERTURBED.corrupt(X, X, t),
    "infer_noise": lambda t: PERTURBED.infer_noise(X, X, t),
    "sample_noise": lambda t: PERTURBED.sample_noise(KEY, (2,), t),
    "quantile_map": lambda t: PERTURBED.quantile_map(X, t, 0.0),
    "to_prediction": lambda t: parameterization.to_prediction("v", X, X, t=t, process=PROCESS),
    "from_prediction": lambda t: parameterization.from_prediction("v", Prediction(X, X), t=t, process=PROCESS),
    "simple": lambda t: losses.simple(EXACT, X, t, key=KEY),
    "weighted": lambda t: losses.weighted(EXACT, X, t, key=KEY, weight=losses.weightings.elbo()),
    "step_kl": lambda t: losses.step_kl(X, Prediction(X, X), t=t, s=0.0, schedule=PROCESS.schedule),
    "to_steps": lambda t: losses.time_sampling.to_steps(t, num_timesteps=10),
    "cross_entropy": lambda t: losses.cross_entropy(CLASSIFIER, X, jnp.array(0), t, key=KEY),
    "weighting": lambda t: losses.weightings.min_snr()(PROCESS.schedule, t),
    "history": lambda t: losses.time_sampling.LossHistory.init(4).update(t[None], jnp.ones(1)),
    "ddim": lambda t: jd.samplers.DDIM().step(KEY, X, None, t=t, s=0.0, denoiser=EXACT),
    "heun": lambda t: jd.samplers.Heun().step(KEY, X, None, t=t, s=0.0, denoiser=EXACT),
    "unipc": lambda t: jd.samplers.UniPC().step(KEY, X, jd.samplers.UniPC().init(X), t=t, s=0.0, denoiser=EXACT),
    "mlp": lambda t: models.MLP(width=8, depth=1, time_dim=8).init(KEY, X[None], t[None]),
}


@pytest.mark.parametrize("t", [1.5, -0.1, np.nan, 5, True, None, "0.5", [0.5]])
@pytest.mark.parametrize("name", [name for name in USES if name not in ("history", "mlp")])  # whose times are traced
def test_times_outside_the_path_are_refused(name: str, t: Any, unchecked: None) -> None:
    with pytest.raises(InputError, match=r"^t = .*; (must satisfy|it must be a number in \[0, 1\])"):
        USES[name](t)


@pytest.mark.parametrize("name", USES)
def test_integer_times_are_refused_while_tracing(name: str, unchecked: None) -> None:
    for transform in (jax.jit, jax.vmap):
        with pytest.raises(InputError, match=r"dtype int32; times are floats in \[0, 1\]"):
            transform(USES[name])(jnp.array(500) if transform is jax.jit else jnp.arange(1, 1001))
    jax.eval_shape(USES[name], jax.ShapeDtypeStruct((), jnp.float32))


def test_the_loss_of_a_batch_at_steps_is_refused_and_not_tiny(unchecked: None) -> None:
    """At integers the exact denoiser had the mean loss 2.4e-12, as from perfect training; at t = k/1000 it is 0.786."""
    exact = jd.analytic.gaussian([0.0, 0.0], 1.0, schedules.Linear())
    loss = jax.jit(jax.vmap(lambda t: losses.simple(exact, X, t, key=KEY)))
    with pytest.raises(InputError, match="times are floats"):
        loss(jnp.arange(1, 1001))
    assert 0.2 < float(loss(jnp.arange(1, 1001) / 1000).mean()) < 1.2


@pytest.mark.parametrize("t", [500, 2, -1, np.int64(1), np.arange(2), 1.5, -0.1, np.float32(np.nan)])
@pytest.mark.parametrize("name", ["network", "corrupt", "simple", "ddim"])
def test_known_times_outside_0_to_1_are_refused(name: str, t: Any, unchecked: None) -> None:
    with pytest.raises(InputError, match="t "):
        USES[name](t)


def test_the_ends_may_be_whole_numbers() -> None:
    np.testing.assert_array_equal(schedules.Flow().alpha(1), 0)
    assert NETWORK(X, 1).x0.shape == (2,)


@pytest.mark.parametrize("name", ["network", "simple"])
def test_times_of_a_batch_are_refused_for_one_sample(name: str, unchecked: None) -> None:
    for t in (jnp.full(2, 0.5), np.full((1,), 0.5)):
        with pytest.raises(InputError, match=r"t has shape .* jax.vmap"):
            USES[name](t)
        with pytest.raises(InputError, match=r"t has shape .* jax.vmap"):
            jax.eval_shape(USES[name], jnp.asarray(t))
