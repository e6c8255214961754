"""The table of bits/dim: the sums of its rows, and the standard error for one image."""

import math

import numpy as np
import pytest

from jaxdiff.likelihood import BitsPerDim, Elbo

STEPS = 40
# L_{t-1} = k at t = k/T, so that the rows are sums of integers.
ELBO = Elbo(
    np.array([1.0, 3.0], np.float32),
    np.tile(np.arange(2, STEPS + 1, dtype=np.float32), (2, 1)),
    np.array([5.0, 5.0], np.float32),
)
MEASURED = BitsPerDim(d=2, elbo=ELBO, ode=np.array([1.0, 4.0], np.float32))


def rows(measured: BitsPerDim) -> dict[str, list[float]]:
    """The figures of the table, by the name of the row."""
    return {
        line[:24].strip(): [float(figure) for figure in line[24:].split()] for line in measured.table().split("\n")[1:]
    }


def test_the_table_has_every_term_and_their_sum():
    found, bit = rows(MEASURED), 2 * math.log(2)
    total = sum(range(2, STEPS + 1))
    sums = [sum(range(low + 1, high + 1)) for low, high in ((20, 40), (10, 20), (4, 10), (1, 4))]
    names = [f"L_t-1, {t}" for t in ("0.5 < t ≤ 1", "0.25 < t ≤ 0.5", "0.1 < t ≤ 0.25", "0 < t ≤ 0.1")]
    nats = {"L_T": (2, 1), **{name: (value, 0) for name, value in zip(names, sums, strict=True)}, "L_0": (5, 0)}
    nats |= {"ELBO": (7 + total, 1), "ODE": (2.5 * bit, 1.5 * bit)}
    assert list(found) == list(nats)
    for name, (mean, error) in nats.items():
        np.testing.assert_allclose(found[name], [mean, error, mean / bit, error / bit], atol=6e-4)
    bits = MEASURED.summary()
    assert bits["elbo"] == pytest.approx(((7 + total) / bit, 1 / bit))
    assert bits["ode"] == pytest.approx((2.5, 1.5))


def test_the_standard_error_of_one_image_is_nan():
    one = BitsPerDim(d=2, elbo=Elbo(*(term[:1] for term in ELBO)), ode=MEASURED.ode[:1])
    assert all(math.isfinite(mean) and math.isnan(error) for mean, error in one.summary().values())
    assert all(math.isnan(figures[1]) and math.isnan(figures[3]) for figures in rows(one).values())


def test_without_a_bound_the_table_has_the_ode_alone():
    alone = BitsPerDim(d=2, elbo=None, ode=MEASURED.ode)
    assert list(rows(alone)) == list(map(str.upper, alone.summary())) == ["ODE"]
