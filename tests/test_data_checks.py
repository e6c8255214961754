"""Data sets that break a rule: the first bad example is named when the data are loaded."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff import data
from jaxdiff.experiment import build
from jaxdiff.typing import InputError

pytestmark = pytest.mark.usefixtures("unchecked")  # the package itself must refuse what breaks annotations


def dataset(**changes) -> data.Dataset:
    """Eight images of 4 levels and 3 classes, with changes."""
    rng = np.random.default_rng(0)
    x, labels = rng.integers(4, size=(8, 2, 2, 1)).astype(np.uint8), np.arange(8, dtype=np.int32) % 3
    return data.Dataset(**{"name": "mine", "x": x, "labels": labels, "levels": 4, "classes": 3, **changes})


def refused(message: str, **changes) -> None:
    with pytest.raises(InputError, match=message) as error:
        dataset(**changes)
    assert "\n" not in str(error.value)


@given(index=st.integers(0, 7), place=st.integers(0, 3), value=st.sampled_from([np.nan, np.inf, -np.inf]))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_first_example_that_is_not_finite_is_named(index, place, value):
    x = np.zeros((8, 4), np.float32)
    x[index:, place] = value
    refused(rf"^data set 'mine': x\[{index}\] holds {value}; it must be finite", x=x, levels=None)


@given(index=st.integers(0, 7), label=st.sampled_from([-1, 3, 2**31 - 1, -(2**31)]))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_first_label_beyond_the_classes_is_named(index, label):
    labels = np.zeros(8, np.int32)
    labels[index:] = label
    refused(rf"^data set 'mine': labels\[{index}\] holds {label}; it must lie in 0 \.\.\. 2", labels=labels)


def test_the_first_value_beyond_the_levels_is_named():
    x = np.zeros((8, 2, 2, 1), np.uint8)
    x[5, 1, 0, 0] = 4
    refused(r"x\[5\] holds 4; it must be below levels = 4", x=x)


@pytest.mark.parametrize(
    "changes",
    [
        {"x": np.zeros((0, 2, 2, 1), np.uint8), "labels": None, "classes": None},
        {"x": np.zeros((8, 0), np.uint8)},
        {"x": np.zeros(8, np.uint8)},
        {"x": np.zeros((8, 2), np.float64), "levels": None},
        {"x": np.zeros((8, 2), np.float32)},
        {"x": np.zeros((8, 2), np.uint8), "levels": None},
        {"x": [[0, 1]]},
        {"levels": 1},
        {"levels": 257},
        {"labels": np.zeros(7, np.int32)},
        {"labels": np.zeros((8, 1), np.int32)},
        {"labels": np.zeros(8, np.int64)},
        {"labels": np.zeros(8, np.float32)},
        {"labels": [0] * 8},
        {"labels": None},
        {"classes": None},
        {"classes": 0},
    ],
)
def test_other_broken_rules_name_the_argument(changes):
    name = next(iter(changes))
    refused(rf"^data set 'mine' has .*{name} = ", **changes)


def pair(x, labels=None):
    """A data set of one's own, as a function."""
    return lambda split: (x, labels)


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (np.array([[0.0], [1e300]]), None, r"x\[1\] holds inf; it must be finite"),
        (np.zeros((2, 1)), np.array([0, -3]), r"labels\[1\] holds -3; it must lie in 0 "),
        (np.zeros((2, 1)), np.array([0, 2**40]), r"labels\[1\] holds 1099511627776; it must lie in 0 "),
        (np.zeros((0, 1)), None, r"has x = float64\(0, 1\)"),
    ],
)
def test_pairs_of_one_s_own_are_checked_too(x, labels, message, monkeypatch):
    monkeypatch.setitem(data.sources.DATASETS, "own", pair(x, labels))
    with pytest.raises(InputError, match=message):
        data.load("own")


def test_a_test_split_unlike_the_train_split_is_refused(monkeypatch):
    splits = {"train": dataset(), "test": dataset(classes=4, labels=np.full(8, 3, np.int32))}
    monkeypatch.setitem(data.sources.DATASETS, "own", lambda split: splits[split])
    model = {"name": "classifier", "patch": 1, "channels": [8]}
    config = tiny.config({"data": {"name": "own"}, "model": model}, base=tiny.IMAGES)
    experiment = build.make_experiment(config, splits["train"].spec)
    with pytest.raises(InputError, match=r"^data\.name = 'own': the test split .* labels below 3; make them alike$"):
        build.test_split(experiment, None)
    splits["test"] = dataset(x=np.zeros((8, 3), np.uint8))
    with pytest.raises(InputError, match=r"the test split has \(3,\) with"):
        build.test_split(experiment, None)
