"""Configs: what they accept, what they refuse and how they say so, and their ways through JSON and ConfigDicts."""

import dataclasses
import importlib.util
import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from jaxdiff import data, registry
from jaxdiff.data import DataSpec
from jaxdiff.experiment import Config, Sampling, Train, make_experiment
from jaxdiff.samplers import DDIM
from jaxdiff.schedules import SCHEDULES

FILES = sorted((tiny.REPOSITORY / "configs").glob("*.py"))
LEARNED = {"loss.weight": "elbo"}
SHAPES = {
    "folder:YOUR_PICTURES": (64, 64, 3),
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
}


def get_config(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


def variants() -> list[tuple[Path, tuple[str, ...]]]:
    """Each file in configs/ with each of its variants: a file that has some lists them when asked for another."""
    found: list[tuple[Path, tuple[str, ...]]] = [(path, ()) for path in FILES]
    for path in FILES:
        if inspect.signature(get_config(path)).parameters:
            with pytest.raises(ValueError, match="has no variant 'unheard of'; it has ") as error:
                get_config(path)("unheard of")
            found += [(path, (name,)) for name in str(error.value).partition("it has ")[2].split(", ")]
    return found


@pytest.mark.parametrize(
    ("path", "variant"), variants(), ids=lambda value: value.stem if isinstance(value, Path) else "".join(value)
)
def test_every_config_file_builds_and_survives_the_command_line_and_json(path, variant):
    given = get_config(path)(*variant)
    assert given.is_locked
    config = Config.from_mapping(given)
    assert Config.from_mapping(config.to_config_dict()) == config
    assert Config.from_mapping(json.loads(json.dumps(config.to_mapping()))) == config
    shape = SHAPES.get(config.data.name, (2,))
    examples = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    source = config.data.with_conditions(data.from_object(config.data.name, examples))
    options = {"levels": 17 if len(shape) == 3 else None, "classes": 10, "conditions": source.spec.conditions}
    experiment = make_experiment(config, DataSpec(shape=shape, **options), examples)
    assert experiment.schedule.num_timesteps == config.schedule.get("num_timesteps")


def test_defaults_are_filled_in_down_to_the_model_and_schedule():
    config = Config.from_mapping(
        {
            "data": {"name": "digits"},
            "model": {"name": "unet"},
            "schedule": {"name": "cosine"},
            "train": {"steps": 10, "batch_size": 8},
        }
    )
    assert config.model["down"] == (64, 128, 256)
    assert config.schedule == {"name": "cosine", "num_timesteps": 1000, "offset": 0.008, "beta_max": 0.999}
    assert config.optimizer.clip_norm == 1.0
    assert config.every.keep == 3
    assert "dtype" not in config.model


def test_lists_become_tuples_and_whole_numbers_floats():
    config = tiny.config({"optimizer.learning_rate": 1, "schedule": {"name": "vp", "beta_max": 20}})
    assert type(config.optimizer.learning_rate) is float
    assert type(config.schedule["beta_max"]) is float
    assert tiny.config({"model.down": [4]}, base=tiny.IMAGES).model["down"] == (4,)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_registered_schedule_can_be_named(name):
    config = tiny.config({"schedule": {"name": name}, **LEARNED} if name == "learned" else {"schedule": name})
    assert type(config.make("schedule")) is type(SCHEDULES[name]())
    assert Config.from_mapping(json.loads(json.dumps(config.to_mapping()))) == config


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny.config().train.steps = 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("trian", "trian is not a field of the config; did you mean 'train'?"),
        ("data.nam", "data.nam is not a field of the config; did you mean 'name'?"),
        ("loss.targe", "loss.targe is not a field of the config; did you mean 'target'?"),
        (
            "optimizer.learningrate",
            "optimizer.learningrate is not a field of the config; did you mean 'learning_rate'?",
        ),
        ("train.stepz", "train.stepz is not a field of the config; did you mean 'steps'?"),
        ("sampling.stps", "sampling.stps is not a field of the config; did you mean 'steps'?"),
        ("every.checkpoints", "every.checkpoints is not a field of the config; did you mean 'checkpoint'?"),
        ("every.xyz", "every.xyz is not a field of the config; the known ones are checkpoint, evaluate, keep"),
        (
            "model.widht",
            "model = 'mlp' has no option 'widht'; it takes width, depth, time_dim, time_steps; did you mean 'width'?",
        ),
        ("model.dtype", "model = 'mlp' has no option 'dtype'"),
        (
            "schedule.beta_frist",
            "schedule = 'linear' has no option 'beta_frist'; it takes num_timesteps, beta_first, beta_last; "
            "did you mean 'beta_first'?",
        ),
    ],
)
def test_an_unknown_key_is_named_by_its_path_with_the_nearest_known_one(path, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        tiny.config({path: 1})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.steps", "10", "train.steps = '10' has the wrong type; it must be int"),
        ("train.steps", 10.0, "train.steps = 10.0 has the wrong type; it must be int"),
        ("train.steps", True, "train.steps = True has the wrong type; it must be int"),
        ("train.steps_per_dispatch", True, "train.steps_per_dispatch = True has the wrong type; it must be int | None"),
        ("train.ema_decay", True, "train.ema_decay = True has the wrong type; it must be float"),
        ("train.dtype", "float16", "train.dtype = 'float16' is unknown; did you mean 'bfloat16'?"),
        ("train", 3, "train = 3; it must be a section with fields of its own"),
        ("data.on_device", 1, "data.on_device = 1 has the wrong type; it must be bool"),
        ("data.dir", 1, "data.dir = 1 has the wrong type; it must be str | None"),
        ("optimizer.clip_norm", "none", "optimizer.clip_norm = 'none' has the wrong type; it must be float | None"),
        ("optimizer.decay", 1, "optimizer.decay = 1 has the wrong type; it must be str"),
        ("predicts", "epsilom", "predicts = 'epsilom'; it must be one of eps, x0, v, score, velocity"),
        ("loss.target", ["eps"], "loss.target = ['eps'] has the wrong type; it must be str"),
        ("loss.times", "antithetc", "loss.times = 'antithetc' is unknown; did you mean 'antithetic'?"),
        ("loss.weight", 5, "loss.weight = 5 has the wrong type; it must be str | None"),
        ("model", 3, "model = 3; it must be a text, NAME:OPTION=VALUE, or a mapping with a name"),
        ("model.width", 1.5, "model.width = 1.5 has the wrong type; it must be int"),
        ("schedule.beta_last", "x", "schedule.beta_last = 'x' has the wrong type; it must be float"),
        (
            "model.name",
            "mpl",
            "model = 'mpl'; the known ones are classifier, given, mlp, sized_unet, unet, or package.module",
        ),
        ("model.name", None, "model.name is missing; the known ones are classifier, given, mlp, sized_unet, unet"),
        ("schedule", {}, "schedule.name is missing; the known ones are cosine, edm, flow, learned"),
        ("data", {}, "data.name is missing from the config"),
        ("train", {"steps": 3}, "train.batch_size is missing from the config"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_value_of_the_wrong_type_is_refused(path, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        tiny.config({path: value})


@pytest.mark.parametrize("position", range(3))
def test_every_item_of_a_sequence_is_checked(position):
    down = [4, 4, 4]
    down[position] = "4"
    message = re.escape(f"model.down = {tuple(down)} has the wrong type; it must be Sequence[int]")
    with pytest.raises(ValueError, match=message):
        tiny.config({"model.down": down}, base=tiny.IMAGES)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.steps", 0, "train.steps = 0; it must be at least 1"),
        ("train.batch_size", 0, "train.batch_size = 0; it must be at least 1"),
        ("train.accumulate", 3, "train.batch_size = 16 is not divisible by accumulate = 3; make it a multiple"),
        ("train.steps_per_dispatch", 0, "train.steps_per_dispatch = 0; it must be at least 1"),
        ("train.ema_decay", 1.0, "train.ema_decay = 1.0; must satisfy 0 <= ema_decay < 1"),
        ("train.ema_decay", float("nan"), "train.ema_decay = nan; it must be a finite number"),
        ("train.seed", -1, "train.seed = -1; must satisfy 0 <= seed < 2^32"),
        ("train.seed", 2**32, "train.seed = 4294967296; must satisfy 0 <= seed < 2^32"),
        ("train.fsdp", 0, "train.fsdp = 0; it must be at least 1"),
        ("optimizer.learning_rate", -0.1, "optimizer.learning_rate = -0.1; it must be at least 0, and finite"),
        ("optimizer.learning_rate", float("nan"), "optimizer.learning_rate = nan; it must be a finite number"),
        ("optimizer.learning_rate", float("inf"), "optimizer.learning_rate = inf; it must be at least 0, and finite"),
        ("optimizer.warmup_steps", -1, "optimizer.warmup_steps = -1; it must be at least 0"),
        ("optimizer.weight_decay", -1.0, "optimizer.weight_decay = -1.0; it must be at least 0"),
        ("optimizer.clip_norm", 0.0, "optimizer.clip_norm = 0.0; it must be above 0, or None"),
        ("optimizer.clip_norm", -1.0, "optimizer.clip_norm = -1.0; it must be above 0, or None"),
        ("sampling.n", 0, "sampling.n = 0; it must be 1 or more"),
        ("sampling.steps", 0, "sampling.steps = 0; it must be 1 or more"),
        ("sampling.sampler", "dimd", "sampling.sampler = 'dimd'"),
        (
            "sampling.timesteps",
            "unifrm",
            "sampling.timesteps = 'unifrm'; the known ones are karras, log_snr, quadratic, uniform",
        ),
        ("loss.weight", "min_srn", "loss.weight = 'min_srn'; the known ones are elbo, min_snr"),
        ("loss.weight", "p2:q=1", "loss.weight = 'p2:q=1' has no option 'q'; it takes gamma, k"),
        ("loss.weight", "min_snr:gamma=0", "loss.weight = 'min_snr' with gamma = 0.0; gamma must be above 0"),
        ("every.keep", 0, "every.keep = 0; it must be at least 1"),
        ("every.log", 7, "every.log = 7 is not a multiple of train.steps_per_dispatch = 5; make it one"),
        ("every.checkpoint", 7, "every.checkpoint = 7 is not a multiple of train.steps_per_dispatch = 5"),
        ("every.sample", 7, "every.sample = 7 is not a multiple of train.steps_per_dispatch = 5"),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused(path, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        tiny.config({path: value})


@pytest.mark.parametrize(("log", "size"), [(20, 10), (5, 5), (4, 2), (7, 1)])
def test_without_steps_per_dispatch_it_divides_how_often_things_are_done(log, size):
    config = tiny.config({"train.steps_per_dispatch": None, "every.log": log})
    assert config.steps_per_dispatch(on_cpu=False) == size
    assert config.steps_per_dispatch(on_cpu=True) == 1
    assert tiny.config({"train.steps_per_dispatch": 5}).steps_per_dispatch(on_cpu=True) == 5


@pytest.mark.usefixtures("unchecked")
def test_a_section_made_directly_is_checked_too():
    with pytest.raises(ValueError, match=r"^steps = '10' has the wrong type; it must be int$"):
        Train(steps="10", batch_size=1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({"schedule.num_timesteps": 0}, (2,), "schedule.num_timesteps = 0; must satisfy num_timesteps >= 1"),
        ({"sampling.steps": 21}, (2,), "sampling.steps = 21, but the schedule has 20 timesteps"),
        ({"loss.times": "discrete", "schedule": {"name": "vp"}}, (2,), "loss.times = 'discrete'"),
        ({"model.width": 0}, (2,), "model.width = 0"),
        ({}, (8, 8, 1), "an mlp takes vectors, but an example here has shape (8, 8, 1)"),
        ({"model": {"name": "unet"}}, (2,), "a unet takes images, but an example here has shape (2,)"),
        ({"model": {"name": "unet"}}, (6, 6, 1), "an image of 6×6 can't be halved 2 times"),
    ],
)
def test_what_the_parts_of_an_experiment_refuse_is_told_with_the_section(changes, shape, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_experiment(tiny.config(changes), DataSpec(shape=shape, levels=None))


def test_the_config_dict_is_locked_and_sets_fields_that_may_be_none():
    fields = tiny.config().to_config_dict()
    with pytest.raises(KeyError):
        fields.train["stepz"] = 1
    fields.optimizer.clip_norm = None
    fields.train.steps_per_dispatch = 10
    fields.data.dir = "somewhere"
    config = Config.from_mapping(fields)
    assert config.optimizer.clip_norm is None
    assert config.train.steps_per_dispatch == 10
    assert config.data.dir == "somewhere"


def test_differences_are_listed_by_path():
    old, new = tiny.config().to_mapping(), tiny.config({"train.steps": 99, "model.width": 4}).to_mapping()
    assert registry.differences(old, new) == ["model.width: 16 -> 4", "train.steps: 30 -> 99"]
    assert registry.differences({"a": 1}, {}) == ["a: 1 -> '(none)'"]


def test_a_config_dict_and_a_mapping_make_the_same_config():
    assert Config.from_mapping(ConfigDict(tiny.mapping())) == tiny.config()


def test_components_may_be_texts_and_kinds_have_the_names_of_other_libraries():
    config = tiny.config(
        {"model": "mlp:width=16,depth=1,time_dim=8", "predicts": "epsilon", "loss.target": "v_prediction"}
    )
    assert config == tiny.config({"loss.target": "v"})
    assert tiny.config(
        {"process": "perturbed:transform=('flip','blur:width=4')", "predicts": "x0", "loss.target": "x0"}
    )


def test_a_sampler_in_a_config_is_a_text():
    with pytest.raises(ValueError, match=r"^sampling.sampler = DDIM\(.*a config holds text only"):
        dataclasses.replace(tiny.config(), sampling=Sampling(sampler=DDIM(), steps=4))
