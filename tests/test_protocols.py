"""What users give in place of a component is refused in one sentence: samplers, tableaux, networks, processes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import samplers
from jaxdiff.losses import weightings

KEY = jax.random.key(0)
EXACT = jd.analytic.gaussian([0.7, 0.0], 0.25, jd.schedules.VP())


def draw(sampler: Any, **options: Any) -> np.ndarray:
    return np.asarray(jd.sample(KEY, EXACT, sampler, shape=(2,), n=3, steps=4, **options))


class WithAttribute(samplers.Stateless):
    def __init__(self, eta: float) -> None:
        self.eta = eta

    def advance(self, key: Any, x_t: Any, *, t: Any, s: Any, denoiser: Any) -> Any:
        return denoiser.process.corrupt(*denoiser(x_t, t)[:2], s) + 0 * self.eta


@dataclasses.dataclass
class NotFrozen(WithAttribute):
    eta: float = 0.0


@dataclasses.dataclass(frozen=True)
class Frozen(WithAttribute):
    eta: float = 0.0


class WithoutInit:
    def step(self, key: Any, x_t: Any, state: Any, *, t: Any, s: Any, denoiser: Any) -> Any: ...


class Sample(samplers.Stateless):
    """Returns the sample alone."""

    def step(self, key: Any, x_t: Any, state: Any, *, t: Any, s: Any, denoiser: Any) -> Any:
        return x_t


class OtherShape(samplers.Stateless):
    def advance(self, key: Any, x_t: Any, *, t: Any, s: Any, denoiser: Any) -> Any:
        return jnp.concatenate([x_t, x_t])


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (WithAttribute(0.0), "WithAttribute.* has attributes but no hash .* frozen dataclass"),
        (NotFrozen(), "NotFrozen.* has no hash .* frozen dataclass"),
        (Frozen(np.zeros(2)), r"Frozen.* has no hash .* plain values"),  # type: ignore[arg-type]
        (Frozen, r"is the class Frozen; give a sampler, Frozen\(\.\.\.\)"),
        (WithoutInit(), "WithoutInit.* lacks the method init"),
        (3, "sampler = 3 lacks the method init and step"),
        (Sample(), r"Sample\.step returned \(2,\) .* must return \(x_s, new state\)"),
        (OtherShape(), r"OtherShape\.step returned \(\(4,\), None\) .* of the same shapes"),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
@pytest.mark.usefixtures("unchecked")
def test_a_wrong_sampler_is_named_with_the_rule(sampler: Any, message: str) -> None:
    with pytest.raises(jd.InputError, match=message):
        draw(sampler)


def test_a_frozen_dataclass_is_a_sampler() -> None:
    np.testing.assert_allclose(draw(Frozen(0.5)), draw("deterministic"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("stages", "weights"),
    [(((1.0,),), (1.0,)), ((), (0.5, 0.5)), (((0.5,),), (0.5, 0.7)), (((0.5, 0.5),), (0.5, 0.5)), ((1.0,), (0.5, 0.5))],
)
def test_a_tableau_that_is_none_is_refused(stages: Any, weights: Any) -> None:
    with pytest.raises(jd.InputError, match=r"Mine has stages = .* of sum 1"):
        type("Mine", (samplers.RungeKutta,), {"stages": stages, "weights": weights})
    with pytest.raises(jd.InputError, match="Mine has stages"):
        type("Mine", (samplers.RungeKutta,), {})


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_network_or_process_is_refused() -> None:
    network, process, schedule = lambda _, x, t: x, EXACT.process, jd.schedules.VP()
    with pytest.raises(jd.InputError, match=r"process = VP\(.*as jaxdiff.Gaussian\(schedule\)"):
        jd.denoiser(network, None, schedule)  # type: ignore[arg-type]
    with pytest.raises(jd.InputError, match=r"apply = \{\}; it must be the function"):
        jd.denoiser({}, network, process)  # type: ignore[arg-type]
    with pytest.raises(jd.InputError, match=r"schedule = Gaussian.*process\.schedule"):
        jd.time_sampling.time_sampler("auto", process)  # type: ignore[arg-type]
    with pytest.raises(jd.InputError, match=r"predicts = 'velocty'.*did you mean 'velocity'"):
        jd.denoiser(network, None, process, predicts="velocty")


def test_an_error_of_the_network_says_what_it_was_called_on() -> None:
    model = jd.denoiser(lambda _, x, t: jnp.concatenate([x, t[:, None]], axis=-1), None, EXACT.process)
    with pytest.raises(TypeError) as found:
        jd.losses.simple(model, jnp.zeros((8, 2)), 0.5, key=KEY)  # a batch
    assert any("jax.vmap" in note and "(1, 8, 2), (1,)" in note for note in found.value.__notes__)


def test_a_denoiser_prints_without_its_weights() -> None:
    model = jd.denoiser(lambda _, x, t: x, {"w": np.arange(1000.0)}, EXACT.process)
    assert "99" not in repr(model)


def test_a_weighting_can_be_named() -> None:
    x0, options = jnp.ones(2), {"key": KEY}
    by_name = jd.losses.weighted(EXACT, x0, 0.3, weight="min_snr:gamma=3", **options)
    assert by_name == jd.losses.weighted(EXACT, x0, 0.3, weight=weightings.min_snr(3.0), **options)
