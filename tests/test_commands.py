"""The command `jaxdiff`, configs by name, --help, exit codes, and imports from folders around the checkout."""

import os
import subprocess
import sys

import pytest
import tiny

import jaxdiff
from jaxdiff.cli import config_files, help, main
from jaxdiff.typing import InputError


def run(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    """Run `jaxdiff` in this process: (exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["jaxdiff", *arguments])
    code = 0
    try:
        main.main()
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_the_command_alone_says_how_to_use_it(capsys, monkeypatch, arguments):
    code, out, err = run(capsys, monkeypatch, *arguments)
    assert (code, err) == (0, "")
    assert "jaxdiff train --config=digits" in out


def test_the_version_is_that_of_the_package(capsys, monkeypatch):
    assert run(capsys, monkeypatch, "--version") == (0, f"jaxdiff {jaxdiff.__version__}\n", "")


def test_an_unknown_command_is_refused(capsys, monkeypatch):
    code, out, err = run(capsys, monkeypatch, "trian")
    assert (code, out) == (2, "")
    assert "'trian'" in err
    assert "train" in err


@pytest.mark.thorough
def test_the_module_runs_a_config_by_its_name_from_any_folder(tmp_path):
    environment = {"PATH": "", "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny.REPOSITORY)}
    command = [sys.executable, "-m", "jaxdiff", "train", "--config=swissroll:moons", "--workdir=run"]
    small = ["--config.train.steps=100", "--config.train.batch_size=8", "--config.every.sample=5000"]
    small += ["--config.sampling.steps=2", "--config.model.width=8", "--config.optimizer.learning_rate=1e38"]
    done = subprocess.run(command + small, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # it diverges, which is a failure and not a refusal
    assert "moons" in done.stderr
    assert (tmp_path / "run" / "config.json").exists()


def test_a_config_is_a_name_or_a_file_with_or_without_a_variant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = config_files.shipped()["digits"]
    assert config_files.locate("digits") == str(digits)
    assert config_files.locate("digits:blur") == f"{digits}:blur"
    assert config_files.load(config_files.locate("digits:blur")).process.name == "perturbed"
    mine = tmp_path / "mine.py"
    mine.write_text("def get_config(): return 3\n")
    assert config_files.load(config_files.locate("mine.py")) == 3
    for wrong, plain in (("configs/digits.py", "digits"), ("digit", "digits"), ("", "digits")):
        with pytest.raises(InputError, match=plain):
            config_files.locate(wrong)


@pytest.mark.parametrize("name", config_files.shipped())
def test_the_help_with_a_config_lists_its_settings(name):
    config = config_files.load(config_files.locate(name))
    text = help.text("usage", help.flags.FlagValues(), module="", config=config)
    assert f"--config.train.steps={config.train.steps}" in text
    assert f"--config.optimizer.learning_rate={config.optimizer.learning_rate}" in text


def test_a_folder_named_like_the_package_does_not_shadow_it(tmp_path):
    """As from the folder that holds a clone named jaxdiff, which would be found as an empty namespace package."""
    (tmp_path / "jaxdiff").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = "import jaxdiff; print(jaxdiff.__version__)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == jaxdiff.__version__, done.stderr
