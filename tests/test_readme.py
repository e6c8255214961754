"""The documentation is true: the README's test command is CI's, the Python of every page runs, and its links exist."""

import re
import runpy
import shutil
from pathlib import Path

import pytest

import jaxdiff as jd
from jaxdiff.experiment import Config, Data, Every, Sampling, Train, make_experiment
from jaxdiff.training.loop import train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {
    str(page.relative_to(ROOT).with_suffix("")): page
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
BLOCKS = {
    f"{name}-{i}": block
    for name, page in PAGES.items()
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
}
BLOCKS = {name: block for block, name in {block: name for name, block in reversed(BLOCKS.items())}.items()}  # each once
MODULES = {block[2:].split("\n")[0]: block for block in BLOCKS.values() if re.match(r"# \w+\.py\n", block)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that contains runs/digits and the modules of the pages: blocks that start with the name of a file."""
    home = tmp_path_factory.mktemp("readme")
    for name, block in MODULES.items():
        (home / name).write_text(block)
    # A run in the plane replaces the digits: a U-Net takes many times longer to compile, and the code is the same.
    config = Config(
        data=Data(name="moons"),
        model={"name": "mlp", "width": 8, "depth": 1},
        schedule={"name": "cosine", "num_timesteps": 100},
        train=Train(steps=1, batch_size=8),
        sampling=Sampling(steps=1),
        every=Every(log=10, checkpoint=10, sample=10),
    )
    train(config, home / "runs" / "digits")
    return home


@pytest.fixture
def at_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs each block in its own copy of that folder: two pages may train into the same workdir."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


QUICK = ("docs/first_code",)


def test_ci_calls_the_test_command_of_the_readme() -> None:
    commands = [line.strip() for line in README.splitlines() if line.startswith("    ") and "pytest" in line]
    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize(
    "name", [name if name.startswith(QUICK) else pytest.param(name, marks=pytest.mark.thorough) for name in BLOCKS]
)
@pytest.mark.usefixtures("at_home")
def test_the_python_of_the_pages_runs(name: str) -> None:
    exec(BLOCKS[name], {"__name__": "example"})


@pytest.mark.thorough
@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("variant", ["", "perturbed"])
def test_the_config_of_the_pages_names_what_is_outside_the_package(variant: str) -> None:
    values = runpy.run_path("my_config.py")["get_config"](variant)
    config = Config.from_mapping(values)
    experiment = make_experiment(config, config.data.load().spec)
    assert experiment.shape == (2,)
    assert type(experiment.schedule).__module__ == type(experiment.model).__module__ == "my_diffusion"


@pytest.mark.parametrize("name", PAGES)
def test_the_links_of_the_pages_exist(name: str) -> None:
    text = re.sub(r"```.*?```|\$[^$]*\$", "", PAGES[name].read_text(), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if not link.startswith("http")]
    assert [link for link in links if not (PAGES[name].parent / link).is_file()] == []


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    named = re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))


def test_the_glossary_has_every_sampler_and_schedule_and_its_class() -> None:
    text = PAGES["docs/glossary"].read_text()
    rows = {
        kind: re.findall(rf"^\| `(\S+)` \| `(jd\.{kind}\..*)` \|$", text, re.M) for kind in ("samplers", "schedules")
    }
    for name, code in rows["samplers"]:
        assert eval(code, {"jd": jd}) == jd.samplers.make(name)
    for name, code in rows["schedules"]:
        assert type(eval(code, {"jd": jd})) is type(jd.schedules.SCHEDULES[name]())
    others = {"residual", *(name for name in jd.samplers.SAMPLERS if name.startswith("dpmpp"))}
    assert {name for name, _ in rows["samplers"]} == {*jd.samplers.SAMPLERS} - others
    assert {name for name, _ in rows["schedules"]} == {*jd.schedules.SCHEDULES}
