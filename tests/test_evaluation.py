"""The Fréchet distance against its closed form, the shipped classifiers, and the table of samplers."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.linalg

from jaxdiff import data, evaluation, samplers, schedules
from jaxdiff.evaluation import classifiers, frechet_distance, load_classifier
from jaxdiff.processes import Gaussian
from jaxdiff.typing import InputError


def correlated(rng: np.random.Generator, n: int, scale: float = 1.0) -> np.ndarray:
    return scale * rng.normal(size=(n, 5)) @ rng.normal(size=(5, 5)) + rng.normal(size=5)


@pytest.fixture(scope="module")
def reference() -> evaluation.Reference:
    return evaluation.reference("digits")


@pytest.fixture(scope="module")
def digits() -> dict[str, np.ndarray]:
    splits = {split: data.load("digits", split=split) for split in ("train", "test")}
    return {split: data.normalize(found.x, found.levels) for split, found in splits.items()}


def test_the_distance_equals_the_formula_with_scipys_root():
    rng = np.random.default_rng(0)
    a, b = correlated(rng, 300), correlated(rng, 200, 2.0)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(axis=0) - b.mean(axis=0)
    truth = shift @ shift + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b))
    assert frechet_distance(a, b)[0] == pytest.approx(truth, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_the_standard_error_is_the_spread_over_draws_of_both_sets():
    """Both sets are drawn each time, with different distributions and sizes; 400 draws give the spread to 3.5 %."""
    rng = np.random.default_rng(1)
    mix, shift = rng.normal(size=(4, 4)), np.array([1.0, 0.0, 0.0, 0.5])
    found = np.array(
        [frechet_distance(rng.normal(size=(150, 4)) @ mix + shift, rng.normal(size=(250, 4))) for _ in range(400)]
    )
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(ddof=1), rel=0.11)


def test_the_distance_of_a_set_to_itself_is_0_in_any_order():
    rng = np.random.default_rng(2)
    a, b = correlated(rng, 100), correlated(rng, 100)
    a[:, 3] = 7.0  # a feature that is constant
    assert frechet_distance(a, a)[0] == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, rng.permutation(a))[0] == pytest.approx(0, abs=1e-10)
    assert frechet_distance(rng.permutation(a), b) == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_too_few_samples_and_infinite_features_are_refused():
    a = np.random.default_rng(3).normal(size=(20, 5))
    bad = np.where(np.arange(20)[:, None] == 4, np.nan, a)
    with pytest.raises(InputError, match=r"^a has 5 samples of 5 features; .* give at least 6"):
        frechet_distance(a[:5], a)
    with pytest.raises(InputError, match=r"^b has 1 of 20 rows that are not finite"):
        frechet_distance(a, bad)


def test_the_distance_falls_with_the_noise_on_real_images_and_so_does_the_floor_with_n(reference, digits):
    rng = np.random.default_rng(4)
    images = digits["train"][rng.permutation(1500)[:297]]  # the data are ordered by writer
    noise = rng.normal(size=images.shape)
    found = [
        reference.distance(np.clip(images + sigma * noise, -1, 1).astype(np.float32))
        for sigma in (0.8, 0.4, 0.2, 0.1, 0.0)
    ]
    values = [distance.value for distance in found]
    assert all(np.diff(values) < 0)
    assert values[0] > 5 * values[-1]
    whole = reference.distance(digits["test"])
    assert whole.value == pytest.approx(whole.floor, rel=1e-5)  # the whole test split, in another order
    fewer = reference.distance(digits["train"][:100])
    assert fewer.n == 100
    assert fewer.floor > whole.floor
    assert fewer.floor == frechet_distance(reference.test[:100], reference.train)[0]


def test_a_printed_distance_has_everything_needed_to_interpret_it(reference, digits):
    distance = reference.distance(digits["test"][:50])
    card = evaluation.CARDS["digits"]
    assert str(distance) == (
        f"Fréchet distance {distance.value:.3f} ± {distance.standard_error:.3f} (n = 50, floor {distance.floor:.3f}; "
        f"classifier digits {card.sha256[:12]}, test accuracy {100 * card.test_accuracy:.2f}%)"
    )


def test_the_classifier_of_digits_is_as_accurate_as_its_card_says():
    test = data.load("digits", split="test")
    classifier = load_classifier("digits")
    found = classifier.accuracy(data.normalize(test.x, test.levels), test.labels)
    assert found == pytest.approx(classifier.card.test_accuracy, abs=1.01 / len(test.x))  # rounding may turn one
    assert found > 0.94


def by_hand(params: dict, x: np.ndarray, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """The classifier in numpy, float64: features and logits."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])

    def conv(x, layer, size, stride, padding):
        x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
        return np.maximum(np.einsum("nhwcij,ijco->nhwo", windows, layer["kernel"]) + layer["bias"], 0)

    corners = [x[:, i::patch, j::patch] for i in range(patch) for j in range(patch)]
    x = conv(np.concatenate(corners, axis=-1), params["conv1"], 3, 1, 1)
    x = conv(conv(x, params["halve"], 2, 2, 0), params["conv2"], 3, 1, 1)
    features = x.reshape(len(x), -1) @ params["features"]["kernel"] + params["features"]["bias"]
    return features, np.maximum(features, 0) @ params["logits"]["kernel"] + params["logits"]["bias"]


@pytest.mark.parametrize("name", evaluation.CARDS)
def test_a_shipped_classifier_is_small_and_agrees_with_numpy(name):
    classifier = load_classifier(name)  # which verifies their hash
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(classifier.params)) < 1e6
    images = np.random.default_rng(5).uniform(-1, 1, (3, *classifier.card.shape)).astype(np.float32)
    features, logits = by_hand(classifier.params, images, classifier.card.model.patch)
    np.testing.assert_allclose(classifier.features(images), features, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(classifier.labels(images), logits.argmax(axis=1))
    np.testing.assert_allclose(classifier._apply(images)[1], logits, rtol=1e-4, atol=1e-4)


def test_weights_with_another_hash_are_refused(monkeypatch):
    other = dataclasses.replace(evaluation.CARDS["digits"], sha256="0" * 64)
    monkeypatch.setattr(classifiers, "CARDS", {"digits": other, "absent": other})
    with pytest.raises(InputError, match=r"digits\.npz has SHA-256 \w{64}, not 0{64}: it is damaged"):
        load_classifier("digits")
    with pytest.raises(InputError, match=r"absent\.npz has SHA-256 .* missing; reinstall"):
        load_classifier("absent")
    with pytest.raises(
        InputError, match=r"^name = 'moons'; it must be a data set with a shipped classifier: digits, absent"
    ):
        load_classifier("moons")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :7], "images has shape (40, 7, 8, 1); the classifier of digits takes (n, 8, 8, 1)"),
        (lambda x: x[0], "images has shape (8, 8, 1)"),
        (lambda x: x[:0], "images has shape (0, 8, 8, 1)"),
        (lambda x: (x + 1) / 2, "images are in [0, 1]; they must be in [−1, 1]"),
        (lambda x: ((x + 1) * 8).astype(np.uint8), "images are in [0, 16]"),
        (lambda x: 1.1 * x, "images are in [-1.1, 1.1]"),
        (lambda x: np.where(np.arange(40)[:, None, None, None] < 2, np.inf, x), "2 of 40 images are not finite"),
        (lambda x: x[:32], "a has 32 samples of 32 features"),
        (lambda x: np.repeat(x, 8, axis=0), "320 images, but the test split that gives the floor has 297"),
    ],
)
def test_images_that_cannot_be_judged_are_refused(reference, digits, change, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        reference.distance(change(digits["test"][:40]))


@pytest.mark.usefixtures("unchecked")
def test_labels_must_be_one_for_each_image(reference, digits):
    with pytest.raises(InputError, match=r"^3 labels for 4 images"):
        reference.classifier.accuracy(digits["test"][:4], np.zeros(3, int))


@pytest.fixture
def table(monkeypatch):
    """The module that makes the table of samplers."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import mnist_samplers

    return mnist_samplers


@pytest.mark.parametrize(("name", "calls"), [("ddpm", 3), ("heun", 5), ("dpm++3m", 3), ("edm", 5)])
def test_the_table_counts_the_evaluations_of_three_steps(table, name, calls):
    process = Gaussian(schedules.Cosine(20))
    assert table.evaluations(process, samplers.make(name), 3, "uniform") == calls
    per_step = next(row[2] for row in table.ROWS if row[0] == name)
    assert calls == 1 + 2 * per_step


def test_the_table_resumes_from_its_own_cells_only(table, tmp_path):
    path = tmp_path / "docs" / "table.json"
    table.Results(path, {"n": 5}).add("ddim uniform 10", {"value": 1.5})
    assert table.Results(path, {"n": 5}).cells == {"ddim uniform 10": {"value": 1.5}}
    assert [file.name for file in path.parent.iterdir()] == ["table.json"]
    with pytest.raises(SystemExit, match=r"holds results of \{'n': 5\}, not of \{'n': 6\}"):
        table.Results(path, {"n": 6})
    assert json.loads(path.read_text())["of"] == {"n": 5}


def test_the_page_shows_each_distance_and_the_goal(table):
    cell = {"standard_error": 0.25, "floor": 0.5, "evaluations": 10, "steps": 10}
    cells = {
        "ddpm uniform 10": cell | {"value": 9.0},
        "heun uniform 10": cell | {"value": 2.2, "evaluations": 9},
        "ddpm uniform 1000": cell | {"value": 2.0, "evaluations": 1000},
        "bits 16": {"elbo": [1.5, 0.125], "ode": [1.25, 0.0625]},
    }
    of = {"data": "mnist", "step": 7, "weights": "abc", "n": 500}
    text = table.page(cells, of, columns=[10, 1000], card=evaluation.CARDS["mnist"])
    assert "| `ddpm` | uniform | 9.00 ± 0.25 | 2.00 ± 0.25 |" in text
    assert "| `heun` | uniform | 2.20 ± 0.25 (9) |  |" in text
    assert "`heun` with timesteps uniform, is at 1.10 times" in text
    assert "1.500 ± 0.125 by the ELBO, 1.250 ± 0.062 by the ODE" in text
    assert all(part in text for part in ("500 samples", "0.50", str(evaluation.CARDS["mnist"]), "step 7", "abc"))
