"""Conditions beyond a label: vectors, images and tokens, from the data through the network to samples."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxdiff as jd
from jaxdiff import data, models
from jaxdiff.data import DataSpec
from jaxdiff.denoisers.conditions import drop, nulled
from jaxdiff.experiment import make_experiment
from jaxdiff.models.conditions import CrossAttention, join_image
from jaxdiff.run import Run
from jaxdiff.typing import InputError

SHAPES = {"vector": (3,), "image": (4, 4, 1), "tokens": (5, 6)}
SPEC = DataSpec(shape=(8, 8, 1), levels=17, classes=10, conditions=SHAPES)
ALL = {"cond.label": 0.1, "cond.vector": 0.2, "cond.image": 0.0, "cond.tokens": 0.4, "model.attention": [True]}
NETWORK = models.UNet(
    stem=4, down=(4,), middle=(), up=(4,), attention=(True,), layers=1, heads=1, groups=2, time_dim=8, classes=10,
    conditions=SHAPES,
)  # fmt: skip


def rows(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {kind: rng.normal(size=(n, *shape)).astype(np.float32) for kind, shape in SHAPES.items()}


@functools.cache
def weights() -> Any:
    """Weights with every output layer away from zero, so that every condition shows."""
    x, t = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1)
    cond = {kind: jnp.zeros((1, *shape)) for kind, shape in SHAPES.items()}
    found = NETWORK.init(jax.random.key(0), x, t, {"label": jnp.zeros(1, int), **cond})
    leaves, tree = jax.tree.flatten(found)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, moved)


@functools.cache
def _apply() -> Any:
    return jax.jit(lambda weights, cond: NETWORK.apply(weights, jnp.ones((2, 8, 8, 1)), jnp.full(2, 0.5), cond))


def output(**changes: Any) -> np.ndarray:
    cond = {"label": jnp.array([1, 2]), **{kind: jnp.asarray(part) for kind, part in rows(2).items()}}
    masks = {"vector_mask": jnp.ones(2, bool), "image_mask": jnp.ones(2, bool), "tokens_mask": jnp.ones((2, 5), bool)}
    return np.asarray(_apply()(weights(), {**cond, **masks, **changes}))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", SHAPES)
def test_each_condition_changes_the_output_of_its_example_and_a_mask_hides_it(kind):
    plain, other = output(), jnp.asarray(rows(2)[kind]).at[0].add(1.0)
    changed = output(**{kind: other})
    assert np.abs(changed[0] - plain[0]).max() > 1e-3
    np.testing.assert_array_equal(changed[1], plain[1])
    mask = jnp.array([False, True]) if kind != "tokens" else jnp.arange(10).reshape(2, 5) >= 5
    hidden = [output(**{kind: values, f"{kind}_mask": mask}) for values in (jnp.asarray(rows(2)[kind]), other)]
    np.testing.assert_array_equal(*hidden)
    assert np.abs(hidden[0][0] - plain[0]).max() > 1e-3


def test_equal_networks_are_equal_whatever_mapping_they_are_given():
    """So that they share compiled programs."""
    pair = [models.UNet(conditions=dict(SHAPES)), models.UNet(conditions=dict(SHAPES))]
    assert pair[0] == pair[1]
    assert hash(pair[0]) == hash(pair[1])


@pytest.mark.thorough
def test_an_absent_condition_is_a_masked_one():
    """None, a mapping without the kind, and one that is masked out are the same."""
    nothing = NETWORK.apply(weights(), jnp.ones((2, 8, 8, 1)), jnp.full(2, 0.5))
    masks = {
        "vector_mask": jnp.zeros(2, bool),
        "image_mask": jnp.zeros(2, bool),
        "tokens_mask": jnp.zeros((2, 5), bool),
    }
    np.testing.assert_allclose(nothing, output(label=jnp.full(2, -1), **masks), atol=1e-5)
    some = NETWORK.apply(
        weights(), jnp.ones((2, 8, 8, 1)), jnp.full(2, 0.5), {"vector": jnp.asarray(rows(2)["vector"])}
    )
    del masks["vector_mask"]
    np.testing.assert_allclose(some, output(label=jnp.full(2, -1), **masks), atol=1e-5)


def test_attention_to_tokens_is_softmax_attention_of_those_that_are_given():
    """Against NumPy in float64, with tokens that only pad and the learned one."""
    layer = CrossAttention(heads=2, groups=2, dtype=jnp.float32)
    h, tokens = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, 3, 3, 4), (2, 5, 6)]))
    mask = jnp.array([[True] * 5, [True, False, True, False, False]])
    params = layer.init(jax.random.key(2), h, tokens, mask)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    dense = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    expected = []
    for i in range(2):
        x = np.asarray(h[i], np.float64).reshape(9, 2, 2)
        x = (x - x.mean((0, 2), keepdims=True)) / np.sqrt(x.var((0, 2), keepdims=True) + 1e-5)
        q = dense("query", x.reshape(9, 4) * p["norm"]["scale"] + p["norm"]["bias"]).reshape(9, 2, 2)
        given = dense("embed", np.asarray(tokens[i], np.float64)[np.asarray(mask[i])])
        k, v = np.split(dense("key_value", np.concatenate([p["absent"][None], given])), 2, axis=-1)
        k, v = k.reshape(-1, 2, 2), v.reshape(-1, 2, 2)
        scores = np.exp(np.einsum("qhd,khd->hqk", q, k) / math.sqrt(2))
        out = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v).reshape(9, 4)
        expected.append(np.asarray(h[i], np.float64) + dense("out", out).reshape(3, 3, 4))
    np.testing.assert_allclose(layer.apply(params, h, tokens, mask), np.stack(expected), atol=1e-5)


def test_a_smaller_image_is_repeated_and_joins_the_channels():
    x, image = jnp.zeros((2, 4, 4, 1)), jnp.arange(8.0).reshape(2, 2, 2, 1)
    found = join_image(x, image, jnp.array([True, False]))
    np.testing.assert_array_equal(found[0, ..., 1], np.kron(image[0, ..., 0], np.ones((2, 2))))
    np.testing.assert_array_equal(found[:, 0, 0, 2], [1, 0])
    assert not found[1, ..., 1].any()
    with pytest.raises(InputError, match="multiples"):
        join_image(x, jnp.zeros((2, 3, 3, 1)), jnp.ones(2, bool))


def test_null_conditions_keep_what_is_never_dropped():
    cond = {"label": jnp.array(3), "image": jnp.ones(4), "image_mask": jnp.array(True)}
    found = nulled(cond, {"label": -1})
    assert int(found["label"]) == -1
    np.testing.assert_array_equal(found["image"], cond["image"])
    always = drop(jax.random.key(0), cond, {"image": 0.0, "image_mask": False}, 1.0)
    assert (int(always["label"]), bool(always["image_mask"]), float(always["image"].sum())) == (3, False, 0.0)


def test_conditions_are_dropped_each_by_its_own_probability():
    """Shares over 4,000 examples within 4 standard errors, and label and tokens dropped independently."""
    conditioning = make_experiment(tiny.config(ALL, base=tiny.IMAGES), SPEC).conditioning
    n = 4000
    given = {"label": np.zeros(n, np.int32), **{k: np.ones((n, *s), np.float32) for k, s in SHAPES.items()}}
    cond = conditioning.of(given["label"], given)
    found = jax.vmap(conditioning.dropped)(jax.random.split(jax.random.key(0), n), cond)
    gone = {
        "label": np.asarray(found["label"] < 0),
        "vector": ~np.asarray(found["vector_mask"]),
        "image": ~np.asarray(found["image_mask"]),
        "tokens": ~np.asarray(found["tokens_mask"]).any(1),
    }
    for kind, p in {"label": 0.1, "vector": 0.2, "image": 0.0, "tokens": 0.4}.items():
        assert abs(gone[kind].mean() - p) <= 4 * math.sqrt(p * (1 - p) / n)
    together = (gone["label"] & gone["tokens"]).mean()
    assert abs(together - 0.04) < 4 * math.sqrt(0.04 * 0.96 / n)
    assert not np.asarray(found["vector"])[gone["vector"]].any()


class Everything:
    """A data set whose examples have every condition; the picture says which example it is."""

    classes = 10

    def __len__(self) -> int:
        return 32

    def __getitem__(self, i: int) -> dict[str, Any]:
        cond = {kind: part[i] for kind, part in rows(32).items()}
        mask = np.arange(5) <= i % 5
        return {"x": np.full((8, 8, 1), i, np.uint8), "label": i % 10, **cond, "tokens_mask": mask}


@pytest.mark.thorough
@pytest.mark.usefixtures("eight_devices")
def test_a_run_with_every_condition_trains_resumes_and_samples(tmp_path):
    """From an object and from arrays, on the devices or read by a worker, stopped in between: the same weights."""
    changes = {**ALL, "train.steps": 4, "every.checkpoint": 2, "data.on_device": False, "data.workers": 0}
    config = lambda **more: tiny.config({**changes, **more}, base=tiny.IMAGES)  # noqa: E731
    whole = data.in_memory(data.from_object("all", Everything()))
    tiny.train_without_picture(config(**{"train.steps": 2}), tmp_path / "a", data=Everything())
    resumed = tiny.train_without_picture(config(**{"data.workers": 1}), tmp_path / "a", data=Everything())
    arrays = {"x": whole.x, "labels": whole.labels, **whole.cond}
    at_once = tiny.train_without_picture(config(**{"data.on_device": True}), tmp_path / "b", data=arrays)
    for a, b in zip(jax.tree.leaves(resumed.params), jax.tree.leaves(at_once.params), strict=True):
        np.testing.assert_array_equal(a, b)
    run = jd.load(tmp_path / "a")
    assert run.experiment.conditioning.kinds == ("label", "vector", "image", "tokens")
    cond = {"image": rows(1)["image"][0], "tokens": rows(6)["tokens"], "vector": None}
    draw = functools.partial(run.sample, jax.random.key(0), guidance=1.0)
    first = draw(n=6, labels=3, cond=cond)
    alone = draw(n=2, labels=[3, 3], cond={**cond, "tokens": rows(6)["tokens"][:2]})
    np.testing.assert_allclose(first[:2], alone, atol=1e-4)
    np.testing.assert_allclose(first, draw(n=6, cond={"label": 3, **cond}))


def run_of(changes: Any = ALL, spec: DataSpec = SPEC) -> Run:
    return tiny.untrained(tiny.config(changes, base=tiny.IMAGES), spec)


IMAGE = rows(1)["image"][0]


@pytest.mark.thorough
def test_guidance_drops_what_was_dropped_and_keeps_the_rest():
    """With w = −1 guidance is the model without the dropped conditions; the image, which was never, stays."""
    run, key = run_of(), jax.random.key(0)
    run = dataclasses.replace(run, params=weights())
    options: Any = {"n": 2, "steps": 1}
    given = {"image": IMAGE, "vector": rows(1)["vector"][0], "tokens": rows(2)["tokens"]}
    guided = run.sample(key, labels=3, cond=given, guidance=-1.0, **options)
    without = run.sample(key, cond={"image": IMAGE}, **options)
    np.testing.assert_allclose(guided, without, atol=1e-4)
    plain = run.sample(key, cond={"label": 3, **given}, **options)
    assert np.abs(plain - without).max() > 1e-2
    np.testing.assert_allclose(plain, run.sample(key, labels=[3, 3], cond=given, guidance=0.0, **options), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no 'image', but this model never saw an example without it"),
        ({"cond": {"image": IMAGE, "depth": 1}}, "'depth', but the conditions of this model are label, vector, image"),
        ({"cond": {"image": IMAGE[:2]}}, r"cond\['image'\] has shape \(2, 4, 1\); it must be \(4, 4, 1\)"),
        ({"cond": {"image": np.stack([IMAGE] * 3)}}, "has 3 rows for n = 2"),
        ({"cond": {"image": IMAGE * np.nan}}, "not finite"),
        ({"cond": {"image": "no"}}, "array of numbers"),
        ({"cond": {"image": [[1.0], [2.0, 3.0]]}}, "array of numbers"),
        ({"cond": {"image": IMAGE, "tokens_mask": np.ones(5)}}, "without 'tokens'"),
        ({"cond": {"image": IMAGE, "tokens": np.zeros((5, 6)), "tokens_mask": np.ones(4)}}, r"must be \(5,\)"),
        ({"cond": {"image": IMAGE, "label": 3}, "labels": 3}, "labels and cond"),
        ({"cond": {"image": IMAGE}, "labels": 10}, "0 <= label < 10"),
        ({"cond": {"image": IMAGE}, "labels": {1: 0.5, 2: 0.5}}, "cannot be combined"),
    ],
)
def test_bad_conditions_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        run_of().sample(jax.random.key(0), n=2, **options)


@pytest.mark.thorough
def test_an_unconditional_model_has_no_place_for_a_condition():
    with pytest.raises(InputError, match="the conditions of this model are: none"):
        run_of({}).sample(jax.random.key(0), n=2, cond={"image": IMAGE})
    image = {"image": jnp.zeros((1, 4, 4, 1))}
    with pytest.raises(InputError, match="no place for the condition 'image'"):
        models.UNet().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), jnp.zeros(1), image)
    with pytest.raises(InputError, match="no place for the condition 'tokens'"):
        make_experiment(tiny.config({"cond.tokens": 0.1, "cond.image": 0.1}, base=tiny.IMAGES), SPEC)
    spec = DataSpec(shape=(2,), levels=None, conditions={"image": (2,)})
    with pytest.raises(InputError, match="an mlp has no place for 'image'"):
        make_experiment(tiny.config({"cond.image": 0.1, "data.name": "moons"}), spec)
    with pytest.raises(InputError, match=r"cond.image = 0.1, but the examples of data 'digits' have no such condition"):
        make_experiment(tiny.config({"cond.image": 0.1}, base=tiny.IMAGES), DataSpec(shape=(8, 8, 1), levels=17))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((3, 8, 8, 1), np.float32)}, "image"),
        ({"depth": np.zeros((4, 1))}, "the known ones are labels, vector, image, tokens"),
        ({"vector": np.full((4, 2), np.nan)}, "must be finite"),
        ({"vector": np.zeros((4, 2, 2))}, "conditions.vector = .* of 1 axes"),
        ({"tokens": np.zeros((4, 5, 6)), "tokens_mask": np.ones((4, 6))}, "tokens_mask"),
        ({"vector": np.array([None] * 4)}, "array of numbers"),
        ({"vector": 3.0}, "vector"),
    ],
)
def test_bad_conditions_of_a_data_set_are_refused(arrays, message):
    with pytest.raises(InputError, match=message):
        _ = data.from_object("mine", {"x": np.zeros((4, 8, 8, 1), np.uint8), **arrays}).spec


def test_a_derived_condition_that_no_network_sees_is_refused():
    with pytest.raises(InputError, match=r"data.derive = 'moments', but the network is given none"):
        tiny.config({"data.derive": "moments"}, base=tiny.IMAGES)


def test_derived_conditions_are_what_they_say():
    digits = data.load("digits")
    reduced = data.derive(digits, "reduced:factor=2")
    assert reduced.spec.conditions == {"image": (4, 4, 1)}
    x = np.asarray(data.normalize(digits.x[:3], 17), np.float64)
    expected = x.reshape(3, 4, 2, 4, 2, 1).mean((2, 4))
    np.testing.assert_allclose(reduced.take(np.arange(3)).cond["image"], expected, atol=1e-6)
    both = data.derive(reduced, "moments")
    assert both.spec.conditions == {"image": (4, 4, 1), "vector": (3,)}
    corner = np.full((1, 8, 8, 1), -1.0)
    corner[0, 7, 0] = 1.0
    _, down, right = data.derive(data.from_object("corner", corner), "moments").take(np.arange(1)).cond["vector"][0]
    assert down == pytest.approx(10, abs=1e-4)
    assert right == pytest.approx(-10, abs=1e-4)
    colours = np.eye(3, dtype=np.float32).reshape(1, 1, 3, 3)
    grey = data.derive(data.from_object("colours", colours), "grey").take(np.arange(1)).cond["image"]
    np.testing.assert_allclose(grey.ravel(), [0.299, 0.587, 0.114], atol=1e-7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reduced:factor=3", "divides every size"),
        ("grey", "3 channels"),
        ("none", "known ones"),
        ("reduced:factor=1", "2"),
    ],
)
def test_derived_conditions_that_do_not_fit_are_refused(name, message):
    with pytest.raises(InputError, match=message):
        data.derive(data.load("digits"), name)
