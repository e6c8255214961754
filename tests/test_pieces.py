"""Computations in pieces, between which a program may act or stop."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdiff as jd
from jaxdiff.evaluation import accuracy_by_noise
from jaxdiff.samplers import Sampling, pieces, sample_in_batches
from jaxdiff.samplers.batching import sample_at


class Stop(Exception):  # noqa: N818
    """What a test raises between two pieces."""


EXACT = jd.analytic.mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1], schedule=jd.schedules.VP())


@given(stops=st.lists(st.integers(1, 200), min_size=1, max_size=5, unique=True).map(sorted), longest=st.integers(1, 50))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_every_step_is_taken_once_in_order_and_a_piece_ends_at_each_stop(stops, longest):
    spans = []

    def take(carry, span):
        spans.append(tuple(map(int, span)))
        return carry + span[1] - span[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_MOST", longest)
        found = list(pieces.advance(take, 0, stops))
    assert [step for first, last in spans for step in range(first, last)] == list(range(stops[-1]))
    assert all(done == carry for done, carry in found)
    assert {*stops} <= {done for done, _ in found}
    assert spans[0] == (0, 1)
    assert max(last - first for first, last in spans) <= longest


def stopping_at(count: int):
    """A function that raises when it is called for the `count`-th time, and the list of its calls."""
    calls: list[None] = []

    def check() -> None:
        calls.append(None)
        if len(calls) == count:
            raise Stop

    return check, calls


def test_images_are_abandoned_between_two_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "_MOST", 1)
    check, calls = stopping_at(3)
    sampling = Sampling(sampler="ddpm", steps=10)
    with pytest.raises(Stop), pieces.calling(check):
        sample_in_batches(jax.random.key(0), EXACT, sampling, shape=(2,), n=8)
    assert len(calls) == 3
    sample_in_batches(jax.random.key(0), EXACT, sampling, shape=(2,), n=8)
    assert len(calls) == 3


def test_points_are_abandoned_between_two_pieces_and_are_those_of_sample(monkeypatch):
    monkeypatch.setattr(pieces, "_MOST", 3)
    check, calls = stopping_at(10**6)
    key, sampling, at = jax.random.key(0), Sampling(sampler="ddpm", steps=10), [0, 4, 10]
    with pieces.calling(check):
        found = sample_at(key, EXACT, sampling, shape=(2,), n=8, at=at)
    path = jd.sample(key, EXACT, "ddpm", steps=10, shape=(2,), n=8, trajectory=True)
    assert list(found) == at
    for index in at:
        np.testing.assert_allclose(found[index], path[:, index], rtol=1e-5, atol=1e-5)
    assert len(calls) >= 4
    check, _ = stopping_at(1)
    with pytest.raises(Stop), pieces.calling(check):
        sample_at(key, EXACT, sampling, shape=(2,), n=8, at=at)


class Sign(NamedTuple):
    """A classifier of the two components."""

    process: jd.Process

    def log_probs(self, x, t):
        return jnp.stack([-x[0], x[0]])


def test_the_accuracy_of_a_classifier_is_abandoned_between_two_pieces():
    x0 = np.asarray(EXACT.data.sample(jax.random.key(0), 300))
    labels, classifier = (x0[:, 0] > 0).astype(int), Sign(EXACT.process)
    check, calls = stopping_at(10**6)
    with pieces.calling(check):
        found = accuracy_by_noise(jax.random.key(1), classifier, x0, labels, times=(0.0, 0.9))
    assert found.accuracy[0] == 1
    assert 0.5 < found.accuracy[1] < 1
    assert len(calls) == 4  # two parts of the samples at two times
    check, _ = stopping_at(2)
    with pytest.raises(Stop), pieces.calling(check):
        accuracy_by_noise(jax.random.key(1), classifier, x0, labels, times=(0.0, 0.9))
