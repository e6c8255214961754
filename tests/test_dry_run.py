"""A run that is compiled and not run: for this machine, and for TPUs where libtpu is installed, as in CI."""

import dataclasses
import importlib.util
import random
import re
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxdiff.data import DataSpec
from jaxdiff.experiment import make_experiment
from jaxdiff.training import chips, sharding
from jaxdiff.training import dry_run as module
from jaxdiff.training.batches import Resident, make_batches
from jaxdiff.training.dry_run import DoesNotFit, DryRun, dry_run
from jaxdiff.training.step import abstract_state, make_step
from jaxdiff.typing import InputError

DEVICES = 8
WIDE = {**tiny.IMAGES["model"], "stem": 64, "down": [64], "up": [64], "attention": [True]}
NO_LIBTPU = importlib.util.find_spec("libtpu") is None


@pytest.fixture(scope="module")
def here() -> DryRun:
    return dry_run(tiny.config({"model": WIDE, "train.fsdp": 4}, base=tiny.IMAGES), "here")


def test_it_compiles_the_step_of_the_run_for_this_machine(here):
    experiment = here.experiment
    state = abstract_state(experiment, here.mesh)
    step = make_step(experiment, here.mesh, state)
    data = experiment.config.data.load()
    batches = make_batches(data, here.mesh, seed=0, batch_size=16, on_device=None, kinds=experiment.kinds)
    batch = next(batches.stream(0, 1, 1)).batch
    found = step.lower(state, batches.resident, batch).compile().memory_analysis()
    twice = batch.nbytes // here.mesh.size  # the next batch is there, too
    given = sum(here.memory[:5]) - twice
    assert given == found.argument_size_in_bytes
    assert here.memory.padding < 0.02 * given  # XLA pads small arrays
    assert here.memory.temporary == pytest.approx(found.temp_size_in_bytes, rel=0.02)
    kinds = {one.kind for one in here.traffic.collectives}
    assert {"all-gather", "reduce-scatter", "all-reduce"} == kinds
    assert "not known" in str(here)  # the rates of a CPU


def test_what_is_resident_has_the_shapes_that_it_will_have():
    mesh = tiny.mesh_of(2)
    data = tiny.config(base=tiny.IMAGES).data.load()
    example = data.take(np.arange(1))
    real = Resident.of(data.take(np.arange(5)), mesh)
    abstract = Resident.abstract(example, 5, mesh)
    assert jax.tree.structure(real) == jax.tree.structure(abstract)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(real)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(abstract)
    ]


def test_the_time_of_a_step_follows_from_the_rates(here):
    rates = chips.Chip(flops=1e9, memory=2**30, bandwidth=1e12, links=1e12)
    assert "products: no step is faster" in str(dataclasses.replace(here, chip=rates))
    assert "traffic: no step is faster" in str(
        dataclasses.replace(here, chip=rates._replace(flops=1e15, bandwidth=1e6))
    )
    text = str(dataclasses.replace(here, chip=rates._replace(flops=1e15, links=1e3)))
    assert "links: no step is faster" in text
    sent = sum(one.sent for one in here.traffic.collectives)
    images = float(re.search(r"([\d,]+) examples/s", text)[1].replace(",", ""))
    assert images == pytest.approx(16 / (sent / 1e3), abs=0.5)


@pytest.mark.thorough
def test_a_run_that_does_not_fit_is_refused_with_changes_that_fit(monkeypatch):
    config = tiny.config({"model": WIDE, "train.batch_size": 512}, base=tiny.IMAGES)
    whole = dry_run(config, "here").memory
    monkeypatch.setattr(chips, "memory", lambda device: int(whole.total * 0.8))
    with pytest.raises(DoesNotFit) as refused:
        dry_run(config, "here")
    proposed = re.findall(r"train\.(\w+) = (\w+)", str(refused.value))
    assert {"remat", "batch_size"} <= {name for name, _ in proposed}
    for name, value in proposed:
        changed = dataclasses.replace(config.train, **{name: {"True": True}.get(value) or int(value)})
        assert dry_run(dataclasses.replace(config, train=changed), "here").memory.total <= whole.total * 0.8


@pytest.mark.thorough
def test_samples_that_do_not_fit_are_not_laid_on_the_training_step(monkeypatch, here):
    monkeypatch.setattr(chips, "memory", lambda device: 2 * here.memory.total)
    many = {"sampling.n": 2**15, "sampling.batch": 2**15}
    with pytest.raises(InputError, match=r"sampling\.batch = 32768 does not fit.* may fit"):
        dry_run(tiny.config({"model": WIDE, "train.fsdp": 4, **many}, base=tiny.IMAGES), "here")


def test_a_run_that_would_be_refused_for_its_data_is_refused():
    with pytest.raises(InputError, match="held_out"):
        dry_run(tiny.config({"data.held_out": 10**6}), "here")


def test_data_that_no_device_can_hold_are_not_copied_to_it(monkeypatch):
    monkeypatch.setattr(chips, "memory", lambda device: 1000)
    data = tiny.config(base=tiny.IMAGES).data.load()
    with pytest.raises(InputError, match="on_device"):
        make_batches(data, tiny.mesh_of(1), seed=0, batch_size=16, on_device=True)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "v5e",
        "v5e:",
        "v5e:2x",
        "v9:2x2",
        "v4:2x2",
        "v5e:2x2x1",
        "gpu",
        "v5e:axb",
        "v5e:3x5",
        "v5e:02x2",
        "v4:24x24x24",
        "v5p:1x1x1",
    ],
)
def test_an_unknown_machine_is_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match="v5p:2x2x4"):
        chips.devices(name, what="--dry_run")


def test_the_missing_compiler_is_named(monkeypatch):
    def missing(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(chips.topologies, "get_topology_desc", missing)
    with pytest.raises(InputError, match=re.escape("jaxdiff[tpu]")):
        chips.devices("v5e:2x2", what="--dry_run")


@pytest.mark.thorough
@pytest.mark.skipif(NO_LIBTPU, reason="needs libtpu: pip install 'jaxdiff[tpu]'")
def test_the_command_compiles_for_a_tpu_and_leaves_no_folder(tmp_path):
    config = tiny.write_config(tmp_path, {"train.batch_size": 64, "train.fsdp": 2, "model": WIDE}, base=tiny.IMAGES)
    started = tiny.start("train.py", f"--config={config}", "--dry_run=v5e:2x2", cache=tmp_path / "cache", cwd=tmp_path)
    out, err = started.communicate(timeout=300)
    assert started.returncode == 0, err
    assert "4 × TPU v5 lite" in out
    assert "examples/s" in out
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "__pycache__", "config.py"}


def step_for(devices, **changes):
    """The step of a small U-Net on these devices and its abstract arguments."""
    config = tiny.config({"model": WIDE, "train.batch_size": len(devices) * 2, **changes}, base=tiny.IMAGES)
    spec = DataSpec(shape=(8, 8, 1), levels=17, classes=10)
    mesh = module._mesh(config, devices)
    experiment = make_experiment(config, spec, device=devices[0])
    state = abstract_state(experiment, mesh)
    return make_step(experiment, mesh, state), (state, *module._inputs(experiment, config.data.load(), mesh, 1))


def test_the_step_is_lowered_for_each_platform_from_one_process():
    """Attention computes in float32 on a CPU and in bfloat16 on the others, though there is only a CPU here."""
    step, inputs = step_for(jax.devices()[:2], **{"train.dtype": "bfloat16"})
    traced, products = step.trace(*inputs), {}
    for platform in ("cpu", "tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        scores = r"stablehlo.dot_general.*\(tensor<\w+x(\w+)>, tensor<\w+>\) -> tensor<(?:\d+x)+64x64xf32>"
        products[platform] = set(re.findall(scores, text))
    assert products == {"cpu": {"f32"}, "tpu": {"bf16"}, "cuda": {"bf16"}}


@pytest.mark.thorough
@pytest.mark.skipif(NO_LIBTPU, reason="needs libtpu: pip install 'jaxdiff[tpu]'")
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")  # its programs can't be read
@pytest.mark.parametrize(("machine", "fsdp"), [("v5e:4x4", 4), ("v5e:4x4", 16), ("v5e:16x16", 16), ("v5e:16x16", 256)])
def test_fsdp_divides_the_state_and_repeats_no_work(machine, fsdp):
    """Weights are gathered and gradients scattered, each once; nothing of the batch is exchanged or computed twice."""
    devices = chips.devices(machine, what="machine")
    large = {**tiny.IMAGES["model"], "stem": 256, "down": [256], "up": [256]}
    step, inputs = step_for(devices, **{"model": large, "train.fsdp": fsdp})
    shapes = jax.tree.leaves(inputs[0].params)
    split = sum(leaf.size for leaf in shapes if "fsdp" in leaf.sharding.spec)
    copied = sum(leaf.size for leaf in shapes) - split
    assert split > copied  # or this would test little
    # The weights, their average and the two moments of Adam, with a few numbers.
    assert module._bytes(inputs[0]) == pytest.approx(4 * 4 * (split / fsdp + copied), rel=0.01)

    compiled = step.lower(*inputs).compile()
    sent = dict.fromkeys(("all-gather", "reduce-scatter", "all-reduce", "collective-permute"), 0)
    for one in module.costs.read(compiled.as_text()).collectives:
        sent[one.kind] += one.bytes
        assert one.kind != "reduce-scatter" or one.dtypes == ("f32",)
    first = min(fsdp, 4 if machine == "v5e:4x4" else 16)  # the length of a ring
    again = 0 if fsdp == first else 1 / first  # along a second ring
    assert sent["all-gather"] == 2 * split * (1 + again)  # in bfloat16, in which the network computes
    assert sent["reduce-scatter"] >= 4 * split
    assert sent["all-reduce"] <= 4 * (copied + split / first) * 1.02
    assert sent["collective-permute"] <= 4 * split / first
    alone, inputs = step_for(devices, **{"model": large, "train.fsdp": 1})
    assert compiled.cost_analysis()["flops"] == pytest.approx(
        alone.lower(*inputs).compile().cost_analysis()["flops"], rel=0.05
    )


def test_the_devices_of_a_torus_reduce_along_its_axes():
    """The parts that the devices of a grid of 2 x 3 x 1 TPUs end with are those of one reduce-scatter."""

    def device(*coords: int) -> Mock:
        return Mock(platform="tpu", coords=coords, core_on_chip=0, slice_index=0)

    places = [device(x, y, 0) for x in range(2) for y in range(3)]
    random.Random(0).shuffle(places)
    ordered = sorted(places, key=chips.place)
    rings = sharding._rings(Mock(spec=Mesh, devices=np.array([ordered], dtype=object)))
    assert rings == [[[0, 3], [1, 4], [2, 5]], [[0, 1, 2], [3, 4, 5]]]
    mesh = tiny.mesh_of(6, 6)
    x = jax.random.normal(jax.random.key(0), (6, 12, 5))

    def mean(groups: list) -> jax.Array:
        def local(x: jax.Array) -> jax.Array:
            part = x[0]
            for group in groups:
                options = {"scatter_dimension": 0, "axis_index_groups": group, "tiled": True}
                part = jax.lax.psum_scatter(part, "fsdp", **options)
            return part

        spread = jax.shard_map(local, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=False)
        return jax.jit(spread)(x)

    np.testing.assert_allclose(mean(rings), x.sum(0), rtol=1e-5)
    np.testing.assert_allclose(mean([None]), x.sum(0), rtol=1e-5)
