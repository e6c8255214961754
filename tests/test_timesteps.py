"""Rules that place the times of the steps, and times that are given."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import schedules
from jaxdiff.samplers import timesteps
from jaxdiff.schedules import Schedule

SCHEDULES: dict[str, Schedule] = {name: make() for name, make in schedules.SCHEDULES.items()}


@pytest.mark.parametrize("rule", timesteps.TIMESTEPS)
def test_rules_on_a_discrete_schedule_visit_distinct_timesteps(rule: str) -> None:
    schedule = schedules.Cosine(12)
    for steps in range(1, 13):
        times = timesteps.make(rule, steps, schedule)
        k = np.round(times * 12)
        np.testing.assert_array_equal(times, k / 12)
        assert len(times) == steps + 1
        assert (k[0], k[-1]) == (12, 0)
        assert np.all(np.diff(k) < 0)
    assert k.tolist() == list(range(12, -1, -1))


def test_timesteps_follow_their_rules() -> None:
    flow, linear = SCHEDULES["flow"], SCHEDULES["linear"]
    np.testing.assert_allclose(timesteps.make("uniform", 4, flow), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(timesteps.make("quadratic", 4, flow), [1, 0.5625, 0.25, 0.0625, 0])
    # Where no two times are near, each is moved by at most half a step.
    for rule in ("uniform", "quadratic"):
        np.testing.assert_allclose(
            timesteps.make(rule, 10, linear), timesteps.make(rule, 10, flow), atol=0.5e-3 + 1e-12
        )
    crowded = (timesteps.make("quadratic", 10, schedules.Cosine(20)) * 20).tolist()
    assert crowded == pytest.approx([20, 16, 13, 10, 7, 5, 4, 3, 2, 1, 0])  # 0.2, 0.8 and 1.8 are pushed apart


@pytest.mark.parametrize("name", ["vp", "ve", "flow", "truncated_cosine"])
def test_timesteps_of_the_log_snr_have_equal_spacing(name: str, x64: None) -> None:
    """Between t = 1 (1 − 1e-3 where λ_1 is infinite) and 1e-3; then comes 0."""
    schedule = SCHEDULES[name]
    for rule, scale in (("log_snr", lambda x: x), ("karras", lambda x: np.exp(-x / 14))):
        times = timesteps.make(rule, 9, schedule)
        assert (times[0], len(times), times[-1]) == (1, 10, 0)
        inner = times[:-1].copy()
        inner[0] = 1 - 1e-3 if name == "flow" else 1
        np.testing.assert_allclose(inner[-1], 1e-3, rtol=1e-9)
        gaps = np.diff(scale(np.asarray(schedule.log_snr(jnp.asarray(inner)))))
        np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-6)
        assert timesteps.make(rule, 1, schedule).tolist() == [1, 0]


def test_timesteps_may_be_a_list() -> None:
    times = [1.0, 0.33333, 0.1, 0.05]
    for schedule in (SCHEDULES["flow"], schedules.Cosine(10)):
        assert timesteps.make(times, None, schedule).tolist() == times
        assert timesteps.make(np.array(times), 3, schedule).tolist() == times


@pytest.mark.parametrize(
    ("given", "steps", "message"),
    [
        ("uniform", 0, "steps = 0; it must be 1 or more"),
        ("uniform", None, "steps is missing"),
        ("quadratic", 11, "steps = 11, but the schedule has 10 timesteps; use at most 10 steps"),
        ("cubic", 5, "timesteps = 'cubic'; the known ones are karras, log_snr, quadratic, uniform"),
        ([1.0, 0.5, 0.0], 3, "steps = 3, but 3 timesteps are given, which make 2 steps"),
        ([1.0, 0.5, 0.5], None, r"timesteps = \[1.0, 0.5, 0.5\]; the times must fall strictly"),
        ([1.0, np.nan, 0.0], None, "the times must fall strictly"),
        ([1.5, 0.0], None, r"stay within \[0, 1\]"),
        ([1.0, -0.5], None, r"stay within \[0, 1\]"),
        ([1.0], None, r"timesteps has shape \(1,\); give a list of at least two times"),
    ],
)
def test_wrong_timesteps_are_named(given: Any, steps: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timesteps.make(given, steps, schedules.Cosine(10))
