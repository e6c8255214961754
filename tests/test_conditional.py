"""Models conditioned on labels, from training to samples, and their guidance; classifiers of noisy samples."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import stats

import jaxdiff as jd
from jaxdiff import analytic, evaluation, models, schedules
from jaxdiff.data import DataSpec
from jaxdiff.experiment import Experiment, make_experiment
from jaxdiff.processes import Wrapper
from jaxdiff.run import Run
from jaxdiff.training import loop
from jaxdiff.training.batches import make_batches
from jaxdiff.training.sharding import make_mesh
from jaxdiff.training.step import abstract_state, init_state, make_step
from jaxdiff.typing import pytree

MEANS = 1.5 * np.stack([np.cos(np.arange(8) * math.pi / 4), np.sin(np.arange(8) * math.pi / 4)], axis=1)
CONDITIONAL = {"cond.label": 0.2}
DIGITS = DataSpec(shape=(8, 8, 1), levels=17, classes=10)
NOISY = {"schedule": {"name": "cosine", "num_timesteps": 20}, "predicts": "v"}  # up to pure noise


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> Run:
    """A conditional model of eight clusters in the plane, trained long enough to know them apart."""
    workdir = tmp_path_factory.mktemp("conditional") / "run"
    changes = {
        **CONDITIONAL,
        "data.name": "mixture",
        "model": {"name": "mlp", "width": 64, "depth": 2, "time_dim": 16},
        "schedule": {"name": "cosine", "num_timesteps": 100},
        "predicts": "v",
        "loss": {"target": "v"},
        "optimizer": {"learning_rate": 0.004, "decay": "cosine"},
        "train": {"steps": 800, "batch_size": 256, "ema_decay": 0.98, "steps_per_dispatch": 100},
        "every": {"log": 100, "checkpoint": 800, "sample": 10_000},
        "sampling": {"sampler": "dpm++2m", "steps": 20, "n": 8},
    }
    tiny.train_without_picture(tiny.config(changes), workdir)
    return jd.load(workdir)


@pytest.fixture(scope="module")
def images() -> Run:
    """An untrained conditional model of digits."""
    return tiny.untrained(tiny.config({**CONDITIONAL, **NOISY}, base=tiny.IMAGES), DIGITS)


CLASSIFIER = {**NOISY, "model": {"name": "classifier", "channels": [8, 16], "groups": 4, "time_dim": 8}}


@pytest.fixture(scope="module")
def untrained_classifier() -> Run:
    return tiny.untrained(tiny.config(CLASSIFIER, base=tiny.IMAGES), DIGITS)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Run:
    """A classifier of noisy digits."""
    workdir = tmp_path_factory.mktemp("classifier") / "run"
    changes = {
        **CLASSIFIER,
        "train": {"steps": 120, "batch_size": 64, "ema_decay": 0.9, "steps_per_dispatch": 1},
        "every": {"log": 40, "checkpoint": 120, "sample": 120},
    }
    loop.train(tiny.config(changes, base=tiny.IMAGES), workdir)
    return jd.load(workdir)


def nearest(x: np.ndarray) -> np.ndarray:
    """The cluster of each point."""
    return np.linalg.norm(x[:, None] - MEANS, axis=2).argmin(axis=1)


@pytest.mark.thorough
def test_samples_have_their_label_and_guidance_draws_them_nearer(points):
    """A network that ignores its label would be right one time in eight."""
    labels = [k for k in range(8) for _ in range(25)]
    found = {w: points.sample(jax.random.key(0), n=200, labels=labels, guidance=w, batch=200) for w in (None, 2.0)}
    right = {w: (nearest(x) == labels).mean() for w, x in found.items()}
    assert right[None] > 0.85
    assert right[2.0] > 0.98
    outwards = {w: np.einsum("ij,ij->i", x, MEANS[labels]).mean() for w, x in found.items()}
    assert outwards[2.0] > outwards[None]  # away from the other clusters
    one = points.sample(jax.random.key(0), n=50, labels=3, batch=200)
    assert (nearest(one) == 3).mean() > 0.8


def test_without_a_label_it_draws_them_all(points):
    """A null token never trained would not: all eight clusters, each within 4 standard errors and 5 % of an eighth."""
    n = 800
    x = points.sample(jax.random.key(1), n=n, batch=200)
    counts = np.bincount(nearest(x), minlength=8) / n
    assert np.abs(counts - 1 / 8).max() < 4 * math.sqrt(7 / 64 / n) + 0.05
    assert np.median(np.linalg.norm(x - MEANS[nearest(x)], axis=1)) < 0.35
    null = points.sample(jax.random.key(1), n=n, labels=-1, batch=200)
    np.testing.assert_allclose(null, x, atol=1e-3)


def test_a_composition_lies_between_its_labels(points):
    x = points.sample(jax.random.key(2), n=100, labels={0: 0.5, 1: 0.5}, batch=100)
    assert np.isin(nearest(x), (0, 1)).mean() > 0.9


def test_labels_are_dropped_one_by_one(monkeypatch):
    """With a network that gives back its label, an example's loss shows which label it got."""
    experiment = make_experiment(
        tiny.config({"cond.label": 0.3, "data.name": "mixture"}), DataSpec(shape=(2,), levels=None, classes=8)
    )
    monkeypatch.setattr(
        type(experiment.model),
        "apply",
        lambda self, params, x, t, cond, rngs=None: 0 * x + 100.0 * cond[:, None].astype(float),
    )
    n = 4000
    t, keys, _ = experiment.draw(jax.random.key(0), n)
    losses = jax.jit(experiment.loss)({}, jnp.zeros((n, 2)), t, keys, jnp.full(n, 5))
    seen = np.round(np.sqrt(np.asarray(losses)) / 100).astype(int)
    assert set(seen) == {1, 5}  # the label is −1, or 5
    dropped = seen == 1
    # Binomial over the batch, and its neighbours are independent: neither all nor none, nor in runs.
    assert abs(dropped.mean() - 0.3) < 4 * math.sqrt(0.21 / n)
    together = (dropped[1:] & dropped[:-1]).mean()
    assert abs(together - 0.09) < 4 * math.sqrt(0.09 / n)
    again = jax.jit(experiment.loss)({}, jnp.zeros((n, 2)), t, keys[::-1], jnp.full(n, 5))
    np.testing.assert_array_equal(np.round(np.sqrt(np.asarray(again)) / 100) == 1, dropped[::-1])


@pytest.mark.thorough
@pytest.mark.usefixtures("eight_devices")
def test_labels_stay_with_their_examples(monkeypatch):
    """However a batch gets to eight devices, and in two micro-batches: the loss is 0 where each example has its own."""
    dataset = jd.data.load("mixture")
    x = np.repeat(dataset.labels[:, None], 2, axis=1).astype(np.float32)  # an example says its label
    dataset = dataclasses.replace(dataset, x=x)

    def loss(self, params, x0, t, keys, labels):
        return (x0[:, 0] - labels) ** 2 + 0 * jax.tree.leaves(params)[0].sum()

    monkeypatch.setattr(Experiment, "loss", loss)
    changes = {"cond.label": 0.1, "data.name": "mixture", "train.accumulate": 2, "train.steps_per_dispatch": 2}
    for on_device in (True, False):
        experiment = make_experiment(tiny.config(changes), DataSpec(shape=(2,), levels=None, classes=8))
        mesh = make_mesh(2, 16, 2)
        abstract = abstract_state(experiment, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        state = jax.jit(functools.partial(init_state, experiment), out_shardings=shardings)()
        batches = make_batches(dataset, mesh, seed=0, batch_size=16, on_device=on_device, kinds=("label",))
        assert (batches.resident is None) != on_device
        dispatch = next(batches.stream(0, 2, 2))
        _, metrics = make_step(experiment, mesh, abstract)(state, batches.resident, dispatch.batch)
        np.testing.assert_array_equal(metrics.loss, 0)


def test_each_label_and_none_have_an_embedding_of_their_own():
    model = models.MLP(width=8, depth=1, time_dim=8, classes=3)
    x, t = jnp.ones((5, 2)), jnp.full(5, 0.5)
    params = model.init(jax.random.key(0), x, t)
    params["params"]["head"]["kernel"] = jnp.ones_like(params["params"]["head"]["kernel"])
    out = np.asarray(model.apply(params, x, t, jnp.array([0, 1, 2, -1, 1])))
    assert len(np.unique(out[:, 0].round(6))) == 4
    np.testing.assert_array_equal(out[1], out[4])
    np.testing.assert_array_equal(model.apply(params, x, t)[:1], out[3:4])


@pytree(eq=False)
class BestClassifier(Wrapper):
    """The classifier with the exact posterior."""

    inner: Any

    def log_probs(self, x_t, t):
        return self.inner.log_posterior(x_t, t)


def test_accuracy_by_noise_is_that_of_the_best_classifier(x64):
    """Two clusters at ±m: the best is right with probability Φ(α m/√(α² c + σ²))."""
    schedule, m, c, n = schedules.VP(), 0.5, 0.04, 5000
    exact = analytic.mixture([0.5, 0.5], [[-m], [m]], [c, c], schedule=schedule)
    x0, labels = exact.data.sample_with_classes(jax.random.key(0), n)
    times = (0.01, 0.2, 0.5, 0.9)
    found = evaluation.accuracy_by_noise(jax.random.key(1), BestClassifier(inner=exact), x0, labels, times=times)
    for t, share in zip(times, found.accuracy, strict=True):
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        truth = stats.norm.cdf(alpha * m / math.sqrt(alpha**2 * c + sigma**2))
        assert abs(share - truth) < 4 * math.sqrt(truth * (1 - truth) / n), t
    assert str(found).count("%") == 4


@pytest.mark.thorough
def test_a_classifier_of_noisy_images_learns_and_guides(classifier, images, tmp_path):
    found = classifier.noisy_accuracy()
    assert found.accuracy[0] > 0.7  # of ten digits
    assert found.accuracy[0] > found.accuracy[-1] + 0.3
    assert abs(found.accuracy[-1] - 0.1) < 4 * math.sqrt(0.09 / found.n) + 0.05  # at pure noise it can only guess
    log_prob = classifier.experiment.classifier(classifier.params)

    unconditional = tmp_path / "run"
    loop.train(tiny.config(NOISY, base=tiny.IMAGES), unconditional)
    plain = jd.load(unconditional)
    for model, weight in ((images, 3.0), (plain, 4.0)):  # 1 + w on the unconditional one
        guided = model.sample(
            jax.random.key(0), n=8, labels=2, guidance=3.0, classifier=classifier, sampler="euler", steps=6
        )
        inner = model.experiment.network(model.params)
        by_hand = jd.guidance.classifier(
            inner if model is images else jd.guidance.unconditional(inner), log_prob, weight
        )
        expected = jd.sample(
            jax.random.key(0),
            jd.clip_denoised(by_hand),
            jd.samplers.Euler(),
            shape=(8, 8, 1),
            n=8,
            steps=6,
            cond=jnp.full(8, 2),
        )
        np.testing.assert_allclose(guided, expected, atol=2e-3)
        for same in (lambda t: 3.0 + 0 * t, jd.guidance.Interval(3.0)):
            options: Any = {"n": 8, "labels": 2, "classifier": classifier, "sampler": "euler", "steps": 6}
            again = model.sample(jax.random.key(0), guidance=same, **options)
            np.testing.assert_allclose(again, guided, atol=2e-3)
    scores = [
        float(np.mean([log_prob.log_probs(jnp.asarray(x), 0.0)[2] for x in drawn]))
        for drawn in (
            plain.sample(jax.random.key(0), n=8, steps=6),
            plain.sample(jax.random.key(0), n=8, labels=2, guidance=8.0, classifier=classifier, steps=6),
        )
    ]
    assert scores[1] > scores[0] + 0.5


@pytest.mark.thorough
def test_inpainting_keeps_what_is_known_and_variation_starts_from_it(images):
    x0 = images.test_examples(4)
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    x = images.inpaint(jax.random.key(0), x0, mask, labels=[1, 2, 3, -1], resample=2, steps=5)
    np.testing.assert_allclose(x[:, :4], x0[:, :4], atol=1e-5)
    assert np.abs(x[:, 4:] - x0[:, 4:]).max() > 0.1
    unknown = np.where(mask[..., None], x0, np.where(np.arange(8)[:, None] < 4, np.nan, 255).astype(np.float32))
    again = images.inpaint(jax.random.key(0), unknown, mask, labels=[1, 2, 3, -1], resample=2, steps=5)
    np.testing.assert_array_equal(again, x)
    with pytest.raises(ValueError, match=r"mask has values in \[0\.0, 255\.0\]"):
        images.inpaint(jax.random.key(0), x0, 255.0 * mask)
    with pytest.raises(ValueError, match="samples have values that are not finite"):
        images.inpaint(jax.random.key(0), unknown, np.maximum(mask, 1e-3))
    near, far = (images.image_to_image(jax.random.key(0), x0, t=t, sampler="ddim") for t in (0.05, 1.0))
    error = [np.sqrt(((x - x0) ** 2).mean()) for x in (near, far)]
    assert error[0] < 0.3 < error[1]
    with pytest.raises(ValueError, match=r"mask has shape \(3, 3, 1\); samples have \(4, 8, 8, 1\)"):
        images.inpaint(jax.random.key(0), x0, np.ones((3, 3), bool))
    with pytest.raises(ValueError, match=r"timesteps starts at 1\.0, but samples are noised to t = 0\.5"):
        images.image_to_image(jax.random.key(0), x0, t=0.5, timesteps=np.array([1.0, 0.5, 0.0]))
    once = images.inpaint(jax.random.key(0), x0, mask, labels=1, resample=1, sampler="dpm++2m", steps=4)
    np.testing.assert_allclose(once[:, :4], x0[:, :4], atol=1e-5)
    with pytest.raises(ValueError, match=r"t = 0; must satisfy 0 < t <= 1"):
        images.image_to_image(jax.random.key(0), x0, t=0)
    with pytest.raises(ValueError, match=r"^t = 2.0; must"):
        images.image_to_image(jax.random.key(0), x0, t=2.0)


@pytest.mark.thorough
@pytest.mark.usefixtures("unchecked")
def test_what_a_model_can_not_be_conditioned_on_is_refused(images, untrained_classifier, points, tmp_path):
    key, classifier = jax.random.key(0), untrained_classifier

    def refused(message: str, run: Run = images, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            run.sample(key, n=2, **options)

    with pytest.raises(ValueError, match="3 labels for 5 samples"):
        evaluation.accuracy_by_noise(key, None, np.zeros((5, 2)), np.zeros(3, int))
    refused(r"labels holds 10; must satisfy 0 <= label < 10, or -1 for none", labels=10)
    refused(r"labels holds -2", labels=[-2, 0])
    refused(r"labels = \[1, 2, 3\]; give one whole number, or one for each of n = 2", labels=[1, 2, 3])
    refused(r"labels = 1\.5; give one whole number", labels=1.5)
    refused(r"guidance = 1\.0 guides towards a label; give labels too", guidance=1.0)
    refused(r"this run is a classifier, which draws no samples", classifier)
    refused(r"classifier is the run of a denoiser", labels=1, guidance=1.0, classifier=images)
    refused(
        r"classifier was trained for another model:\n  data: 'mixture' -> 'digits'",
        points,
        labels=1,
        guidance=1.0,
        classifier=classifier,
    )
    refused(r"is a composition, which no classifier can guide", labels={1: 1.0}, guidance=1.0, classifier=classifier)
    refused(r"labels holds -1; must satisfy 0 <= label < 10$", labels=-1, guidance=1.0, classifier=classifier)
    changes = {**CONDITIONAL, **NOISY, "process": {"name": "perturbed", "noise": "laplace"}}
    elsewhere = make_experiment(tiny.config(changes, base=tiny.IMAGES), DIGITS)
    other = Run(experiment=elsewhere, params=images.params, step=0)
    refused(r"another model:\n  process\.\w+: ", other, labels=1, guidance=1.0, classifier=classifier)
    never = Run(
        experiment=make_experiment(tiny.config({"cond.label": 0.0, **NOISY}, base=tiny.IMAGES), DIGITS),
        params=images.params,
        step=0,
    )
    assert never.sample(key, n=2, labels=1, steps=2).shape == (2, 8, 8, 1)
    refused(r"labels = None, but this model was trained with cond.label = 0\.0", never)
    refused(r"labels = -1, but this model was trained with cond.label = 0\.0", never, labels=-1)
    with pytest.raises(ValueError, match=r"labels = None, but this model was trained with cond.label = 0\.0"):
        never.encode(np.zeros((1, 8, 8, 1), np.float32))
    refused(r"guidance = nan; it must be a finite number", labels=1, guidance=math.nan)
    for wrong in (10**400, 1e300, "1", [1, 2]):
        refused(r"guidance = .*; it must be a finite number", labels=1, guidance=wrong)
    refused(r"classifier = 'runs/a'; it must be a run", labels=1, guidance=1.0, classifier="runs/a")
    refused(r"labels = \{1: 'a'\}; the weights", labels={1: "a"})
    refused(r"guidance = None does not guide a conditional model", labels=1, classifier=classifier)
    refused(r"the weights of a composition sum to 0\.8; they must sum to 1", labels={3: 0.5, 8: 0.3})
    refused(r"trained with cond.label = 0\.0: it never saw an example without its label", never, labels=1, guidance=1.0)
    with pytest.raises(ValueError, match="only a classifier has an accuracy"):
        images.noisy_accuracy()
    with pytest.raises(ValueError, match="data 'swissroll' has none; use a data set with labels"):
        loop.train(tiny.config(CONDITIONAL), tmp_path / "run")
    with pytest.raises(ValueError, match=r"cond.label = 1\.0; must satisfy 0 <= label < 1"):
        tiny.config({"cond.label": 1.0})
    with pytest.raises(ValueError, match="cond is set, but model 'classifier' has no use for it"):
        tiny.config({"model": {"name": "classifier"}, **CONDITIONAL}, base=tiny.IMAGES)
