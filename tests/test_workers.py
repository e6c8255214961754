"""Workers that can't begin, end early or can't be sent the data: the run ends in one line, and does not wait."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from jaxdiff.training import workers
from jaxdiff.typing import InputError

SCRIPT = """
import numpy as np
import jaxdiff as jd
import tiny

class Numbers:
    more = np.zeros(10**6)  # more than a pipe holds: it is sent with the object

    def __len__(self):
        return 64

    def __getitem__(self, i):
        return np.full(2, i, np.float32)

def main():
    changes = {{"data.on_device": False, "data.workers": 2, "train.steps": 2}}
    print("steps", jd.train(tiny.config(changes), {workdir!r}, data=Numbers()).step)

{guard}main()
"""


@pytest.mark.parametrize("guard", ["", pytest.param('if __name__ == "__main__": ', marks=pytest.mark.thorough)])
def test_a_script_needs_a_main_guard(guard: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(workdir=str(tmp_path / "run"), guard=guard))
    process = tiny.start(str(script), cache=tmp_path / "cache", paths=(tmp_path, Path(__file__).parent))
    code, out, err = tiny.finish(process)
    if guard:
        assert (code, out.split()) == (0, ["steps", "2"]), err
    else:
        assert code == 1
        assert 'must call train under `if __name__ == "__main__":`' in err.splitlines()[-1]


class Numbers:
    """Ten elements; element 5 is special."""

    def __init__(self, special: Any) -> None:
        self.special = special

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> Any:
        if i == 5:
            self.special()
        return np.full(2, i)


def end() -> None:
    os._exit(3)


def fail() -> None:
    raise RuntimeError("element 5 is bad")


def test_a_worker_that_ends_is_named_by_its_exit_code() -> None:
    with workers.read_ahead(Numbers(end), 2) as elements, pytest.raises(InputError, match="ended with exit code 3"):
        list(elements)


def test_an_error_of_the_data_comes_through() -> None:
    with workers.read_ahead(Numbers(fail), 2) as elements, pytest.raises(RuntimeError, match="element 5 is bad"):
        list(elements)


def test_data_that_cannot_be_sent_are_refused() -> None:
    lock = threading.Lock()
    with pytest.raises(InputError, match=r"cannot pickle.*data\.workers = 0"), workers.read_ahead(Numbers(lock), 1):
        pass


@pytest.mark.parametrize("count", [0, 1, 2])
def test_elements_come_in_order_and_leave_nothing_behind(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with workers.read_ahead(Numbers(lambda: None), count) as elements:
        assert [int(element[0]) for element in elements] == list(range(10))
    assert not list(tmp_path.iterdir())
