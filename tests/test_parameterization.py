"""The contract of every kind of prediction under every registered schedule: inverses, targets, both ends."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import schedules
from jaxdiff.processes import Gaussian
from jaxdiff.processes.parameterization import KINDS, canonical, from_prediction, to_prediction
from jaxdiff.schedules import Schedule
from jaxdiff.typing import InputError, Prediction

SCHEDULES: dict[str, Schedule] = {name: make() for name, make in schedules.SCHEDULES.items()}
TIMES = (0.0213, 0.5, 0.9787)  # 0.5 is a time of a discrete schedule, the others lie between two
X0, NOISE, OTHER = np.random.default_rng(0).normal(size=(3, 2, 3))  # one sample has shape (2, 3)
ATOL = {"float32": 50 * 6e-8, "float64": 50 * 1.1e-16}  # roundings; times the condition number where one divides

every_schedule = pytest.mark.parametrize("name", SCHEDULES)
both_precisions = pytest.mark.parametrize("dtype", ["float32", "float64"])


@jax.jit
def conversions(schedule: Schedule, t: jax.Array, x0: jax.Array, noise: jax.Array, other: jax.Array) -> Any:
    """For each kind: the output for (x0, noise), the pair again, that of another output, and this output again."""
    process = Gaussian(schedule)
    x_t = schedule.alpha(t) * x0 + schedule.sigma(t) * noise
    found = {}
    for kind in KINDS:
        output = from_prediction(kind, Prediction(x0, noise), t=t, process=process)
        again = to_prediction(kind, output, x_t, t=t, process=process)
        pair = to_prediction(kind, other, x_t, t=t, process=process)
        found[kind] = output, again, pair, from_prediction(kind, pair, t=t, process=process)
    return x_t, schedule.alpha(t), schedule.sigma(t), found


@functools.cache
def converted(name: str, t: float, dtype: str) -> Any:
    with jax.enable_x64(dtype == "float64"):
        arrays = [jnp.asarray(array, dtype) for array in (t, X0, NOISE, OTHER)]
        return jax.device_get(conversions(SCHEDULES[name], *arrays))


@every_schedule
@both_precisions
@pytest.mark.parametrize("t", TIMES)
@pytest.mark.quick(dtype=["float32"])
def test_conversions_invert_each_other(name: str, dtype: str, t: float) -> None:
    _, alpha, sigma, found = converted(name, t, dtype)
    condition = max(1, alpha, sigma) / min(1, alpha, sigma)
    for kind, (output, again, _, other) in found.items():
        assert output.dtype == dtype
        atol = ATOL[dtype] * condition
        np.testing.assert_allclose(again.x0, X0, atol=atol, err_msg=kind)
        np.testing.assert_allclose(again.noise, NOISE, atol=atol, err_msg=kind)
        np.testing.assert_allclose(other, OTHER, atol=atol * condition, err_msg=kind)  # divided twice


@every_schedule
@both_precisions
@pytest.mark.parametrize("t", TIMES)
def test_every_prediction_lies_on_the_path(name: str, dtype: str, t: float) -> None:
    x_t, alpha, sigma, found = converted(name, t, dtype)
    for kind, (_, _, pair, _) in found.items():
        size = np.abs(alpha * pair.x0).max() + np.abs(sigma * pair.noise).max()
        np.testing.assert_allclose(alpha * pair.x0 + sigma * pair.noise, x_t, atol=ATOL[dtype] * size, err_msg=kind)


@every_schedule
@pytest.mark.parametrize("t", TIMES)
def test_targets_are_their_definitions(name: str, t: float, x64: None) -> None:
    """eps, x0 and v by their formulas, velocity and score by differentiation."""
    schedule = SCHEDULES[name]
    process = Gaussian(schedule)

    def log_density(x: jax.Array) -> jax.Array:
        return jax.scipy.stats.norm.logpdf(x, schedule.alpha(t) * X0, schedule.sigma(t)).sum()

    @jax.jit
    def differentiated(x_t: jax.Array) -> tuple[jax.Array, jax.Array]:
        path = jax.jvp(lambda t: process.corrupt(jnp.asarray(X0), jnp.asarray(NOISE), t), (t,), (1.0,))
        return path[1], jax.grad(log_density)(x_t)

    x_t, alpha, sigma, found = converted(name, t, "float64")
    velocity, score = differentiated(x_t)
    expected = {
        "eps": NOISE,
        "x0": X0,
        "v": alpha * NOISE - sigma * X0,
        "velocity": velocity,
        "score": score,
    }
    for kind in KINDS:
        # The score divides the rounding of x_t, 1e-16·50, twice by σ ≥ 2e-2.
        np.testing.assert_allclose(found[kind][0], expected[kind], rtol=1e-9, atol=1e-10, err_msg=kind)


@jax.jit
def ends(schedule: Schedule, t: jax.Array, x_t: jax.Array, output: jax.Array) -> Any:
    """For each kind the prediction, the output it stands for, and the gradients of both by reverse mode."""
    process = Gaussian(schedule)
    found = {}
    for kind in KINDS:

        def there_and_back(output: jax.Array, x_t: jax.Array, kind: Any = kind) -> tuple[Prediction, jax.Array]:
            pair = to_prediction(kind, output, x_t, t=t, process=process)
            return pair, from_prediction(kind, pair, t=t, process=process)

        value, pullback = jax.vjp(there_and_back, output, x_t)
        found[kind] = value, pullback(jax.tree.map(jnp.ones_like, value))
    return found


@every_schedule
@both_precisions
@pytest.mark.parametrize("t", [0.0, 1.0])
@pytest.mark.quick(dtype=["float32"])
def test_both_ends_are_finite_with_finite_gradients(name: str, dtype: str, t: float) -> None:
    with jax.enable_x64(dtype == "float64"):
        found = ends(SCHEDULES[name], jnp.asarray(t, dtype), jnp.asarray(X0, dtype), jnp.asarray(OTHER, dtype))
    for kind in KINDS:
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found[kind])), kind


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "sigmoid", "ve", "flow"])
def test_pure_data_is_converted_as_documented(name: str) -> None:
    """At σ = 0, where α = 1 for all of these."""
    x_t, output = jnp.asarray(X0, jnp.float32), jnp.asarray(OTHER, jnp.float32)
    found = ends(SCHEDULES[name], jnp.float32(0), x_t, output)
    zero = np.zeros_like(X0)
    # The velocity of a path whose σ leaves 0 like a square root is infinite; the flow's is n − x_0.
    of_velocity = output + x_t if name == "flow" else zero
    expected = {"eps": output, "x0": zero, "v": output, "score": zero, "velocity": of_velocity}
    for kind in KINDS:
        pair, again = found[kind][0]
        np.testing.assert_array_equal(pair.x0, output if kind == "x0" else x_t, err_msg=kind)
        np.testing.assert_allclose(pair.noise, expected[kind], rtol=1e-6, err_msg=kind)
        if kind == "score":
            np.testing.assert_array_equal(again, zero)


def test_an_infinite_velocity_keeps_its_data_term() -> None:
    process = Gaussian(SCHEDULES["vp"])
    for noise in (np.zeros_like(X0), NOISE):
        pair = Prediction(jnp.asarray(X0), jnp.asarray(noise))
        velocity = jax.jit(lambda pair: from_prediction("velocity", pair, t=0.0, process=process))(pair)
        np.testing.assert_allclose(velocity, -0.05 * X0, rtol=1e-6)  # α' = −½ β_min


def test_pure_noise_is_converted_as_documented() -> None:
    """At α = 0, σ = 1: the end of the flow."""
    x_t, output = jnp.asarray(X0, jnp.float32), jnp.asarray(OTHER, jnp.float32)
    found = ends(SCHEDULES["flow"], jnp.float32(1), x_t, output)
    zero = np.zeros_like(X0)
    expected = {
        "eps": (zero, output),
        "score": (zero, -output),
        "x0": (output, x_t),
        "v": (-output, x_t),
        "velocity": (x_t - output, x_t),
    }
    for kind in KINDS:
        for value, stated in zip(found[kind][0][0][:2], expected[kind], strict=True):
            np.testing.assert_allclose(value, stated, rtol=1e-6, err_msg=kind)


def test_the_noise_is_inferred_from_the_clean_sample() -> None:
    process = Gaussian(SCHEDULES["flow"])
    x_t = jnp.asarray(0.75 * X0 + 0.25 * NOISE)
    np.testing.assert_allclose(process.infer_noise(jnp.asarray(X0), x_t, 0.25), NOISE, atol=2e-6)  # x_t's eps/σ
    np.testing.assert_array_equal(process.infer_noise(jnp.asarray(X0), x_t, 0.0), 0)


def test_spellings_of_other_libraries_are_accepted() -> None:
    spellings = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
    assert {name: canonical(name) for name in (*KINDS, *spellings)} == dict(zip(KINDS, KINDS, strict=True)) | spellings


def test_an_unknown_kind_is_refused(unchecked: None) -> None:
    process, x = Gaussian(SCHEDULES["flow"]), jnp.zeros(2)
    message = "kind = 'pixels'; it must be one of eps, x0, v, score, velocity"
    kind: Any = "pixels"
    with pytest.raises(InputError, match=message):
        canonical(kind, what="kind")
    with pytest.raises(InputError, match=message):
        to_prediction(kind, x, x, t=0.5, process=process)
    with pytest.raises(InputError, match=message):
        from_prediction(kind, Prediction(x, x), t=0.5, process=process)
