"""What a folder of somebody else can't do: run code, read files of its choice, or take all memory."""

import gc
import json
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxdiff import registry
from jaxdiff.data import DataSpec
from jaxdiff.experiment import make_experiment, workdir
from jaxdiff.experiment.checkpoint import Checkpoints, NoCheckpointError
from jaxdiff.loading import load
from jaxdiff.run import Run
from jaxdiff.typing import InputError

pytestmark = pytest.mark.usefixtures("unchecked", "forgotten_coroutines")

POINTS = DataSpec(shape=(2,), levels=None)
TEXT = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\ndef make(*a, **b): raise SystemExit\n"


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module that leaves a trace when it is imported."""
    (tmp_path / "stranger_module.py").write_text(TEXT)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    assert not (tmp_path / "ran").exists()
    assert "stranger_module" not in sys.modules


def write(folder: Path, changes: dict[str, Any], data: Any = None) -> Path:
    """A run's config.json with values by path that no Config would hold."""
    folder.mkdir(exist_ok=True)
    config = tiny.mapping(changes)
    (folder / "config.json").write_text(
        json.dumps({"config": config, "data": data or {"shape": [2], "levels": None, "classes": None}})
    )
    return folder


CODE = "stranger_module:make"
PLACES = [
    {"schedule": {"name": CODE, "command": "x"}},
    {"schedule": CODE},
    {"model": CODE + ":a=1"},
    {"process": {"name": CODE}},
    {"process": {"name": "perturbed", "transform": ["flip", CODE]}, "predicts": "x0", "loss.target": "x0"},
    {"process": {"name": "perturbed", "transform": [{"name": CODE}]}},
    {"process": {"name": "perturbed", "noise": CODE}},
    {"loss.weight": CODE},
    {"sampling.sampler": CODE},
    {"optimizer.name": CODE},
    {"optimizer.decay": CODE + ":a=1"},
    {"schedule": {"name": "jaxdiff.cli.train:main"}},
    {"schedule": {"name": "jaxdiff.samplers.names:registry.importlib.import_module", "name_": "stranger_module"}},
    {"schedule": "jaxdiff.noise:Colored"},
]


@pytest.mark.parametrize("changes", PLACES, ids=lambda changes: "-".join(changes))
def test_code_that_a_folder_names_is_not_imported(stranger: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(registry.UntrustedError, match=r"trust=True \(--trust\)") as error:
        load(write(stranger / "run", changes))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="choose another folder"):
        workdir.prepare(stranger / "run", tiny.config())


def test_all_the_code_that_would_be_imported_is_listed(stranger: Path) -> None:
    changes = {"schedule": "stranger_module:make", "model": "other.module:Net", "data.name": "third:data"}
    with pytest.raises(InputError, match=r"names other\.module:Net, stranger_module:make, third:data"):
        load(write(stranger / "run", changes))


def test_registered_components_need_no_trust_by_any_of_their_names(tmp_path: Path) -> None:
    write(
        tmp_path, {"schedule": "jaxdiff.schedules:Linear:num_timesteps=25", "sampling.sampler": "jaxdiff.samplers:DDIM"}
    )
    assert workdir.read(tmp_path)[0].make("schedule").num_timesteps == 25


def test_trust_ends_with_the_folder(stranger: Path) -> None:
    with pytest.raises(InputError):
        load(write(stranger / "run", {"schedule": CODE}))
    assert registry.make("thing", "fractions:Fraction", {}) == 0  # what the user writes is trusted, before and after


def test_a_folder_may_name_again_what_the_own_config_names(tmp_path: Path) -> None:
    config = tiny.config({"sampling.sampler": "jaxdiff.samplers.sde:_Rescale"})
    workdir.write(tmp_path, config, POINTS)
    workdir.prepare(tmp_path, config)
    with pytest.raises(InputError, match="names other code"):
        workdir.prepare(tmp_path, tiny.config())


def made(changes: dict[str, Any], *, trusted: bool) -> Run:
    experiment = make_experiment(tiny.config(changes), POINTS)
    return Run(experiment=experiment, params=None, step=0, trusted=trusted)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"data.name": CODE}, "data.name = .*trust=True"),
        ({"data.name": "hf:some/set"}, "data.name = .*trust=True"),
        ({"data.name": "hf:/somewhere"}, "data.name = .*trust=True"),
        ({"data.name": "hf:/somewhere", "data.size": 8}, "data.name = .*trust=True"),
        ({"data.name": "folder:/somewhere"}, "data.name = .*trust=True"),
        ({"data.name": "npz:/somewhere"}, "data.name = .*trust=True"),
        ({"data.name": "tfds:mnist"}, "data.name = .*dir=FOLDER"),
        ({"data.name": "tfds:ns:mnist"}, "data.name = .*trust=True"),
        ({"data.name": "tfds:mnist/data_dir=/tmp"}, "data.name = .*trust=True"),
        ({"data.name": "mnist", "data.dir": "/somewhere"}, "data.dir = '/somewhere'.*dir=FOLDER"),
        ({"data.name": "tfds:mnist", "data.dir": "/somewhere"}, "data.dir = '/somewhere'.*dir=FOLDER"),
    ],
)
def test_the_data_of_a_folder_is_read_only_from_where_the_user_says(
    stranger: Path, changes: dict[str, Any], fix: str
) -> None:
    run = made(changes, trusted=False)
    with pytest.raises(InputError, match=fix):
        run.test_examples(1)
    if "FOLDER" in fix:  # the folder of the user is tried
        with pytest.raises(InputError, match=re.escape(str(stranger))):
            run.test_examples(1, dir=str(stranger))


def test_built_in_data_needs_no_trust() -> None:
    assert made({}, trusted=False).test_examples(3).shape == (3, 2)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"shape": "881", "levels": 17, "classes": 10}, "shape"),
        ({"shape": [10**9, 10**9, 1], "levels": 17, "classes": 10}, "shape"),
        ({"shape": [2.5], "levels": None, "classes": None}, "shape"),
        ({"shape": [True, 2], "levels": None, "classes": None}, "shape"),
        ({"shape": [], "levels": None, "classes": None}, "shape"),
        ({"shape": [-2], "levels": None, "classes": None}, "shape"),
        ({"shape": [1] * 9, "levels": None, "classes": None}, "shape"),
        *(
            ({"shape": [2], "levels": levels, "classes": None}, "levels")
            for levels in (0, 1, -3, True, 2.0, 10**9, "17")
        ),
        *(({"shape": [2], "levels": 17, "classes": n}, "classes") for n in (0, -1, True, 10**12, 1.5, "x")),
        ({"shape": [2], "levels": 17, "classes": 2, "more": 1}, "more"),
        ({"shape": [2]}, "levels"),
        ([2], "shape"),
    ],
)
def test_the_properties_of_the_data_are_checked(tmp_path: Path, data: Any, name: str) -> None:
    with pytest.raises(InputError, match=f"config.json is damaged.*{name}" if data != [2] else "is damaged"):
        load(write(tmp_path, {}, data))


SIZES = [
    ("schedule.num_timesteps", 10**9),
    ("schedule", {"name": "learned", "hidden": 10**9}),
    ("schedule", {"name": "jaxdiff.schedules:Discrete", "betas": []}),
    ("model.depth", 3000),
    ("model.width", 10**9),
    ("model.time_dim", 10**9),
    ("model.time_steps", 10**12),
    ("model", {"name": "unet", "layers": 10**6}),
    ("model", {"name": "unet", "layers": 200}),
    ("model", {"name": "unet", "down": [8] * 3000, "up": [8] * 3000, "attention": [True] * 3000}),
    ("model", {"name": "unet", "middle": [8] * 3000}),
    ("model", {"name": "unet", "patch": 10**9}),
    ("model", {"name": "unet", "down": [0, 8, 8]}),
    ("model", {"name": "classifier", "channels": [8] * 3000}),
    ("sampling.steps", 10**9),
    ("sampling.n", 10**12),
    ("sampling.batch", 10**12),
    ("sampling.sampler", "langevin:corrections=1000000000"),
    ("sampling.sampler", "adaptive:max_steps=1000000000"),
    ("train.batch_size", 10**12),
    ("train.accumulate", 10**12),
    ("train.steps_per_dispatch", 10**12),
    ("train.steps", 10**30),
    ("loss.weight", "elbo:num_timesteps=1000000000"),
    ("process", {"name": "perturbed", "noise": "poisson:rate=1e18"}),
]


@pytest.mark.parametrize(("path", "value"), SIZES, ids=lambda value: str(value)[:40])
def test_a_number_that_would_exhaust_the_machine_is_refused(path: str, value: Any) -> None:
    with pytest.raises(InputError) as error:
        make_experiment(tiny.config({path: value}), POINTS)
    named = re.search(r"(\w+)=", str(value))
    option = named[1] if named else list(value)[1] if isinstance(value, dict) else path.rpartition(".")[2]
    assert option in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_network_that_no_machine_holds_is_refused() -> None:
    with pytest.raises(InputError, match=r"model = .*bytes of weights"):
        make_experiment(tiny.config({"model.width": 2**16, "model.depth": 100}), POINTS)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"config": ' + '{"model":' * 5000 + "1" + "}" * 5000 + ', "data": {}}',
        '{"config": {"data": {"name": "swissroll"}, "model": ' + "[" * 900 + "]" * 900 + '}, "data": {}}',
        '{"config": {}, "data": {}}' + " " * 2**23,
        '{"config": {"train": {"steps": 1' + "0" * 10_000 + '}}, "data": {}}',
        '{"config": "x", "data": {}}',
        '{"config": {"model": {"name": "' + "x" * 10**6 + '"}, "data": {"name": "a"}}, "data": {}}',
        '{"config": {"' + "x" * 10**6 + '": 1}, "data": {}}',
    ],
    ids=range(8),
)
def test_a_text_that_is_no_config_is_one_short_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match="is damaged") as error:
        load(tmp_path)
    assert len(str(error.value)) < 5000


OVERLAP = {"process": {"name": "perturbed", "transform": ["overlap"]}, "predicts": "x0", "loss.target": "x0"}
OVERLAP |= {"sampling.sampler": "deterministic"}


@pytest.mark.parametrize(
    "examples",
    [np.zeros((2049, 2), np.float32), np.zeros((1, 2), np.float32), np.full((4, 2), np.nan, np.float32), None],
    ids=["many", "one", "nan", "cut"],
)
def test_examples_are_checked_by_their_header(tmp_path: Path, examples: Any) -> None:
    config = tiny.config(OVERLAP)
    workdir.write(tmp_path, config, POINTS, np.zeros((4, 2), np.float32))
    path = tmp_path / "examples.npy"
    if examples is None:  # a header of 8 TB with nothing behind it
        path.write_bytes(path.read_bytes().replace(b"(4, 2), }" + b" " * 12, b"(1000000000000, 2), }"))
    else:
        np.save(path, examples)
    with pytest.raises(InputError, match=r"examples\.npy is damaged"):
        workdir.read_examples(tmp_path, config, POINTS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # reads that Orbax leaves behind
def test_a_checkpoint_is_read_only_in_the_shapes_and_chunks_of_the_network(tmp_path: Path) -> None:
    import tensorstore

    with closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
        checkpoints.save(1, {"weights": {"bias": jnp.zeros(2), "kernel": jnp.zeros(2**20)}})
    store = {"driver": "ocdbt", "base": f"file://{tmp_path}/1/weights/", "path": "values.bias"}
    everywhere = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec())

    def read(*kernel: int) -> Any:
        shapes = {"bias": (2,), "kernel": kernel}
        wanted = {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=everywhere) for name, shape in shapes.items()}
        with closing(Checkpoints(tmp_path)) as checkpoints:
            return checkpoints.restore_item("weights", wanted)[1]

    assert read(2**20)["kernel"].shape == (2**20,)
    with pytest.raises(NoCheckpointError):
        read(3)
    metadata = {"shape": [2], "chunks": [2**24], "dtype": "<f4", "compressor": {"id": "zstd"}}
    spec = {"driver": "zarr", "kvstore": store, "metadata": metadata, "create": True, "delete_existing": True}
    array = tensorstore.open(spec).result()
    array.write(np.zeros(2, np.float32)).result()
    del array
    with pytest.raises(NoCheckpointError):
        read(2**20)
    gc.collect()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["mlp", "os:system"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "width", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = [
    "model",
    "model.width",
    "schedule",
    "schedule.num_timesteps",
    "process",
    "loss.weight",
    "loss.times",
    "data.name",
]
FIELDS += [
    "sampling.sampler",
    "sampling.timesteps",
    "sampling.clip",
    "train.steps",
    "train.dtype",
    "cond.label",
    "every",
]


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(FIELDS), value=JSON)
def test_any_value_in_a_folder_is_of_use_or_one_line(tmp_path_factory: Any, path: str, value: Any) -> None:
    folder = write(tmp_path_factory.mktemp("run"), {path: value})
    found = ""
    try:
        workdir.read(folder)
    except InputError as error:
        found = str(error)
    assert "\n" not in found


@pytest.mark.thorough
def test_the_command_line_tells_of_the_flag_in_one_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", {"schedule": CODE})
    out = tmp_path / "samples.png"
    process = tiny.Forked("sample.py", f"--workdir={folder}", f"--out={out}", cache=tmp_path / "cache")
    code, _, err = tiny.finish(process)
    assert code == 2
    assert "--trust" in err
    assert CODE in err
    assert err.count("\n") == 1
    assert not out.exists()
