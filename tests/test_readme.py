"""The README is true: its commands are CI's, and its Python runs as printed."""

import re
from pathlib import Path

import pytest

from jaxdiff.config import Config, Data, Every, Sampling, Train
from jaxdiff.training.loop import train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/digits in it."""
    home = tmp_path_factory.mktemp("readme")
    # A run in the plane stands in for the digits: a U-Net takes many times longer to compile, and the code is the same.
    config = Config(
        data=Data(name="moons"),
        model={"name": "mlp", "width": 8, "depth": 1},
        schedule={"name": "cosine", "steps": 100},
        train=Train(steps=1, batch_size=8),
        sampling=Sampling(steps=1),
        every=Every(log=10, checkpoint=10, sample=10),
    )
    train(config, home / "runs" / "digits")
    return home


def test_ci_calls_the_test_command_of_the_readme() -> None:
    commands = [line.strip() for line in README.splitlines() if line.startswith("    ") and "pytest" in line]
    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[2])
def test_the_python_of_the_readme_runs(block: str, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_run)
    exec(block, {})


def test_the_pictures_of_the_readme_are_there() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)
